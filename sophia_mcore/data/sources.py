"""Rows of a question source: `datasets` (hub name or local folder), Parquet files, JSON lines or CSV beside images."""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from sophia_mcore.config.schema import Source
from sophia_mcore.data.columns import Row, RowReader, source_name
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.pretrained.hub import hub_name
from sophia_mcore.store.encodings import encoding_of_file, not_text
from sophia_mcore.store.json_files import read_json
from sophia_mcore.store.json_lines import read_json_lines, read_json_list

_TABLES = (".arrow", ".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt")  # also of saved and local data sets
_SPREADSHEET_SEPARATOR = re.compile(r'"?sep=([^"\r\n])"?\r?\n?$', re.IGNORECASE)
_ROWS_TO_FIND_COLUMNS = 100  # JSON lines have no schema: the columns of the first rows count


def read_source(source: Source) -> Iterator[Row]:
    """Rows in the source's order, at most ``source.limit``, images not yet read.

    Raises UsageError for a missing file, split or column, SophiaError for a damaged file or an empty dataset.
    """
    if source.benchmark:
        raise UsageError(f"source {source_name(source)!r}: a benchmark is for evaluate.questions, not for training")
    readers = {"datasets": _read_datasets, "parquet": _read_parquet, "jsonl": _read_jsonl, "csv": _read_csv}
    count = 0
    for row in islice(readers[source.kind](source), source.limit):
        count += 1
        yield row
    if count == 0:
        raise SophiaError(f"source {source_name(source)!r} is empty: {source.path} holds no rows")


def on_the_hub(source: Source) -> bool:
    """Whether reading the source would ask the hub."""
    if source.kind == "benchmark":
        return not source.path or hub_name(Path(source.path)) is not None
    return source.kind == "datasets" and not (source.path and Path(source.path).exists())


def local_tables(source: Source) -> list[Path]:
    """The tables on this machine that the source is read from, sorted; [] for a data set of the hub.

    Other files of a folder, such as images, are not among them.
    """
    if not source.path:
        return []
    path = Path(source.path)
    return [path] if path.is_file() else _below(path, source.path, _TABLES)


def rows_as_they_are(source: Source) -> Iterator[dict[str, Any]]:
    """Rows of a file with all their columns, no column looked for; rows that are damaged are left out."""
    files = _files(source, (".csv", ".tsv", ".jsonl", ".json", ".parquet"))
    for path in files:
        if source.kind == "jsonl":
            yield from (item for item in _json_items(path) if isinstance(item, dict))
        elif source.kind == "parquet":
            import pyarrow.parquet as pq

            for batch in pq.ParquetFile(path).iter_batches(batch_size=64, use_threads=False):
                yield from batch.to_pylist()
        else:
            with _opened_table(path) as table:
                yield from (dict(row) for row in table if None not in row)


def _read_jsonl(source: Source) -> Iterator[Row]:
    files = _files(source, (".jsonl", ".json"))
    folder = source.images_folder or files[0].parent
    lines = ((number, item) for number, item in enumerate(item for file in files for item in _json_items(file)))
    head = list(islice(lines, _ROWS_TO_FIND_COLUMNS))
    if not head:
        return
    names = {name for _, item in head if isinstance(item, dict) for name in item}
    if not names:
        raise SophiaError(f"{files[0]}: no line of the first {len(head)} is a JSON object")
    reader = RowReader(source, names, folder)
    for number, item in _chain(head, lines):
        yield reader.row(number, item) if isinstance(item, dict) else reader.broken(number, str(item))


def _chain(head: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    yield from head
    yield from rest


def _json_items(file: Path) -> Iterator[dict[str, Any] | str]:
    """Objects of a .jsonl file, or of the one list in a .json file; a string says what is wrong with a line."""
    if file.suffix == ".json":
        yield from _json_list(file)
        return
    for number, item in read_json_lines(file):
        yield f"line {number} is {item}" if isinstance(item, str) else item


def _json_list(file: Path) -> Iterator[dict[str, Any] | str]:
    for number, item in enumerate(read_json_list(file)):
        yield f"line {number} is {item}" if isinstance(item, str) else item


def _read_csv(source: Source) -> Iterator[Row]:
    """Tables whose first line names the columns; an empty cell counts as absent.

    Cells are separated by commas, or by semicolons or tabs where the first line has more of those.
    """
    files = _files(source, (".csv", ".tsv"))
    folder = source.images_folder or files[0].parent
    number = 0
    for path in files:
        with _opened_table(path) as table:
            reader = RowReader(source, table.fieldnames or (), folder)
            for raw in table:
                if None in raw:
                    yield reader.broken(number, f"line {table.line_num} has more cells than the first line")
                else:
                    yield reader.row(number, {name: cell for name, cell in raw.items() if cell})
                number += 1


@contextmanager
def _opened_table(path: Path) -> Iterator[csv.DictReader[str]]:
    """The rows of a table. Raises SophiaError, also while they are read, for a file that is not one."""
    try:
        with open(path, encoding=encoding_of_file(path), newline="") as file:
            yield _table(file)
    except UnicodeError as error:
        raise SophiaError(f"cannot read {path}: {not_text(error)}") from error
    except (OSError, csv.Error) as error:
        raise SophiaError(f"cannot read {path}: not a table of comma-separated text ({error})") from error


def _table(file: TextIO) -> csv.DictReader[str]:
    first_line = file.readline()
    if not _SPREADSHEET_SEPARATOR.match(first_line):
        file.seek(0)
    return csv.DictReader(file, strict=True, delimiter=_separator(first_line))


def _separator(first_line: str) -> str:
    """The separator of a table, by its first line: the names of the columns, or "sep=;" as spreadsheets write.

    >>> _separator("id;image;question"), _separator("id,image,a;b"), _separator("id"), _separator("sep=|")
    (';', ',', ',', '|')
    """
    named = _SPREADSHEET_SEPARATOR.match(first_line)
    return named[1] if named else max(",;\t", key=first_line.count)


def _read_parquet(source: Source) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = _files(source, (".parquet",))
    folder = source.images_folder or files[0].parent
    number = 0
    for path in files:
        try:
            file = pq.ParquetFile(path)
            reader = RowReader(source, file.schema_arrow.names, folder)
            for batch in file.iter_batches(batch_size=64, columns=reader.top_level_columns(), use_threads=False):
                for raw in batch.to_pylist():
                    yield reader.row(number, raw)
                    number += 1
        except (OSError, pa.ArrowException) as error:
            raise SophiaError(f"cannot read {path}: damaged or unreadable ({str(error).splitlines()[0]})") from error


def _files(source: Source, suffixes: tuple[str, ...]) -> list[Path]:
    """The file, the files of a folder (and below), or those of a pattern such as ``data/*.parquet``."""
    path = Path(source.path)
    if path.is_file():
        return [path]
    files = _below(path, source.path, suffixes)
    if not files:
        what = f"no {' or '.join(suffixes)} file in" if path.is_dir() else "no such file or folder:"
        raise UsageError(f"source {source_name(source)!r}: {what} {source.path}")
    return files


def _below(path: Path, pattern: str, suffixes: tuple[str, ...]) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.suffix in suffixes and p.is_file() and p.name[0] != ".")
    return sorted(Path(name) for name in glob.glob(pattern) if os.path.isfile(name))


def _read_datasets(source: Source) -> Iterator[Row]:
    """Images stay the bytes they are: they are never decoded here."""
    folder = Path(source.path) if os.path.isdir(source.path) else None
    if folder is not None and (_saved_empty(folder) or _saved_empty(folder / source.split)):
        return
    dataset = _open_dataset(source, folder)
    features = dataset.features or {}
    names = list(features) or list(next(iter(dataset), {}))
    reader = RowReader(source, names, source.images_folder or folder)
    media_columns = [name for name in reader.top_level_columns() if _holds_media(features.get(name))]
    dataset = dataset.select_columns(reader.top_level_columns())
    for name in media_columns:
        dataset = dataset.cast_column(name, _undecoded(features[name]))
    trusted = _library_paths(media_columns)
    rows = enumerate(dataset)
    while True:
        try:
            number, raw = next(rows)
        except StopIteration:
            return
        except Exception as error:  # the library raises whatever its readers raise
            raise _failed(source, error) from error
        yield reader.row(number, trusted(raw))


def _library_paths(columns: list[str]) -> Any:
    """Image features name files that `datasets` found itself (an image folder, its cache), not paths from the data."""

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return [read(item) for item in value]
        if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
            try:
                return {"bytes": Path(value["path"]).read_bytes()}
            except OSError:
                return value  # reported like any other missing file
        return value

    return lambda raw: raw | {name: read(raw[name]) for name in columns if name in raw}


def _saved_empty(folder: Path) -> bool:
    """Whether `save_to_disk` saved no rows here; `datasets` cannot load that again."""
    return (read_json(folder / "state.json") or {"_data_files": True}).get("_data_files") == []


def _open_dataset(source: Source, folder: Path | None) -> Any:
    import datasets

    path = source.path
    if folder is None and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UsageError(f"source {source_name(source)!r}: no such folder: {path}")
    try:
        if folder is not None and (folder / "dataset_dict.json").is_file():
            parts = datasets.load_from_disk(path)
            if source.split not in parts:
                known = ", ".join(parts)
                raise UsageError(f"source {source_name(source)!r}: no split {source.split!r}; it has {known}")
            return parts[source.split]
        if folder is not None and (folder / "state.json").is_file():
            return datasets.load_from_disk(path)
        # A local folder is streamed, so that it is not copied into the cache first.
        return datasets.load_dataset(path, source.subset, split=source.split, streaming=folder is not None)
    except SophiaError:
        raise
    except Exception as error:  # the library raises many kinds: network, missing files, unknown split
        raise _failed(source, error) from error


def _failed(source: Source, error: Exception) -> SophiaError:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return SophiaError(f"source {source_name(source)!r}: cannot read dataset {source.path}: {reason}")


def _holds_media(feature: Any) -> bool:
    import datasets

    return isinstance(getattr(feature, "feature", feature), datasets.Image | datasets.Video)


def _undecoded(feature: Any) -> Any:
    import datasets

    inner = getattr(feature, "feature", None)
    return type(feature)(decode=False) if inner is None else datasets.List(type(inner)(decode=False))
