"""Finds the tensors of a safetensors folder in its files without loading them, and makes headers of new files.

Format: https://huggingface.co/docs/safetensors - 8 bytes little-endian header length, a JSON header, then the data.
A truncated file, overlapping or uncovered data, an unknown dtype or a missing shard raises a `SophiaError` that names
the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.complete import INDEX_NAME, MAX_HEADER_BYTES

SINGLE_NAME = "model.safetensors"
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
WEIGHT_DTYPES = ("BF16", "F16", "F32")  # dtypes of weights that are not quantized


@dataclass(frozen=True, slots=True)
class FileState:
    """State of a source file when its header was read, to notice changes during the copy."""

    path: Path
    size: int
    modified_ns: int
    inode: int

    @classmethod
    def from_file(cls, path: Path) -> FileState:
        """State of the file now. Raises SophiaError when it cannot be read."""
        try:
            stat = path.stat()
        except OSError as error:
            raise SophiaError(f"cannot read {path}: {error.strerror}") from error
        return cls(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)

    def check(self) -> None:
        """Raise SophiaError if the file has changed."""
        if FileState.from_file(self.path) != self:
            raise SophiaError(f"{self.path} changed while it was read; nothing was kept, run again when it is complete")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One contiguous tensor in a file. ``dtype``: safetensors' name. ``offset``: bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class TensorFolder:
    """All tensors of a model folder, by name, and the files that hold them."""

    tensors: dict[str, StoredTensor]
    files: tuple[FileState, ...]


def open_folder(folder: Path) -> TensorFolder:
    """Find every tensor of a model folder, in `model.safetensors` or in the shards that the index names.

    Raises:
        SophiaError: no weights, a missing shard, a truncated or corrupt file, a key that appears twice, or an index
            that does not agree with the shards.
    """
    index_file = folder / INDEX_NAME
    if index_file.exists():
        return _open_sharded(folder, index_file)
    single = folder / SINGLE_NAME
    if not single.exists():
        others = sorted(p.name for p in folder.glob("*.safetensors")) if folder.is_dir() else []
        found = f"; found {', '.join(others[:3])}" if others else ""
        raise SophiaError(f"no weights in {folder}: neither {SINGLE_NAME} nor {INDEX_NAME}{found}")
    state, tensors = read_header(single)
    return TensorFolder({t.name: t for t in tensors}, (state,))


def _open_sharded(folder: Path, index_file: Path) -> TensorFolder:
    try:
        weight_map = json.loads(index_file.read_text())["weight_map"]
        shards = sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise SophiaError(f"{index_file} is not a weights index: {error!r}") from error
    if bad := [name for name in shards if not name or Path(name).name != name]:
        raise SophiaError(f"{index_file} names no file of its folder: {bad[0]!r}")
    if missing := [name for name in shards if not (folder / name).exists()]:
        raise SophiaError(f"{folder} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing[:5])}")
    tensors: dict[str, StoredTensor] = {}
    files = []
    for shard in shards:
        state, found = read_header(folder / shard)
        files.append(state)
        for tensor in found:
            if weight_map.get(tensor.name) != shard:
                raise SophiaError(f"{folder / shard} holds {tensor.name}, which {INDEX_NAME} does not place there")
            tensors[tensor.name] = tensor
    if lost := sorted(set(weight_map) - set(tensors)):
        raise SophiaError(f"{index_file} names tensors that no shard holds: {', '.join(lost[:5])} ({len(lost)} in all)")
    return TensorFolder(tensors, tuple(files))


def read_header(path: Path) -> tuple[FileState, list[StoredTensor]]:
    """Tensors of one safetensors file in the order of their data.

    Raises:
        SophiaError: the file is truncated, or its header is not valid.
    """
    state = FileState.from_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(8)
            length = int.from_bytes(head, "little")
            if len(head) < 8 or length > MAX_HEADER_BYTES or 8 + length > state.size:
                raise SophiaError(f"{path} is truncated or not a safetensors file ({state.size} bytes)")
            text = file.read(length)
    except OSError as error:
        raise SophiaError(f"cannot read {path}: {error.strerror}") from error
    try:
        header = json.loads(text)
        entries = {str(k): v for k, v in header.items() if k != "__metadata__"}
        tensors = [_tensor(path, 8 + length, name, entry) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SophiaError(f"{path}: corrupt safetensors header ({error})") from error
    tensors.sort(key=lambda t: (t.offset, t.nbytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            raise SophiaError(f"{path}: corrupt safetensors header (data of {tensor.name} overlaps or leaves a hole)")
        end += tensor.nbytes
    if end != state.size:
        what = "truncated" if end > state.size else "too long"
        raise SophiaError(f"{path} is {what}: {state.size} bytes, its header describes {end}")
    return state, tensors


def _tensor(path: Path, data_start: int, name: str, entry: Mapping[str, Any]) -> StoredTensor:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"{name} has unknown dtype {dtype!r}")
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)):
        raise ValueError(f"{name} has a negative or fractional size")
    tensor = StoredTensor(name, dtype, shape, path, data_start + start)
    if tensor.nbytes != end - start:
        raise ValueError(f"{name} has {end - start} bytes, its shape {list(shape)} needs {tensor.nbytes}")
    return tensor


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def plan_files(parts: Sequence[Sequence[NewTensor]], max_bytes: int) -> list[tuple[str, list[NewTensor]]]:
    """(file name, tensors) of each file. A new file begins when the next tensor would exceed ``max_bytes``.

    Tensors of different ``parts`` are never in the same file.
    """
    shards: list[list[NewTensor]] = []
    for part in parts:
        used = None  # no file of this part yet
        for tensor in part:
            if used is None or used + tensor.nbytes > max_bytes:
                shards.append([])
                used = 0
            shards[-1].append(tensor)
            used += tensor.nbytes
    if len(shards) == 1:
        return [(SINGLE_NAME, shards[0])]
    return [(f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors", shard) for i, shard in enumerate(shards)]


def header_bytes(tensors: Iterable[NewTensor], metadata: Mapping[str, str]) -> bytes:
    """Length field and JSON header of a file with the tensors one after another (data aligned to 8 bytes)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, start + tensor.nbytes]
        }  # fmt: skip
        start += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def index_text(files: Sequence[tuple[str, Sequence[NewTensor]]]) -> str:
    """The index of a sharded folder as JSON."""
    total = sum(t.nbytes for _, tensors in files for t in tensors)
    weight_map = {t.name: name for name, tensors in files for t in tensors}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"


def read_exactly(fd: int, buffer: memoryview, offset: int, path: Path | str) -> None:
    """Fill ``buffer`` from a file at ``offset``. Raises SophiaError if the file ends too early or cannot be read."""
    done = 0
    try:
        while done < len(buffer):
            got = os.preadv(fd, [buffer[done:]], offset + done)
            if not got:
                raise SophiaError(
                    f"{path} became shorter while it was read; the rest is missing at byte {offset + done}"
                )
            done += got
    except OSError as error:
        raise SophiaError(f"cannot read {path}: {error.strerror}") from error
