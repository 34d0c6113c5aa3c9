"""Questions and demonstrations of the recipe.

    python -m examples.recipes.overthinking.make [--out runs/overthinking/data]

Writes train.jsonl: sums and products, of which an answer that stops early is wrong.
Writes demonstrations.jsonl: 400 pairs whose thought calculates once (15%), twice (35%) or three times (50%).
"""

from __future__ import annotations

import random
from pathlib import Path

from examples.digits.world import Task, final, random_board
from examples.recipes.data import SYSTEM, make_parts, write_board, write_rows

COUNTS = {"train": 1600, "demonstrations": 400}
KINDS = {"sum2": 0.3, "sum3": 0.3, "product": 0.4}
TIMES = {1: 0.15, 2: 0.35, 3: 0.5}
AGAIN = " Wait, check again: "


def thought(task: Task, digits: tuple[int, ...], times: int) -> str:
    """The calculation, ``times`` times."""
    return "See " + AGAIN.join([f"{task.working(digits)}."] * times)


def write(part: str, count: int, out: Path) -> None:
    """OUT/PART.jsonl and its boards."""
    rng, rows = random.Random(f"overthinking {part}"), []
    for index in range(count):
        kind = rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
        board, task = random_board("train", rng), Task(kind, tuple(rng.sample(range(4), 2 if kind == "sum2" else 3)))
        image = write_board(board, rng, out, f"{part}-{index}")
        row: dict[str, object] = {"id": f"{part}-{index}", "question": task.question()}
        answer = task.answer(board.digits)
        if part == "demonstrations":
            times = rng.choices(tuple(TIMES), tuple(TIMES.values()))[0]
            reply = f"<think>{thought(task, board.digits, times)}</think>{final(answer)}"
            rows.append({**row, "images": [image], "response": reply, "system": SYSTEM})
        else:
            rows.append({**row, "image": image, "answer": answer, "kind": kind})
    write_rows(out / f"{part}.jsonl", rows)


if __name__ == "__main__":
    make_parts(__doc__ or "", "runs/overthinking/data", COUNTS, write)
