"""`sophia init`: writes a run's TOML for the user's data, after reading some rows with these settings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from sophia_mcore.data.outline import outline_of, run_toml
from sophia_mcore.data.sources import read_source
from sophia_mcore.errors import UsageError
from sophia_mcore.launch.environments import rollout_python
from sophia_mcore.store.atomic import write_text

_TRIED = 20


def write_run_toml(data: Path, out: Path, columns: Sequence[str] = ()) -> str:
    """Write the configuration ``out`` for the data; returns the text to print. ``columns``: such as "answer=Result".

    Raises UsageError when ``out`` exists or the data cannot be read.
    """
    if out.exists():
        raise UsageError(f"{out} is there already: name another file with --out")
    outline = outline_of(data.absolute(), dict(_pair(text) for text in columns))
    source = outline.source
    tried = list(islice(read_source(source), _TRIED))
    bad = [f"row {row.number}: {'; '.join(row.problems)}" for row in tried if row.problems]
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in data.absolute().stem) or "run"
    folder = out.absolute().parent / "runs" / name
    write_text(out, run_toml(outline, name=name, folder=folder, rollout_python=rollout_python()))
    assert source.columns is not None
    shown = ", ".join(f"{role}: {names[0]}" for role, names in source.columns.model_dump().items() if names)
    lines = [f"{outline.rows} rows in {source.path}", f"columns: {shown}"]
    if source.images_folder is not None:
        lines.append(f"images: {source.images_folder}")
    lines += [f"note: {remark}" for remark in outline.remarks]
    lines += [f"of the first {len(tried)} rows {len(bad)} are bad, such as {bad[0]}"] if bad else []
    lines += [f"wrote {out}", f"next: sophia run {out} --only questions   (checks every question and image)"]
    return "\n".join(lines)


def _pair(text: str) -> tuple[str, str]:
    role, equals, name = text.partition("=")
    if not equals:
        raise UsageError(f"--column {text}: it needs ROLE=NAME, such as answer=Result")
    return role, name
