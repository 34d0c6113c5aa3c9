"""Questions of the recipe: medium and hard ones.

    python -m examples.recipes.openvlthinker.make [--out runs/openvlthinker/data]

Writes medium.jsonl (a sum of two, "larger", "even or odd") and hard.jsonl (a sum of three, a product plus a digit).
"""

from __future__ import annotations

import random
from pathlib import Path

from examples.digits.world import Task, random_board
from examples.recipes.data import make_parts, write_board, write_rows

COUNTS = {"medium": 384, "hard": 384}  # 24 batches of 16 ask each once
CELLS = {"medium": {"sum2": 2, "larger": 2, "parity": 1}, "hard": {"sum3": 3, "product": 3}}


def write(part: str, count: int, out: Path) -> None:
    """OUT/PART.jsonl and its boards."""
    rng, rows = random.Random(f"openvlthinker {part}"), []
    for index in range(count):
        kind = rng.choice(tuple(CELLS[part]))
        board, task = random_board("train", rng), Task(kind, tuple(rng.sample(range(4), CELLS[part][kind])))
        image = write_board(board, rng, out, f"{part}-{index}")
        row = {"id": f"{part}-{index}", "image": image, "question": task.question()}
        rows.append(row | {"answer": task.answer(board.digits), "kind": kind})
    write_rows(out / f"{part}.jsonl", rows)


if __name__ == "__main__":
    make_parts(__doc__ or "", "runs/openvlthinker/data", COUNTS, write)
