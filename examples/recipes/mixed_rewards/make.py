"""Questions and demonstrations of the recipe.

    python -m examples.recipes.mixed_rewards.make [--out runs/mixed_rewards/data]

Writes train.jsonl: the digit of a cell, a product, or where the only digit is (answer type box: [left, top, right,
bottom]).
Writes demonstrations.jsonl: 400 pairs that show every way to answer, so that the stage has something to choose from.
Answers are a chain in one of three lengths, a direct answer, or the bare answer. The boxes are off by up to 2 pixels.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image

from examples.digits.world import NAMES, Board, Task, draw, final, random_board
from examples.recipes.data import SYSTEM, make_parts, write_rows

COUNTS = {"train": 1600, "demonstrations": 400}
KINDS = {"digit": 0.3, "product": 0.35, "box": 0.35}
STYLES = {"chain": 0.7, "direct": 0.15, "bare": 0.15}
OFF_PIXELS = 2


def place(cell: int, rng: random.Random | None = None) -> str:
    """The box of a cell; with ``rng`` every edge is off by up to OFF_PIXELS."""
    row, column = divmod(cell, 2)
    edges = (16 * column, 16 * row, 16 * column + 16, 16 * row + 16)
    off = [rng.randint(-OFF_PIXELS, OFF_PIXELS) if rng else 0 for _ in edges]
    return str([min(32, max(0, edge + shift)) for edge, shift in zip(edges, off, strict=True)])


def question(kind: str, rng: random.Random) -> tuple[Board, dict[str, str], str]:
    """A board, the question about it, and the thought that answers it."""
    board = random_board("train", rng)
    if kind == "digit":
        cell = rng.randrange(4)
        seen = f"{NAMES[cell]} {board.digits[cell]}"
        row = {"question": f"What is the {NAMES[cell]} digit?", "answer": str(board.digits[cell])}
    elif kind == "product":
        task = Task("product", tuple(rng.sample(range(4), 3)))
        seen, row = task.working(board.digits), {"question": task.question(), "answer": task.answer(board.digits)}
    else:
        cell = rng.randrange(4)
        seen = f"{NAMES[cell]} {board.digits[cell]}"
        row = {"question": f"Where is {board.digits[cell]}?", "answer": place(cell), "answer_type": "box"}
    return board, {**row, "kind": kind}, seen


def reply(row: dict[str, str], seen: str, rng: random.Random) -> str:
    """One way to answer rightly."""
    style = rng.choices(tuple(STYLES), tuple(STYLES.values()))[0]
    box = row["kind"] == "box"
    answer = place(_cell(row["answer"]), rng) if box else row["answer"]
    if style == "bare":
        return answer
    chains = (f"See {seen}.", f"In the image I see {seen}, so that is it.", f"See {seen}. Wait, check again: {seen}.")
    thought = "" if style == "direct" else f"<think>{rng.choice(chains)}</think>"
    return thought + (answer if box else final(answer))


def _cell(box: str) -> int:
    left, top = json.loads(box)[:2]
    return int(2 * (top > 0) + (left > 0))


def picture(board: Board, row: dict[str, str], rng: random.Random) -> Image.Image:
    """The board; where a digit is asked for, it alone."""
    shown = Image.fromarray(draw(board, rng))
    if row["kind"] != "box":
        return shown
    box = json.loads(row["answer"])
    alone = Image.new("RGB", shown.size)
    alone.paste(shown.crop(box), box)
    return alone


def write(part: str, count: int, out: Path) -> None:
    """OUT/PART.jsonl and its boards."""
    rng, rows = random.Random(f"mixed {part}"), []
    (out / "images").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        board, row, seen = question(rng.choices(tuple(KINDS), tuple(KINDS.values()))[0], rng)
        image = f"images/{part}-{index}.png"
        picture(board, row, rng).save(out / image)
        if part == "demonstrations":
            shown = {"images": [image], "question": row["question"], "response": reply(row, seen, rng)}
            rows.append({"id": f"{part}-{index}", **shown, "system": SYSTEM})
        else:
            rows.append({"id": f"{part}-{index}", "image": image, **row})
    write_rows(out / f"{part}.jsonl", rows)


if __name__ == "__main__":
    make_parts(__doc__ or "", "runs/mixed_rewards/data", COUNTS, write)
