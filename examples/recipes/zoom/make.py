"""Questions and demonstrations of the recipe.

    python -m examples.recipes.zoom.make [--out runs/zoom/data]

Writes train.jsonl and test.jsonl (scans of the digits example's parts train and test), and demonstrations.jsonl with
its pictures: 100 episodes as pairs. They show how a call is written and how a crop is read. They do not show when
to call or what: a third of them answer at once with a digit drawn at random, the others call a cell drawn at random.
"""

from __future__ import annotations

import argparse
import io
import random
from pathlib import Path

from PIL import Image

from examples.digits.world import NAMES, draw, final, random_board
from examples.recipes.data import SYSTEM, write_board, write_rows
from examples.recipes.zoom.zoom import crop, prompt, small

COUNTS = {"train": 1600, "test": 300}
DEMONSTRATIONS = 100


def answer(cell: int, digit: int) -> str:
    """What is said about a cell that shows a digit."""
    return f"<think>See {NAMES[cell]} {digit}.</think>{final(str(digit))}"


def questions(part: str, count: int, out: Path) -> None:
    """OUT/PART.jsonl and its boards: one question about one cell of each."""
    rng, rows = random.Random(f"zoom {part}"), []
    for index in range(count):
        board, cell = random_board(part, rng), rng.randrange(4)
        image = write_board(board, rng, out, f"{part}-{index}")
        row = {"id": f"{part}-{index}", "image": image, "question": f"What is the {NAMES[cell]} digit?"}
        rows.append(row | {"answer": str(board.digits[cell])})
    write_rows(out / f"{part}.jsonl", rows)


def demonstrations(count: int, out: Path) -> None:
    """OUT/demonstrations.jsonl: the first turn and the last turn of each episode as pairs of prompt and reply."""
    rng, rows = random.Random("zoom demonstrations"), []
    (out / "demonstrations").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        board, cell = random_board("train", rng), rng.randrange(4)
        question = f"What is the {NAMES[cell]} digit?"
        file = io.BytesIO()
        Image.fromarray(draw(board, rng)).save(file, "PNG")
        names = [f"demonstrations/{index}-small.png", f"demonstrations/{index}-crop.png"]
        for name, data in zip(names, (small(file.getvalue()), crop(file.getvalue(), cell)), strict=True):
            (out / name).write_bytes(data)
        first = f"crop {rng.choice(NAMES)}" if index % 3 else answer(cell, rng.randrange(10))
        last = answer(cell, board.digits[cell])
        for turn, (images, reply) in enumerate(((names[:1], first), (names, last))):
            row = {"id": f"{index}-{turn}", "images": images, "question": prompt(question, len(images))}
            rows.append(row | {"response": reply, "system": SYSTEM})
    write_rows(out / "demonstrations.jsonl", rows)


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/zoom/data"))
    out = parser.parse_args().out
    for part, count in COUNTS.items():
        questions(part, count, out)
    demonstrations(DEMONSTRATIONS, out)
    print(f"{out}: {', '.join(f'{count} {part}' for part, count in COUNTS.items())}, {DEMONSTRATIONS} demonstrations")


if __name__ == "__main__":
    main()
