"""What the data of all recipes share: the prompt that the stage puts in front, and how rows are written."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from PIL import Image

from examples.digits.world import Board, draw
from sophia_mcore.store.atomic import write_text

_PROMPT = Path(__file__).parents[1] / "digits" / "prompts" / "long_thinking.txt"
SYSTEM = _PROMPT.read_text(encoding="utf-8").strip()


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """One JSON object a line; the file appears whole or not at all."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_board(board: Board, rng: random.Random, out: Path, name: str) -> str:
    """Save the picture of a board as OUT/images/NAME.png; returns its path as a row of OUT names it."""
    image = f"images/{name}.png"
    (out / image).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(board, rng)).save(out / image)
    return image


def make_parts(module: str, out: str, counts: Mapping[str, int], write: Callable[[str, int, Path], None]) -> None:
    """The command of a recipe's make.py: ``write(part, rows, folder)`` for each part. ``module``: its docstring."""
    parser = argparse.ArgumentParser(description=module.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(out))
    folder = parser.parse_args().out
    for part, count in counts.items():
        write(part, count, folder)
        print(f"{folder / part}.jsonl: {count} rows")
