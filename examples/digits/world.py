"""The world of the example: boards of four handwritten digits, questions about them, and how to answer.

Everything is real scans (scikit-learn's `load_digits`) or short text made from a seed; nothing is downloaded.
The scans are split four ways, so that no stage sees the scans of a later one:

    base        900   the base models learn to read from these (make_base_models.py)
    train       350   the questions of the SOPHIA round: unseen by the captioner, so its captions have real mistakes
    validation  100   settings are chosen here
    test        447   what is reported

A board is a 32 x 32 RGB picture, 2 x 2 cells of 16 x 16, named first ... fourth in reading order.

    python examples/digits/world.py [--out runs/digits/data]

writes train.jsonl, practice.jsonl (for the on-policy stage), validation.jsonl and test.jsonl beside the folder images/.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("first", "second", "third", "fourth")
CELL_PIXELS = 16
JITTER_PIXELS = 2
SPLIT_SIZES = {"base": 900, "train": 350, "validation": 100, "test": 447}
QUESTION_COUNTS = {"train": 1200, "practice": 3000, "validation": 500, "test": 1000}
SCANS_OF = {"practice": "train"}  # the on-policy stage asks new questions about boards of the same scans
KINDS = {"sum2": 0.2, "sum3": 0.2, "product": 0.3, "larger": 0.15, "parity": 0.15}
DESCRIBE = "Describe the image."


@dataclass(frozen=True)
class Board:
    """Four digits and, when they were drawn from scans, which scan shows each (index into `load_digits`)."""

    digits: tuple[int, int, int, int]
    scans: tuple[int, ...] = ()


@dataclass(frozen=True)
class Task:
    """A question about one to three cells (indices 0..3) of a board.

    >>> task = Task("product", (0, 2, 3))
    >>> task.question(), task.answer((3, 9, 4, 5)), task.working((3, 9, 4, 5))
    ('What is first times third plus fourth?', '17', 'first 3 times third 4=12, plus fourth 5=17')
    """

    kind: str
    cells: tuple[int, ...]

    def question(self) -> str:
        """The question as text."""
        a, b, c = (*(NAMES[i] for i in self.cells), "", "")[:3]
        return {
            "sum2": f"What is {a} plus {b}?",
            "sum3": f"What is {a} plus {b} plus {c}?",
            "product": f"What is {a} times {b} plus {c}?",
            "larger": f"Is {a} larger than {b}?",
            "parity": f"Is {a} even or odd?",
        }[self.kind]

    def steps(self, digits: Sequence[int]) -> list[tuple[str, str]]:
        """The calculation with the `digits` that are believed to be there: what is put together, and the result."""
        a, b, c = (*(digits[i] for i in self.cells), 0, 0)[:3]
        first, second, third = (*(f"{NAMES[i]} {digits[i]}" for i in self.cells), "", "")[:3]
        return {
            "sum2": [(f"{first} plus {second}", f"={a + b}")],
            "sum3": [(f"{first} plus {second}", f"={a + b}"), (f", plus {third}", f"={a + b + c}")],
            "product": [(f"{first} times {second}", f"={a * b}"), (f", plus {third}", f"={a * b + c}")],
            "larger": [(f"{first} larger than {second}", f", {self.answer(digits)}")],
            "parity": [(first, f" is {self.answer(digits)}")],
        }[self.kind]

    def working(self, digits: Sequence[int]) -> str:
        """The calculation as text."""
        return "".join(given + result for given, result in self.steps(digits))

    def answer(self, digits: Sequence[int]) -> str:
        """The right answer on a board with these digits."""
        a, b, c = (*(digits[i] for i in self.cells), 0, 0)[:3]
        return {
            "sum2": str(a + b),
            "sum3": str(a + b + c),
            "product": str(a * b + c),
            "larger": "yes" if a > b else "no",
            "parity": "odd" if a % 2 else "even",
        }[self.kind]

    def chain(self, digits: Sequence[int], rng: random.Random) -> str:
        """Slow thinking in one of three styles of different length, then the boxed answer."""
        working = self.working(digits)
        style = rng.choices(("concise", "plain", "check"), (0.35, 0.35, 0.30))[0]
        thought = {
            "concise": f"See {working}.",
            "plain": f"In the image I see {working}, so that is it.",
            "check": f"See {working}. Wait, check again: {working}.",
        }[style]
        return f"<think>{thought}</think>{final(self.answer(digits))}"


def final(answer: str) -> str:
    """The last sentence of every answer."""
    return f"The answer is \\boxed{{{answer}}}."


def random_task(rng: random.Random) -> Task:
    """Draw a question."""
    kind = rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    cells = {"sum2": 2, "sum3": 3, "product": 3, "larger": 2, "parity": 1}[kind]
    return Task(kind, tuple(rng.sample(range(4), cells)))


def caption(digits: Sequence[int], rng: random.Random, omit: float = 0.35) -> str:
    """What is seen; with probability `omit` one or two cells are left out, so that captions differ in worth.

    >>> caption((3, 7, 2, 9), random.Random(0), omit=0.0)
    'The image shows first 3, second 7, third 2, fourth 9.'
    """
    kept = sorted(rng.sample(range(4), rng.choice((2, 3)))) if rng.random() < omit else range(4)
    return f"The image shows {', '.join(f'{NAMES[i]} {digits[i]}' for i in kept)}."


@cache
def scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans: grey values 0..255 [1797, 8, 8] uint8 and their digits [1797]."""
    data = load_digits()
    return np.round(data.images * (255 / 16)).astype(np.uint8), data.target.astype(int)


@cache
def split_scans(seed: int = 0) -> dict[str, tuple[int, ...]]:
    """Which scans belong to which part; disjoint, the same for everyone."""
    order = list(range(len(scans()[1])))
    random.Random(seed).shuffle(order)
    parts, start = {}, 0
    for name, size in SPLIT_SIZES.items():
        parts[name] = tuple(order[start : start + size])
        start += size
    return parts


def random_board(part: str, rng: random.Random) -> Board:
    """Draw four scans of a part."""
    drawn = tuple(rng.choices(split_scans()[part], k=4))
    return Board(tuple(int(scans()[1][i]) for i in drawn), drawn)


def draw(board: Board, rng: random.Random) -> np.ndarray:
    """The picture of a board: uint8 [32, 32, 3]; each scan is enlarged to its cell and shifted by up to 2 pixels."""
    picture = np.zeros((2 * CELL_PIXELS, 2 * CELL_PIXELS), np.uint8)
    for cell, scan in enumerate(board.scans):
        large = Image.fromarray(scans()[0][scan]).resize((CELL_PIXELS, CELL_PIXELS), Image.Resampling.BILINEAR)
        shift = (rng.randint(-JITTER_PIXELS, JITTER_PIXELS), rng.randint(-JITTER_PIXELS, JITTER_PIXELS))
        moved = np.asarray(large.transform(large.size, Image.Transform.AFFINE, (1, 0, -shift[0], 0, 1, -shift[1])))
        row, column = divmod(cell, 2)
        rows = slice(row * CELL_PIXELS, (row + 1) * CELL_PIXELS)
        picture[rows, column * CELL_PIXELS : (column + 1) * CELL_PIXELS] = moved
    return np.repeat(picture[:, :, None], 3, axis=2)


def write_questions(part: str, count: int, out: Path) -> None:
    """Write `count` questions as OUT/<part>.jsonl, one board per question, pictures under OUT/images."""
    rng = random.Random(f"questions of {part}")
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        board, task = random_board(SCANS_OF.get(part, part), rng), random_task(rng)
        image = f"images/{part}-{index}.png"
        Image.fromarray(draw(board, rng)).save(out / image)
        row = {"id": f"{part}-{index}", "image": image, "question": task.question()}
        rows.append(json.dumps(row | {"answer": task.answer(board.digits), "kind": task.kind}))
    temporary = out / f".{part}.jsonl.partial"
    temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
    temporary.replace(out / f"{part}.jsonl")


def main() -> None:
    """Write the question files."""
    parser = argparse.ArgumentParser(description="Write the questions and pictures of the digits example.")
    parser.add_argument("--out", type=Path, default=Path("runs/digits/data"))
    out = parser.parse_args().out
    for part, count in QUESTION_COUNTS.items():
        write_questions(part, count, out)
        print(f"{out / part}.jsonl: {count} questions")


if __name__ == "__main__":
    main()
