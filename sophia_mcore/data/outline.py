"""Look at somebody's data and write the TOML that reads it: which column is what, where the images are (`sophia init`).

Guesses are made from names first and from the values of the first rows second. What is written is read back by the
project's own readers before it is shown, so a guess that does not work is told at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Columns, Source
from sophia_mcore.data.sources import rows_as_they_are
from sophia_mcore.errors import UsageError
from sophia_mcore.pretrained.released import first_models

KINDS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
_ROWS = 100  # that are looked at
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_IMAGE_TEXTS = ("data:image/", "ivborw0", "/9j/")  # in lower case: how base64 of an image begins
_NAMES = {  # lower-case names of columns, the likeliest first, beside those that are read by default
    "images": ("image_url", "img", "img_path", "picture", "pictures", "photo", "filename", "file_name", "file", "path"),
    "question": ("prompt", "instruction", "text", "input"),
    "answer": ("gold", "target", "ground_truth", "gt", "correct_answer", "correct", "output", "response"),
    "answer_type": ("kind",),
    "options": ("option", "candidates"),
    "id": ("index", "uid", "question_id"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What was found: the source as its TOML section has it, and how many rows there are."""

    source: Source
    rows: int
    remarks: tuple[str, ...] = ()  # for the reader of the TOML, one line each


def outline_of(path: Path, named: Mapping[str, str] | None = None) -> Outline:
    """What the data at ``path`` looks like: a table, JSON lines, Parquet, or a folder with one of these.

    ``named``: role -> column, as the user has named them. Raises UsageError: nothing there, several candidates, no
    column for images, questions or answers, a named one that is missing.
    """
    file = _one_file(path)
    kind = KINDS[file.suffix.lower()]
    plain = Source(kind=kind, path=str(file))  # type: ignore[arg-type]
    rows = list(islice(rows_as_they_are(plain), _ROWS))
    if not rows:
        raise UsageError(f"{file}: no rows in it")
    columns = guess_columns(rows, file, named or {})
    folder, missing = _images_folder(rows, columns.images[0], file)
    remarks = []
    if folder is None and missing:
        remarks.append(f"no image of column {columns.images[0]!r} was found near {file.name}: set images_folder")
    elif missing:
        remarks.append(f"images of the first rows are missing: {', '.join(missing[:3])}")
    lettered = [name for name in "ABCDEFGH" if name in rows[0]]
    if not columns.options and lettered[:2] == ["A", "B"]:
        remarks.append(f"options in the columns {', '.join(lettered)} are not read: put them into one, 'red | green'")
    return Outline(
        source=Source(
            kind=kind,  # type: ignore[arg-type]
            path=str(file),
            images_folder=folder if folder not in (None, file.parent) else None,
            columns=columns,
        ),
        rows=len(rows) if len(rows) < _ROWS else sum(1 for _ in rows_as_they_are(plain)),
        remarks=tuple(remarks),
    )


def guess_columns(rows: Sequence[Mapping[str, Any]], file: Path, named: Mapping[str, str]) -> Columns:
    """Which column holds what, by the names and values of some rows. Raises UsageError for one that is missing."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    for role, name in named.items():
        if role not in Columns.model_fields or name not in names:
            raise UsageError(
                f"--column {role}={name}: a role is one of {', '.join(Columns.model_fields)}, "
                f"a column one of {', '.join(names)}"
            )
    values = {name: [row[name] for row in rows if row.get(name) not in (None, "")] for name in names}
    found = dict(named)
    for role in ("images", "options", "answer_type", "id", "question", "answer"):
        if role in found:
            continue
        wanted = (*getattr(Columns(), role), *_NAMES[role])
        by_name = {name.lower(): name for name in names if name not in found.values()}
        match = next((by_name[name] for name in wanted if name in by_name), None)
        if match is None:
            left = [name for name in names if name not in found.values()]
            match = _by_values(role, left, values)
        if match is not None:
            found[role] = match
    missing = [role for role in ("images", "question", "answer") if role not in found]
    if missing:
        raise UsageError(
            f"{file}: no column looks like {' or '.join(missing)}; it has {', '.join(names) or 'no columns'}; "
            f"name it with {' '.join(f'--column {role}=NAME' for role in missing)}"
        )
    return Columns(**{role: (found[role],) if role in found else () for role in Columns.model_fields})


def _by_values(role: str, names: Sequence[str], values: Mapping[str, Sequence[Any]]) -> str | None:
    """A column whose values look like the role's; None if none does."""
    if role == "images":
        return next((n for n in names if values[n] and all(map(_names_image, values[n]))), None)
    if role == "question":
        texts = [n for n in names if values[n] and all(isinstance(v, str) for v in values[n])]
        asking = [n for n in texts if sum("?" in v for v in values[n]) * 2 > len(values[n])]
        return asking[0] if asking else None
    if role == "answer" and len(names) == 1:
        return names[0]
    return None


def _names_image(value: Any) -> bool:
    if isinstance(value, (bytes, bytearray)):
        return True
    if isinstance(value, Mapping):
        return "bytes" in value or "path" in value
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_names_image, value))
    text = str(value).strip().lower()
    return text.endswith(_IMAGE_ENDINGS) or text.startswith(_IMAGE_TEXTS)


def _images_folder(rows: Sequence[Mapping[str, Any]], column: str, file: Path) -> tuple[Path | None, list[str]]:
    """The folder that most image paths start at: beside the file, or one or two folders below; None if nowhere.

    And those paths of the first rows that are missing there.
    """
    texts = [row[column] for row in rows if isinstance(row.get(column), str) and row[column]][:20]
    paths = [text for text in texts if not text.strip().lower().startswith(_IMAGE_TEXTS)]
    best: tuple[Path | None, list[str]] = None, paths
    for folder in (file.parent, *sorted(_folders_below(file.parent))):
        missing = [path for path in paths if not _is_file(folder, path)]
        if len(missing) < len(best[1]):
            best = folder, missing
    return best


def _is_file(folder: Path, path: str) -> bool:
    """Whether the path names a file below ``folder``, with the separators of Linux or of Windows."""
    try:
        return (folder / path).is_file() or (folder / path.replace("\\", "/")).is_file()
    except OSError:  # such as a text that is too long for a name
        return False


def _folders_below(folder: Path) -> Iterable[Path]:
    for child in folder.iterdir():
        if child.is_dir() and not child.name.startswith("."):
            yield child
            yield from (inner for inner in child.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def _one_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix.lower() not in KINDS:
            raise UsageError(f"{path}: not a kind of data that is read ({', '.join(KINDS)})")
        return path
    if not path.is_dir():
        raise UsageError(f"{path}: no such file or folder")
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in KINDS and p.is_file() and p.name[0] != ".")
    if not found:
        raise UsageError(f"{path}: no {', '.join(KINDS)} file in it")
    if len(found) > 1:
        names = ", ".join(p.name for p in found[:5])
        raise UsageError(f"{path}: {len(found)} files may hold the questions ({names}); name one of them")
    return found[0]


def run_toml(outline: Outline, *, name: str, folder: Path, rollout_python: Path | None) -> str:
    """A short commented TOML of a run over the data. Work units are small enough that a kill costs an eighth."""
    policy, reasoner = first_models()
    source = outline.source
    lines = [
        f"# Made by `sophia init` from {outline.rows} rows. `sophia check --explain KEY` explains a setting.",
        *(f"# NOTE: {remark}" for remark in outline.remarks),
        "",
        "[run]",
        f"name = {_text(name)}",
        f"folder = {_text(folder)}",
        "",
        "[models] # folders of Hugging Face models, or names on the hub",
        f'policy = "{policy}"',
        f'reasoner = "{reasoner}" # text only; a strong one makes better trajectories',
        "",
        "[environments]",
        f"rollout = {_text(rollout_python)}" if rollout_python else '# rollout = "/path/to/.venv-vllm/bin/python"',
        "",
        "[[data.questions]]",
        f'kind = "{source.kind}"',
        f"path = {_text(source.path)}",
    ]
    if source.images_folder is not None:
        lines.append(f"images_folder = {_text(source.images_folder)} # image paths start here")
    assert source.columns is not None
    used = {role: names for role, names in source.columns.model_dump().items() if names != getattr(Columns(), role)}
    pairs = ", ".join(f"{role} = {json.dumps(list(names), ensure_ascii=False)}" for role, names in used.items())
    lines += [f"columns = {{ {pairs} }}"] if pairs else []
    unit = max(1, outline.rows // 8)
    lines += [
        "",
        "[captions]",
        f"images_per_unit = {min(64, unit)} # of one work unit: what a kill costs",
        "",
        "[reasoning]",
        f"questions_per_unit = {min(32, unit)}",
        "",
        "[track]",
        "enabled = false # true: MLflow",
        "",
    ]
    return "\n".join(lines)


def _text(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)
