"""Raw rows of a benchmark's files: the hub's Parquet, the authors' JSON, or VLMEvalKit's table (TSV, base64 images)."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sophia_mcore.benchmarks.table import Authors, Benchmark
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.pretrained.hub import hub_name
from sophia_mcore.store.encodings import encoding_of_file, not_text
from sophia_mcore.store.json_lines import read_json_lines, read_json_list, read_json_value

_CELL_LIMIT = 1 << 30  # characters: a cell of a table holds whole images
_SUFFIXES = (".parquet", ".json", ".jsonl", ".tsv")
_SHORTEST_IMAGE = 65  # characters: a shorter image cell is the index of the row whose image is meant


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as its file has it. ``cells`` has one more value: "place", the folder and the name of its file ("a/b")."""

    cells: dict[str, Any]
    layout: str  # "hub", "tsv" or "authors"
    folders: tuple[Path, ...]  # image paths are relative to the first that has the image


def read_raw(benchmark: Benchmark, path: str) -> Iterator[RawRow]:
    """All rows of the benchmark at ``path``: a table, a Parquet or JSON file, or a folder that is a copy of the hub's.

    An empty path, or the name of a repository, is fetched from the hub. Raises UsageError when nothing is found there,
    SophiaError for a damaged file.
    """
    local = _local(benchmark, path)
    for file in _files(benchmark, local):
        folders = _image_folders(benchmark, local, file)
        for cells in _cells(benchmark, file):
            layout = _layout(benchmark, file, cells)
            if layout == "authors" and benchmark.authors and benchmark.authors.image_tag:
                cells = _tagged(benchmark.authors, cells, folders)
            yield RawRow(cells | {"place": f"{file.parent.name}/{file.name}"}, layout, folders)


def _layout(benchmark: Benchmark, file: Path, cells: dict[str, Any]) -> str:
    """The authors' layout is JSON without the hub's columns of images."""
    if file.suffix == ".tsv":
        return "tsv"
    named = file.suffix == ".parquet" or any(column in cells for column in benchmark.hub["images"])
    return "hub" if named or benchmark.authors is None else "authors"


def _image_folders(benchmark: Benchmark, path: Path, file: Path) -> tuple[Path, ...]:
    """Where the image paths of a file may begin; never above the folder that the user named."""
    if file.suffix == ".tsv" or benchmark.authors is None:
        return (file.parent,)
    top = os.path.abspath(path) if path.is_dir() else os.path.abspath(file.parent.parent)
    folders = [os.path.normpath(file.absolute().parent / one) for one in benchmark.authors.folders]
    return tuple(Path(one) for one in folders if os.path.commonpath([top, one]) == top) or (file.parent,)


def _cells(benchmark: Benchmark, file: Path) -> Iterator[dict[str, Any]]:
    if file.suffix != ".json":
        yield from {".parquet": _parquet, ".tsv": _tsv, ".jsonl": _jsonl}[file.suffix](file)
        return
    authors = benchmark.authors or Authors(())
    rows = list(_objects(file, enumerate(read_json_list(file, authors.key))))
    for column, name in authors.beside.items():
        if any(column not in row for row in rows):
            _join(file, rows, authors.key, column, file.with_name(name))
    if authors.filled:
        _fill(rows, **authors.filled)
    yield from rows


def _join(file: Path, rows: list[dict[str, Any]], key: str, column: str, other: Path) -> None:
    """Puts the values of another file, an object, into the rows of ``file``. Raises SophiaError when one is missing."""
    if not other.is_file():
        raise SophiaError(f"{file} has no {column!r}, and {other.name} is not beside it: the authors keep them there")
    values = read_json_value(other)
    for row in rows:
        if column not in row:
            found = values.get(row[key]) if isinstance(values, dict) else None
            if not isinstance(found, str):
                raise SophiaError(f"{other} has no text {row[key]!r}, which {file} needs")
            row[column] = found


def _fill(rows: list[dict[str, Any]], column: str, of: str, same: str, where: dict[str, str]) -> None:
    """Where no row has ``column``, it is ``of`` of the row that ``where`` describes and whose ``same`` is equal."""
    if any(column in row for row in rows):
        return
    texts = {row.get(same): row.get(of) for row in rows if all(row.get(key) == value for key, value in where.items())}
    for row in rows:
        row[column] = texts.get(row.get(same), "")


def _tagged(authors: Authors, cells: dict[str, Any], folders: Iterable[Path]) -> dict[str, Any]:
    """Images that the text alone names become the column "images"; "<image_k>" stands where image k is named."""
    texts = {column: cells[column] for column in authors.tagged if isinstance(cells.get(column), str)}
    names = list(dict.fromkeys(re.findall(authors.image_tag, "\n".join(texts.values()))))

    def place(tag: re.Match[str]) -> str:
        return f"<image_{names.index(tag[1]) + 1}>"

    placed = {column: re.sub(authors.image_tag, place, text) for column, text in texts.items()}
    return cells | placed | {"images": [_file_of(authors, name, folders) for name in names]}


def _file_of(authors: Authors, name: str, folders: Iterable[Path]) -> str:
    files = [pattern.format(name) for pattern in authors.image_files]
    there = (file for file in files if any((folder / file).is_file() for folder in folders))
    return next(there, files[0])


def _local(benchmark: Benchmark, path: str) -> Path:
    if path and Path(path).exists():
        return Path(path)
    if path and hub_name(Path(path)) is None:
        raise UsageError(f"benchmark {benchmark.name}: no such file or folder: {path}")
    repository = path or benchmark.repository
    try:
        from huggingface_hub import snapshot_download

        wanted = list(benchmark.files)
        if benchmark.hub_is_authors and benchmark.authors:
            wanted += [*benchmark.authors.files, *(f"{one}/*" for one in benchmark.authors.folders if one[0] != ".")]
        patterns = [f"{below}{pattern}" for pattern in wanted for below in ("", "*/")]
        return Path(snapshot_download(repository, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # the library raises many kinds: no network, no such repository, no permission
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        told = f"benchmark {benchmark.name}: cannot fetch {repository} from the hub: {reason}"
        raise SophiaError(f"{told}; name a copy that is here: --on {benchmark.name}=PATH") from error


def _files(benchmark: Benchmark, path: Path) -> list[Path]:
    """The file itself; or of a folder: the hub's files, or the authors', or the benchmark's table, or the only one."""
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise UsageError(f"benchmark {benchmark.name}: {path}: not one of {', '.join(_SUFFIXES)}")
        return [path]
    there = [file for file in path.absolute().rglob("*") if file.suffix in _SUFFIXES and file.is_file()]
    there = [file for file in there if not any(part[0] == "." for part in file.relative_to(path.absolute()).parts)]
    found = [file for file in there if any(file.match(one) for one in benchmark.files)]
    for pattern in benchmark.authors.files if benchmark.authors else ():
        found = found or [file for file in there if file.match(pattern)]
    tables = [file for file in there if file.suffix == ".tsv"]
    tables = [file for file in tables if file.stem == benchmark.vlmevalkit] or tables
    if found or len(tables) == 1:
        return sorted(found or tables, key=_natural)
    wanted = [*benchmark.files, *(benchmark.authors.files if benchmark.authors else ())]
    listed = ", ".join(sorted(file.name for file in there)[:4]) or "no Parquet, JSON or TSV file"
    raise UsageError(
        f"benchmark {benchmark.name}: {path} has none of {', '.join(wanted)} (it has {listed}): name the file itself"
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
