"""What the data of all recipes share: the prompt that the stage puts in front, and how rows are written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from sophia_mcore.store.atomic import write_text

_PROMPT = Path(__file__).parents[1] / "digits" / "prompts" / "long_thinking.txt"
SYSTEM = _PROMPT.read_text(encoding="utf-8").strip()


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """One JSON object a line; the file appears whole or not at all."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
