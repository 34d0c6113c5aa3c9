"""Raw rows of a benchmark's files: the hub's Parquet and JSON, or VLMEvalKit's table (TSV with base64 images)."""

from __future__ import annotations

import csv
import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sophia_mcore.benchmarks.table import Benchmark
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.store.encodings import encoding_of_file, not_text
from sophia_mcore.store.json_lines import read_json_lines, read_json_list

_CELL_LIMIT = 1 << 30  # characters: a cell of a table holds whole images
_SUFFIXES = (".parquet", ".json", ".jsonl", ".tsv")
_SHORTEST_IMAGE = 65  # characters: a shorter image cell is the index of the row whose image is meant


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as its file has it. ``cells`` has two more values: "file" and "folder", the names of where it lies."""

    cells: dict[str, Any]
    layout: str  # "hub" or "tsv"
    folder: Path  # image paths are relative to it


def read_raw(benchmark: Benchmark, path: str) -> Iterator[RawRow]:
    """All rows of the benchmark at ``path``: a table, a Parquet or JSON file, or a folder that is a copy of the hub's.

    An empty path, or the name of a repository, is fetched from the hub. Raises UsageError when nothing is found there,
    SophiaError for a damaged file.
    """
    for file in _files(benchmark, _local(benchmark, path)):
        reader = {".parquet": _parquet, ".tsv": _tsv, ".json": _json, ".jsonl": _jsonl}[file.suffix]
        layout = "tsv" if file.suffix == ".tsv" else "hub"
        folder = file.parent / benchmark.image_folder if benchmark.image_folder else file.parent
        for cells in reader(file):
            yield RawRow(cells | {"file": file.name, "folder": file.parent.name}, layout, folder)


def _local(benchmark: Benchmark, path: str) -> Path:
    if path and Path(path).exists():
        return Path(path)
    if path and (path.startswith((".", "/", "~")) or path.count("/") != 1):
        raise UsageError(f"benchmark {benchmark.name}: no such file or folder: {path}")
    repository = path or benchmark.repository
    try:
        from huggingface_hub import snapshot_download

        wanted = [*benchmark.files, *([f"{benchmark.image_folder}/*"] if benchmark.image_folder else [])]
        patterns = [f"{below}{pattern}" for pattern in wanted for below in ("", "*/")]
        return Path(snapshot_download(repository, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # the library raises many kinds: no network, no such repository, no permission
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        told = f"benchmark {benchmark.name}: cannot fetch {repository} from the hub: {reason}"
        raise SophiaError(f"{told}; name a copy that is here: --on {benchmark.name}=PATH") from error


def _files(benchmark: Benchmark, path: Path) -> list[Path]:
    """The file itself, or the files of a folder that the benchmark's patterns name, or its table, or the only table."""
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise UsageError(f"benchmark {benchmark.name}: {path}: not one of {', '.join(_SUFFIXES)}")
        return [path]
    there = [file for file in path.absolute().rglob("*") if file.suffix in _SUFFIXES and file.is_file()]
    there = [file for file in there if not any(part[0] == "." for part in file.relative_to(path.absolute()).parts)]
    found = [file for file in there if any(fnmatch.fnmatch(file.as_posix(), f"*/{one}") for one in benchmark.files)]
    tables = [file for file in there if file.suffix == ".tsv"]
    tables = [file for file in tables if file.stem == benchmark.vlmevalkit] or tables
    if found or len(tables) == 1:
        return sorted(found or tables, key=_natural)
    listed = ", ".join(sorted(file.name for file in there)[:4]) or "no Parquet, JSON or TSV file"
    raise UsageError(
        f"benchmark {benchmark.name}: {path} has none of {', '.join(benchmark.files)} (it has {listed}): "
        "name the file itself"
    )


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sorts sample_variant2 before sample_variant10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.as_posix())]


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=64, use_threads=False):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise SophiaError(f"cannot read {file}: damaged or unreadable ({str(error).splitlines()[0]})") from error


def _json(file: Path) -> Iterator[dict[str, Any]]:
    yield from _objects(file, enumerate(read_json_list(file)))


def _jsonl(file: Path) -> Iterator[dict[str, Any]]:
    yield from _objects(file, read_json_lines(file))


def _objects(file: Path, items: Iterable[tuple[int, dict[str, Any] | str]]) -> Iterator[dict[str, Any]]:
    for number, item in items:
        if isinstance(item, str):
            raise SophiaError(f"{file}: entry {number} is {item}")
        yield item


def _tsv(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of VLMEvalKit's table. An image cell that is short names the row whose image it is."""
    rows = read_table(file)
    for column in ("image", "image_path"):
        images: dict[str, str] = {}
        for row in rows:
            images.setdefault(row.get("index", ""), row.get(column, ""))  # a second row of an index is bad
        for row in rows:
            image = row.get(column, "")
            if image and len(image) < _SHORTEST_IMAGE and image in images:
                row[column] = images[image]
    yield from rows


def read_table(file: Path) -> list[dict[str, str]]:
    """Rows of a tab-separated table with a heading. Raises SophiaError when it is not one."""
    before = csv.field_size_limit(_CELL_LIMIT)
    try:
        with open(file, encoding=encoding_of_file(file), newline="") as text:
            table = csv.DictReader(text, delimiter="\t", strict=True)
            rows = list(table)
    except UnicodeError as error:
        raise SophiaError(f"cannot read {file}: {not_text(error)}") from error
    except (OSError, csv.Error) as error:
        raise SophiaError(f"cannot read {file}: not a tab-separated table ({error})") from error
    finally:
        csv.field_size_limit(before)
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise SophiaError(f"{file}: row {number} has another number of cells than the heading")
    return rows
