"""docs/weights_tables.md shows the tables as they are. `python tests/unit/test_weights_docs.py` prints them anew."""

from __future__ import annotations

from pathlib import Path

from sophia_mcore.pretrained.internvl.weights import PROJECTOR, VISION
from sophia_mcore.pretrained.qwen_vl import weights as qwen
from sophia_mcore.pretrained.table import LANGUAGE, Join, Row

TABLES = {
    "InternViT": VISION, "InternVL projector": PROJECTOR, "language": LANGUAGE, "Qwen2.5-VL tower": qwen.WINDOWED,
    "Qwen2.5-VL projector": qwen.WINDOWED_PROJECTOR, "Qwen3-VL tower": qwen.DEEP,
    "Qwen3-VL projector": qwen.DEEP_PROJECTOR, "DeepStack": qwen.DEEPSTACK,
}  # fmt: skip
DOCUMENT = Path(__file__).parents[2] / "docs" / "weights_tables.md"


def cell(join: Join | None) -> str:
    """Source names, their common beginning written once, and how they interleave."""
    if join is None:
        return "-"
    names = "<br>".join(f"`{name}`" for name in join.names)
    if not join.parts:
        return names
    parts = " + ".join(map(str, join.parts))
    return f"{names}<br>rows {parts}" + ("" if join.groups == 1 else f", {join.groups} times")


def line(row: Row) -> str:
    """A row as a line of Markdown."""
    cut = (
        "-" if row.cut is None else ("rows", "columns")[row.cut.axis] + (" of each half" if row.cut.blocks == 2 else "")
    )
    when = f" (if {row.when.replace('_', ' ')})" if row.when else ""
    shape = " x ".join(map(str, row.shape))
    return f"| `{row.name}`{when} | {shape} | {cut} | {cell(row.hf)} | {cell(row.custom)} |"


def test_every_row_stands_in_the_document() -> None:
    document = DOCUMENT.read_text().splitlines()
    missing = [row.name for t in TABLES.values() for row in t if line(row) not in document]
    assert not missing, "print the tables anew (see the first line of this file)"


if __name__ == "__main__":
    for name, rows in TABLES.items():
        print(f"\n{name}\n", *map(line, rows), sep="\n")
