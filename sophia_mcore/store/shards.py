"""Parquet shards. A shard is written once and atomically; every read checks a hash of its content.

A shard is an ordinary Parquet file (zstd), so ``datasets.load_dataset("parquet", data_files=...)`` reads it too.
Its key-value metadata holds ``sophia.sha256`` (over the column data, the record type, the row count and the caller's
metadata), ``sophia.record_type``, ``sophia.rows`` and ``sophia.metadata`` (JSON: lineage and the caller's values).
The footer has its own hash: 32 bytes between the column data and the footer, where Parquet readers do not look.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from sophia_mcore.errors import SophiaError
from sophia_mcore.store import atomic
from sophia_mcore.store.schema import from_table, schema_of, to_table

Record = TypeVar("Record")
_ROWS_PER_GROUP = 1024
_MAGIC = b"PAR1"
_SEAL_BYTES = 32


def write_shard(
    path: Path | str, records: Sequence[Any], record_type: type, metadata: Mapping[str, Any] | None = None
) -> str:
    """Write ``records`` as one Parquet file, atomically.

    Returns the sha256 of the content. Equal records and metadata give equal files and hashes.
    Raises FileExistsError when another writer was first: a finished shard is never replaced.
    Raises SophiaError when the disk is full, the folder cannot be written, or a record does not fit its type.
    """
    text = json.dumps(dict(metadata or {}), sort_keys=True)
    with atomic.creating(path) as file:
        sink = _HashingFile(file)
        try:
            with open_writer(sink, record_type) as writer:
                for start in range(0, len(records), _ROWS_PER_GROUP):
                    writer.write_table(to_table(records[start : start + _ROWS_PER_GROUP], record_type))
                digest = _seal(sink.sha256, record_type.__name__, len(records), text)
                writer.add_key_value_metadata(
                    {
                        "sophia.sha256": digest,
                        "sophia.record_type": record_type.__name__,
                        "sophia.rows": str(len(records)),
                        "sophia.metadata": text,
                    }
                )
                sink.hold()
            sink.release_footer()
        except (ValueError, pa.ArrowException) as error:
            raise SophiaError(f"cannot write {path}: {error}") from error
    return digest


def open_writer(sink: Any, record_type: type) -> pq.ParquetWriter:
    """pyarrow's writer with the encodings of shards.

    zstd compresses repeated digests well; numbers are split into byte planes first, which halves their size.
    """
    schema = schema_of(record_type)
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
        column_encoding=dict.fromkeys(_numeric_columns(schema), "BYTE_STREAM_SPLIT"),
    )


def _numeric_columns(schema: pa.Schema) -> list[str]:
    names = []
    for field in schema:
        is_list = pa.types.is_list(field.type)
        kind = field.type.value_type if is_list else field.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            names.append(f"{field.name}.list.element" if is_list else field.name)
    return names


class _HashingFile:
    """Writes and hashes the column data. Holds the footer back, so that the footer's hash can be written before it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.closed = False
        self._position = 0
        self._footer: list[bytes] | None = None

    def write(self, data: Any) -> int:
        self._position += len(data)
        if self._footer is None:
            self.sha256.update(data)
            self._file.write(data)
        else:
            self._footer.append(bytes(data))
        return len(data)

    def hold(self) -> None:
        """Treat all later writes as the footer."""
        self._footer = []

    def release_footer(self) -> None:
        footer = b"".join(self._footer or [])
        self._file.write(hashlib.sha256(footer).digest() + footer)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True  # the file itself is closed by its owner


def _seal(sha256: Any, type_name: str, rows: int, metadata: str) -> str:
    sealed = sha256.copy()
    sealed.update(json.dumps([type_name, rows, metadata]).encode())
    return sealed.hexdigest()


def read_table(path: Path | str, record_type: type, columns: Sequence[str] | None = None) -> pa.Table:
    """Columns of a shard as an Arrow table. ``columns`` (default all) limits what is decoded; all bytes are verified.

    A field with a default may be missing in a shard of an older version: the column then holds the default.
    Raises SophiaError with the file's name when it is missing, truncated, damaged or holds another type of record.
    """
    return _read(path, record_type, columns)


def read_shard(path: Path | str, record_type: type[Record], ids: Collection[str] | None = None) -> list[Record]:
    """Records of a shard, in the order they were written; with ``ids`` only those of these ids.

    A record of a thousand tokens takes several times as long to make as to read. Raises like ``read_table``.
    """
    table = read_table(path, record_type)
    if ids is not None:
        table = table.filter(pa.array([name in ids for name in table.column("id").to_pylist()], pa.bool_()))
    return from_table(table, record_type)


def read_metadata(path: Path | str) -> dict[str, Any]:
    """``metadata`` as given to ``write_shard``, ``sha256``, ``record_type`` and ``rows``. Only the footer is read."""
    try:
        values = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    return _parse_metadata(path, values)


def read_folder(folder: Path | str, record_type: type[Record], ids: Collection[str] | None = None) -> Iterator[Record]:
    """Records of all finished shards of a folder, shard by shard in the order of their names; ``ids`` as above.

    Temporary files of killed writers are skipped. Raises SophiaError when the folder is missing, and like
    ``read_table`` for a damaged shard.
    """
    for path in shard_files(folder):
        yield from read_shard(path, record_type, ids)


def read_values(folder: Path | str, record_type: type, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of ``columns`` of each record that ``read_folder`` gives. Raises like it."""
    for path in shard_files(folder):
        table = read_table(path, record_type, columns)
        yield from zip(*(table.column(name).to_pylist() for name in columns), strict=True)


def unit_shard(folder: Path, unit_id: str) -> Path:
    """Path of the shard with the records of a work unit."""
    return folder / f"{unit_id}.parquet"


def shard_files(folder: Path | str) -> list[Path]:
    """Finished shards of a folder, sorted by name. Raises SophiaError when the folder is missing."""
    if not Path(folder).is_dir():
        raise SophiaError(f"no such folder: {folder}")
    return sorted(path for path in Path(folder).glob("*.parquet") if not path.name.startswith("."))


def _read(path: Path | str, record_type: type, columns: Sequence[str] | None) -> pa.Table:
    if not Path(path).is_file():
        raise SophiaError(f"no such file: {path}")
    try:
        with pa.memory_map(str(path)) as source:
            buffer = source.read_buffer()
        body = _verified_body(path, memoryview(buffer))
        file = pq.ParquetFile(pa.BufferReader(buffer))
        _verify(path, body, _parse_metadata(path, file.metadata.metadata or {}), record_type)
        wanted = list(columns) if columns is not None else [f.name for f in dataclasses.fields(record_type)]
        stored = [name for name in wanted if name in file.schema_arrow.names]
        defaults = _defaults(path, record_type, set(wanted) - set(stored))
        table = file.read(columns=stored, use_threads=False)
        for name, value in defaults.items():
            table = table.append_column(schema_of(record_type).field(name), pa.repeat(value, file.metadata.num_rows))
        return table
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _defaults(path: Path | str, record_type: type, missing: set[str]) -> dict[str, Any]:
    found = {f.name: f.default for f in dataclasses.fields(record_type) if isinstance(f.default, str | int | float)}
    unknown = missing - found.keys()
    if unknown:
        raise SophiaError(f"{path} has no column {', '.join(sorted(unknown))}: another version wrote it")
    return {name: found[name] for name in sorted(missing)}


def _verified_body(path: Path | str, data: memoryview) -> memoryview:
    """Check the footer against its hash, before anything is parsed; returns the column data."""
    size = len(data)
    if size < 12 or bytes(data[:4]) != _MAGIC or bytes(data[-4:]) != _MAGIC:
        raise SophiaError(f"{path} is truncated or not a Parquet file ({size} bytes)")
    footer_start = size - 8 - int.from_bytes(data[-8:-4], "little")
    body_end = footer_start - _SEAL_BYTES
    if body_end < 4:
        raise SophiaError(f"{path} is truncated or not written by sophia ({size} bytes)")
    footer = bytes(data[footer_start:])
    if hashlib.sha256(footer).digest() != bytes(data[body_end:footer_start]):
        known = b"sophia.sha256" in footer
        raise SophiaError(f"{path} is damaged: wrong hash of its footer" if known else _foreign(path))
    return data[:body_end]


def _verify(path: Path | str, body: memoryview, values: dict[str, Any], record_type: type) -> None:
    if values["record_type"] != record_type.__name__:
        raise SophiaError(f"{path} holds {values['record_type']} records, not {record_type.__name__}")
    metadata = json.dumps(values["metadata"], sort_keys=True)
    digest = _seal(hashlib.sha256(body), values["record_type"], values["rows"], metadata)
    if digest != values["sha256"]:
        raise SophiaError(f"{path} is damaged: its content does not match its sha256 {values['sha256'][:16]}")


def _foreign(path: Path | str) -> str:
    return f"{path} was not written by sophia: it has no content hash"


def _parse_metadata(path: Path | str, values: Mapping[bytes, bytes]) -> dict[str, Any]:
    try:
        return {
            "metadata": json.loads(values[b"sophia.metadata"]),
            "record_type": values[b"sophia.record_type"].decode(),
            "rows": int(values[b"sophia.rows"]),
            "sha256": values[b"sophia.sha256"].decode(),
        }
    except KeyError:
        raise SophiaError(_foreign(path)) from None
    except ValueError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path | str, error: Exception) -> SophiaError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return SophiaError(f"cannot read {path}: damaged or unreadable ({reason})")
