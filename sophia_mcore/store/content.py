"""Digests of the inputs and results of phases, cheap enough to compute at every start and in every `sophia status`.

Results store a hash of their own content: shards in their footer, checkpoints and exports in their manifest. The digest
of a model folder, or of a large file, covers its sizes and samples of its bytes. Tables of questions are read whole up
to a larger size: whoever mends one answer changes neither their size nor, most likely, a sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sophia_mcore.errors import SophiaError
from sophia_mcore.store.layout import CHECKPOINT, CONVERSION, checkpoint_steps
from sophia_mcore.store.lineage import model_files
from sophia_mcore.store.shards import read_metadata, shard_files

_MANIFESTS = (CONVERSION, CHECKPOINT)
_WHOLE_BYTES = 8 << 20  # a file up to this size is read whole
_SAMPLES, _SAMPLE_BYTES = 32, 64 << 10
_WHOLE_TABLES_BYTES = 256 << 20  # tables of one source that have this size together are read whole
_SAMPLED_TABLES = 64  # of larger ones, so many files are sampled


@dataclass(frozen=True)
class Tables:
    """The files of a source of questions. ``path``: how the settings name them: a file, a folder or a pattern."""

    path: str
    files: tuple[Path, ...]


class Contents:
    """Computes digests of paths (sha256, 64 hex digits) and keeps each for the life of this object."""

    def __init__(self) -> None:
        self._results: dict[Path, str | None] = {}
        self._given: dict[Path, str | None] = {}

    def result(self, path: Path) -> str | None:
        """Digest of a phase's result: a shard, a folder of shards, checkpoints or an export. None if it is missing."""
        if path not in self._results:
            self._results[path] = _result(path)
        return self._results[path]

    def given(self, path: Path) -> str | None:
        """Digest of a user's input: a file or a model folder. None for other folders and for unreadable paths."""
        if path not in self._given:
            try:
                self._given[path] = _given(path)
            except OSError:
                self._given[path] = None
        return self._given[path]

    def tables(self, tables: Tables) -> str | None:
        """Digest of a source's tables. None if there is none, or only one that ``given`` reads whole, or on errors."""
        try:
            sizes = [file.stat().st_size for file in tables.files]
            if not sizes or (tables.files == (Path(tables.path),) and sizes[0] <= _WHOLE_BYTES):
                return None
            return _tables(tables.files, sizes)
        except OSError:
            return None

    def forget(self) -> None:
        """Drop the digests of results, because results have changed."""
        self._results.clear()


def _result(path: Path) -> str | None:
    try:
        if path.is_file():
            return _shards([path]) if path.suffix == ".parquet" else _joined([_file(path)])
        if not path.is_dir():
            return None
        for manifest in _MANIFESTS:
            if (path / manifest).is_file():
                return _joined([_file(path / manifest)])
        steps = list(checkpoint_steps(path).values())
        if steps:
            return _result(steps[-1]) or _joined([steps[-1].name])
        shards = shard_files(path)
        return _shards(shards) if shards else None
    except OSError:
        return None


def _shards(paths: Iterable[Path]) -> str:
    lines = []
    for path in paths:
        try:
            lines.append(f"{path.name} {read_metadata(path)['sha256']}")
        except SophiaError:  # damaged, or not written by sophia
            lines.append(f"{path.name} {_file(path)}")
    return _joined(lines)


def _given(path: Path) -> str | None:
    if path.is_file():
        return _joined([_file(path)])
    if not (path / "config.json").is_file():
        return None
    return _joined(f"{file.name} {_file(file)}" for file in model_files(path))


def _tables(files: Sequence[Path], sizes: Sequence[int]) -> str:
    lines = [f"{file.name} {size}" for file, size in zip(files, sizes, strict=True)]
    whole = sum(sizes) <= _WHOLE_TABLES_BYTES
    read = files if whole else files[:: -(-len(files) // _SAMPLED_TABLES)]
    return _joined([*lines, *(_whole_file(file) if whole else _file(file) for file in read)])


def _whole_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file(path: Path) -> str:
    """Digest of the file's size and bytes. Of a large file only evenly spaced samples, with both ends, are read."""
    running = hashlib.sha256()
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        running.update(str(size).encode())
        whole = size <= _WHOLE_BYTES
        places = [0] if whole else [i * (size - _SAMPLE_BYTES) // (_SAMPLES - 1) for i in range(_SAMPLES)]
        for place in places:
            file.seek(place)
            running.update(file.read(size if whole else _SAMPLE_BYTES))
    return running.hexdigest()


def _joined(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
