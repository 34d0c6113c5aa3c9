"""Finds the tensors of a torch distributed checkpoint in its files, without torch's loader and without running pickles.

A checkpoint of Megatron's ``torch_dist`` format is a folder with ``.metadata`` (tensors, their chunks and their places)
and ``*.distcp`` files. In these every chunk is a small zip archive made by torch.save, with uncompressed, contiguous
data. So once the archive's directory is read, the data can be copied like any other bytes. The pickles inside are read
by an unpickler that never imports the classes that they name.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sophia_mcore.errors import SophiaError
from sophia_mcore.weights.formats.safetensors import DTYPE_BYTES, FileState

METADATA_NAME = ".metadata"
MCORE_CONFIG_NAME = "metadata.json"  # what megatron-core says of the format
_BAND_BYTES = 1 << 20
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chunk:
    """Part of a tensor: its place in the tensor (``starts``, ``shape``), and the file and offset of its data.

    ``crc32``: the writer's checksum of the ``stored_bytes`` bytes from ``offset`` on; 0 if the writer stored none.
    """

    starts: tuple[int, ...]
    shape: tuple[int, ...]
    path: Path
    offset: int
    stored_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class DistTensor:
    """A tensor of the checkpoint: global shape, safetensors' name of the dtype, and chunks."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[Chunk, ...]


class _Inert:
    """Replaces every class during unpickling: keeps the pickled values, but imports and runs nothing."""

    def __init__(self, *values: Any, **_: Any) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def field(self, name: str) -> Any:
        """A field of the pickled dataclass; None if it is missing."""
        state = self.__dict__.get("state")
        return state.get(name) if isinstance(state, dict) else None


@dataclass(frozen=True, slots=True)
class _Tensor:
    """The description of a tensor that `torch.save` wrote."""

    storage: Any
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(size), tuple(stride))


_KNOWN = {
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("collections", "OrderedDict"): OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    """Never imports the classes that a file names; it uses `_Inert` in their place."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and (name in DTYPES or name in STORAGES):
            return name
        return _KNOWN.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> Any:
        return pid


def read_checkpoint(folder: Path, wanted: Any = None) -> tuple[dict[str, DistTensor], tuple[FileState, ...]]:
    """The tensors of a distributed checkpoint for which ``wanted(key)`` is true (default: all), and their files.

    Raises:
        SophiaError: not a checkpoint, a missing, truncated or corrupt file, or content that is not supported.
    """
    file = folder / METADATA_NAME
    try:
        metadata = _Unpickler(io.BytesIO(file.read_bytes())).load()
        described: Mapping[str, Any] = metadata.field("state_dict_metadata")
        stored: Mapping[_Inert, _Inert] = metadata.field("storage_data")
        by_key = _places(stored)
        states: dict[str, FileState] = {}
        tensors = {
            key: _dist_tensor(folder, key, entry, by_key, states)
            for key, entry in described.items()
            if entry.field("size") is not None and (wanted is None or wanted(key))  # without a size: no tensor
        }
    except SophiaError:
        raise
    except FileNotFoundError:
        raise SophiaError(f"{folder} is not a distributed checkpoint: no {METADATA_NAME}") from None
    except Exception as error:  # a corrupt pickle can fail in any way
        raise SophiaError(f"{file} is corrupt or not a distributed checkpoint's metadata: {error}") from error
    return tensors, tuple(states.values())


def _places(stored: Mapping[_Inert, _Inert]) -> dict[tuple[str, tuple[int, ...]], _Inert]:
    return {(i.field("fqn"), tuple(i.field("offset") or ())): info for i, info in stored.items()}


def _dist_tensor(
    folder: Path, key: str, entry: _Inert, places: Mapping[Any, _Inert], states: dict[str, FileState]
) -> DistTensor:
    shape = tuple(entry.field("size"))
    dtype = _dtype_of(entry.field("properties"))
    if dtype is None:
        raise SophiaError(f"{folder}: {key} has a dtype that is not known")
    chunks = []
    for chunk in entry.field("chunks"):
        starts, sizes = tuple(chunk.field("offsets")), tuple(chunk.field("sizes"))
        info = places.get((key, starts))
        if info is None:
            raise SophiaError(f"{folder}: the part of {key} from {list(starts)} on is not stored anywhere")
        path = folder / Path(info.field("relative_path")).name
        if path.name not in states:
            states[path.name] = FileState.from_file(path)
        if info.field("transform_descriptors"):
            raise SophiaError(f"{path}: {key} is compressed, which is not supported")
        start, length = info.field("offset"), info.field("length")
        if start + length > states[path.name].size:
            raise SophiaError(f"{path} is truncated: {states[path.name].size} bytes, {key} needs {start + length}")
        chunks.append(_chunk(path, start, length, dtype, starts, sizes, key))
    return DistTensor(key, shape, dtype, tuple(chunks))


def _dtype_of(properties: Any) -> str | None:
    """The dtype in a pickled TensorProperties. Its state is a tuple or a dict, depending on the version of torch."""
    state = properties.__dict__.get("state", properties.__dict__.get("values"))
    values = state.values() if isinstance(state, dict) else state
    return next((DTYPES[v] for v in values if isinstance(v, str) and v in DTYPES), None)


class _Window(io.RawIOBase):
    """A part of a file, presented as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self.file, self.start, self.length, self.position = file, start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self.length - self.position))
        self.file.seek(self.start + self.position)
        data = self.file.read(count)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def _chunk(
    path: Path, start: int, length: int, dtype: str, starts: tuple[int, ...], shape: tuple[int, ...], key: str
) -> Chunk:
    """Find a chunk's data in the file. Raises SophiaError unless they are uncompressed, contiguous and of this type."""
    try:
        with path.open("rb", buffering=0) as file, zipfile.ZipFile(_Window(file, start, length)) as archive:
            names = {name.split("/", 1)[1]: name for name in archive.namelist()}
            with archive.open(names["data.pkl"]) as pickled:
                tensor = _Unpickler(io.BytesIO(pickled.read())).load()
            if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
                raise SophiaError(f"{path}: {key} is stored in big-endian order, which is not supported")
            record = archive.getinfo(names[f"data/{tensor.storage[2]}"])
            file.seek(start + record.header_offset)
            header = file.read(30)
    except SophiaError:
        raise
    except Exception as error:  # a corrupt archive or pickle can fail in any way
        raise SophiaError(f"{path} is corrupt at {key}: {error}") from error
    size = math.prod(shape) * DTYPE_BYTES[dtype]
    contiguous = list(tensor.stride) == [math.prod(shape[i + 1 :]) for i in range(len(shape))] or math.prod(shape) <= 1
    plain = record.compress_type == zipfile.ZIP_STORED and tensor.offset == 0
    if not (plain and contiguous and tuple(tensor.shape) == shape and STORAGES.get(tensor.storage[1], dtype) == dtype):
        raise SophiaError(f"{path}: {key} is not stored as a contiguous {dtype} tensor of shape {list(shape)}")
    if record.file_size < size:
        raise SophiaError(f"{path}: {key} has {record.file_size} bytes, {size} expected")
    names_length = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = start + record.header_offset + 30 + names_length
    return Chunk(starts, shape, path, offset, record.file_size, record.CRC)


def check_bytes(key: str, chunk: Chunk) -> None:
    """Raise SophiaError if the bytes of a chunk do not match the writer's checksum."""
    found, left = 0, chunk.stored_bytes
    try:
        with open(chunk.path, "rb", buffering=0) as file:
            file.seek(chunk.offset)
            while left and (data := file.read(min(left, _BAND_BYTES))):
                found = zlib.crc32(data, found)
                left -= len(data)
    except OSError as error:
        raise SophiaError(f"cannot read {chunk.path}: {error.strerror}") from error
    if left or found != chunk.crc32:
        raise SophiaError(f"{chunk.path} is corrupt at {key}: its bytes are not those that were written (CRC-32)")
