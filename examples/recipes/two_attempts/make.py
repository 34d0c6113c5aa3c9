"""Demonstrations of a second attempt, of which the demo's model has never seen the prompt.

    python -m examples.recipes.two_attempts.make [--out runs/two_attempts/data]

Writes demonstrations.jsonl: 200 pairs of a question with a first answer in sight, and the right answer. In half of the
pairs the first answer may have misread a digit.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image

from examples.digits.world import draw, random_board, random_task
from examples.recipes.data import SYSTEM, write_rows
from examples.recipes.two_attempts.attempts import second_prompt

DEMONSTRATIONS = 200


def main() -> None:
    """Write the pairs and their boards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/two_attempts/data"))
    out = parser.parse_args().out
    (out / "images").mkdir(parents=True, exist_ok=True)
    rng, rows = random.Random("two attempts"), []
    for index in range(DEMONSTRATIONS):
        board, task = random_board("train", rng), random_task(rng)
        believed = list(board.digits)
        if index % 2:
            believed[rng.choice(task.cells)] = rng.randrange(10)
        image = f"images/{index}.png"
        Image.fromarray(draw(board, rng)).save(out / image)
        first, second = task.chain(believed, rng), task.chain(board.digits, rng)
        row = {"id": str(index), "images": [image], "question": second_prompt(task.question(), first)}
        rows.append(row | {"response": second, "system": SYSTEM})
    write_rows(out / "demonstrations.jsonl", rows)
    print(f"{out / 'demonstrations.jsonl'}: {DEMONSTRATIONS} pairs")


if __name__ == "__main__":
    main()
