"""Read columns of a run's shards. Damaged shards are reported and skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sophia_mcore.config.schema import Config
from sophia_mcore.environments.terms import from_json, weighted
from sophia_mcore.errors import SophiaError
from sophia_mcore.records import Terms
from sophia_mcore.score.reward import Candidate
from sophia_mcore.store import json_files
from sophia_mcore.store.layout import RoundFolder
from sophia_mcore.store.shards import read_shard, read_table, shard_files
from sophia_mcore.track.metrics import read_metrics

Columns = dict[str, list[Any]]


class Problems:
    """Messages about unreadable files, each once, in order of discovery."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Note one problem."""
        if line not in self.lines:
            self.lines.append(line)


def columns(
    folder: Path,
    record_type: type,
    names: Sequence[str],
    problems: Problems,
    shorten: Callable[[str, str], str] | None = None,
) -> Columns:
    """The named columns of all whole shards of ``folder``, shard after shard; "tokens" counts token_ids.

    ``shorten(name, text)`` is applied to every text while it is read, so that long texts do not fill the memory.
    """
    found: Columns = {name: [] for name in names}
    stored = ["token_ids" if name == "tokens" else name for name in names]
    for shard in shard_files(folder) if folder.is_dir() else ():
        try:
            table = read_table(shard, record_type, columns=stored)
        except SophiaError as error:
            problems.add(str(error))
            continue
        for name in names:
            found[name] += _values(table, name, shorten)
    return found


def rewarded(
    config: Config, folder: RoundFolder, candidates: Iterable[Candidate], problems: Problems
) -> list[Candidate]:
    """The candidates with the totals of the reward's terms; those whose terms are not there yet are left out.

    Where the reward is the verdict alone, the candidates as they are.
    """
    if config.verdict_alone:
        return list(candidates)
    rows = columns(folder.terms, Terms, ["trajectory_id", "values", "broken"], problems)
    totals = {
        name: None if broken else weighted(from_json(values), config.reward_terms)
        for name, values, broken in zip(*rows.values(), strict=True)
    }
    return [replace(one, by_terms=True, total=totals[one.id]) for one in candidates if one.id in totals]


def _values(table: Any, name: str, shorten: Callable[[str, str], str] | None) -> list[Any]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if name == "tokens":
        return pc.list_value_length(table.column("token_ids")).to_pylist()
    column = table.column(name)
    if shorten is not None and column.type == pa.string():
        return [shorten(name, value.as_py()) for value in column]
    return column.to_pylist()


def records(path: Path, record_type: type, problems: Problems) -> list[Any]:
    """Records of one shard; [] if it is missing or damaged. Damage is added to ``problems``."""
    if not path.is_file():
        return []
    try:
        return read_shard(path, record_type)
    except SophiaError as error:
        problems.add(str(error))
        return []


def metrics(path: Path, problems: Problems) -> list[dict[str, Any]]:
    """Whole lines of a metrics file, [] if it is missing. Damaged lines are added to ``problems``."""
    lines = read_metrics(path)
    try:
        data = path.read_bytes()
    except OSError:
        return lines
    damaged = data.count(b"\n") - len(lines) + (b"\0" in data[data.rfind(b"\n") + 1 :])  # a torn last line is usual
    if damaged:
        problems.add(f"{path}: {damaged} lines are damaged")
    return lines


def read_json(
    path: Path, problems: Problems | None = None, kinds: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """The JSON object in ``path``, or None if it is missing or damaged. Damage is added to ``problems``.

    ``kinds``: expected types by key. Values of another type are dropped and reported. A file without any of these
    keys is reported too.
    """
    try:
        value = json_files.read_json(path)
    except SophiaError:
        if problems is not None:
            problems.add(f"{path} is damaged: not a JSON object")
        return None
    if value is None:
        return None
    kinds = kinds or {}
    wrong = [name for name, kind in kinds.items() if name in value and not _is(value[name], kind)]
    unusable = wrong or ([] if not kinds or value.keys() & kinds.keys() else list(kinds))
    if problems is not None and unusable:
        problems.add(f"{path} is damaged: no usable {', '.join(unusable)}")
    return {name: kept for name, kept in value.items() if name not in wrong}


def _is(value: Any, kind: Any) -> bool:
    try:
        TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError:
        return False
    return True
