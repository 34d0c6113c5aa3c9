"""Questions of the recipe: medium and hard ones.

    python -m examples.recipes.openvlthinker.make [--out runs/openvlthinker/data]

Writes medium.jsonl (a sum of two, "larger", "even or odd") and hard.jsonl (a sum of three, a product plus a digit).
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image

from examples.digits.world import Task, draw, random_board
from examples.recipes.data import write_rows

COUNT = 1440  # 30 batches of 48 ask each once
CELLS = {"medium": {"sum2": 2, "larger": 2, "parity": 1}, "hard": {"sum3": 3, "product": 3}}


def write(part: str, out: Path) -> None:
    """OUT/PART.jsonl and its boards."""
    rng, rows = random.Random(f"openvlthinker {part}"), []
    (out / "images").mkdir(parents=True, exist_ok=True)
    for index in range(COUNT):
        kind = rng.choice(tuple(CELLS[part]))
        board, task = random_board("train", rng), Task(kind, tuple(rng.sample(range(4), CELLS[part][kind])))
        image = f"images/{part}-{index}.png"
        Image.fromarray(draw(board, rng)).save(out / image)
        row = {"id": f"{part}-{index}", "image": image, "question": task.question()}
        rows.append(row | {"answer": task.answer(board.digits), "kind": kind})
    write_rows(out / f"{part}.jsonl", rows)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/openvlthinker/data"))
    out = parser.parse_args().out
    for part in CELLS:
        write(part, out)
        print(f"{out / part}.jsonl: {COUNT} rows")


if __name__ == "__main__":
    main()
