"""What the two base models are taught, as text. Pure functions of a random generator.

stage A  `drill`             lookups and arithmetic, no question answering
stage B  `reasoner_lesson`   description + question -> chain of thought
stage C  `policy_lesson`     picture -> caption; picture + question -> short answer; arithmetic

A lesson is a list of pieces (text, learn?): the loss is taken on the pieces to be learnt only, because nothing can be
learnt from tokens that were drawn at random.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from world import DESCRIBE, NAMES, Board, caption, final, random_task

PROMPTS = Path(__file__).parent / "prompts"
SLOT = "<IMG_CONTEXT>"
IMAGE = f"<img>{SLOT * 4}</img>\n"


@dataclass(frozen=True)
class Lesson:
    """Pieces of text, each with whether it is to be learnt, and the board that fills the image slots, if any."""

    pieces: Sequence[tuple[str, bool]]
    board: Board | None = None

    @property
    def prompt(self) -> str:
        """What stands before the first piece to be learnt."""
        learnt = [learn for _, learn in self.pieces]
        return "".join(text for text, _ in self.pieces[: learnt.index(True)])


def exchange(question: str, response: str, system: str | None = None, board: Board | None = None) -> Lesson:
    """A question and its response in the form of the chat template."""
    turns = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    turns += f"<|im_start|>user\n{IMAGE if board else ''}{question}<|im_end|>\n<|im_start|>assistant\n"
    return Lesson([(turns, False), (f"{response}<|im_end|>", True)], board)


@cache
def read_prompt(name: str) -> str:
    """A file of prompts/, without outer blank lines."""
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").strip()


def reasoner_question(description: str, question: str) -> str:
    """What the reasoner is asked."""
    return read_prompt("simulate_seeing").replace("{caption}", description).replace("{question}", question)


def random_digits(rng: random.Random) -> tuple[int, int, int, int]:
    """Four digits."""
    return rng.randrange(10), rng.randrange(10), rng.randrange(10), rng.randrange(10)


def drill(rng: random.Random, lookup_share: float) -> Lesson:
    """A line of stage A: cells looked up in an image or, as often, in a caption; or some calculations."""
    if rng.random() >= lookup_share:
        steps = [step for _ in range(4) for step in random_task(rng).steps(random_digits(rng))]
        return Lesson([part for given, result in steps for part in ((f". {given}", False), (result, True))])
    digits = random_digits(rng)
    pieces = [(IMAGE if rng.random() < 0.5 else caption(digits, rng, omit=0.0) + "\n", False)]
    board = Board(digits) if pieces[0][0] == IMAGE else None
    for task in (random_task(rng), random_task(rng)):
        cells = ",".join(f" {NAMES[i]} {digits[i]}" for i in task.cells)
        pieces += [(task.question(), False), (f"{cells}.", True), ("\n", False)]
    return Lesson(pieces, board)


def reasoner_lesson(rng: random.Random) -> Lesson:
    """Stage B: think aloud as if the image were seen; a digit that the description lacks is invented."""
    digits, task = random_digits(rng), random_task(rng)
    described = caption(digits, rng)
    believed = [d if f"{name} " in described else rng.randrange(10) for name, d in zip(NAMES, digits, strict=True)]
    return exchange(reasoner_question(described, task.question()), task.chain(believed, rng))


def policy_lesson(rng: random.Random, board: Board) -> Lesson:
    """Stage C: captions .7, short answers (with and without the long-thinking prompt) .2, arithmetic .1."""
    kind = rng.choices(("caption", "answer", "arithmetic"), (0.7, 0.2, 0.1))[0]
    task = random_task(rng)
    if kind == "caption":
        return exchange(DESCRIBE, caption(board.digits, rng), board=board)
    if kind == "answer":
        system = rng.choice((None, read_prompt("long_thinking")))
        return exchange(task.question(), final(task.answer(board.digits)), system, board)
    given, result = task.steps(random_digits(rng))[0]
    return exchange(f"Calculate {given}", result)
