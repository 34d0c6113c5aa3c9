"""Questions and demonstrations of the recipe.

    python -m examples.recipes.perceiver.make [--out runs/perceiver/data]

Writes train.jsonl: boards with "Is first larger than third?" and "Is second even or odd?", which luck can answer.
Writes demonstrations.jsonl: 300 pairs of a description with a question and a reply. Every final answer is right, yet
two thirds of the thoughts are about digits drawn at random: the reasoner starts with thoughts that do not carry its
answers.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from examples.digits.world import Task, caption, final, random_board
from examples.recipes.data import SYSTEM, write_board, write_rows
from examples.recipes.perceiver.perceiver import prompt

COUNTS = {"train": 1600, "demonstrations": 300}
LOOSE = 2 / 3


def task(rng: random.Random) -> Task:
    """One of the two kinds of question."""
    return Task("larger", tuple(rng.sample(range(4), 2))) if rng.random() < 0.5 else Task("parity", (rng.randrange(4),))


def questions(count: int, out: Path) -> None:
    """OUT/train.jsonl and its boards."""
    rng, rows = random.Random("perceiver train"), []
    for index in range(count):
        board, asked = random_board("train", rng), task(rng)
        image = write_board(board, rng, out, f"{index}")
        row = {"id": f"train-{index}", "image": image, "question": asked.question()}
        rows.append(row | {"answer": asked.answer(board.digits), "kind": asked.kind})
    write_rows(out / "train.jsonl", rows)


def demonstrations(count: int, out: Path) -> None:
    """OUT/demonstrations.jsonl: text alone."""
    rng, rows = random.Random("perceiver demonstrations"), []
    for index in range(count):
        digits, asked = [rng.randrange(10) for _ in range(4)], task(rng)
        thought = [rng.randrange(10) for _ in range(4)] if rng.random() < LOOSE else digits
        text = prompt(caption(digits, rng, omit=0.0), asked.question())
        reply = f"<think>See {asked.working(thought)}.</think>{final(asked.answer(digits))}"
        rows.append({"id": str(index), "question": text, "response": reply, "system": SYSTEM})
    write_rows(out / "demonstrations.jsonl", rows)


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/perceiver/data"))
    out = parser.parse_args().out
    questions(COUNTS["train"], out)
    demonstrations(COUNTS["demonstrations"], out)
    print(f"{out}: {', '.join(f'{count} {part}' for part, count in COUNTS.items())}")


if __name__ == "__main__":
    main()
