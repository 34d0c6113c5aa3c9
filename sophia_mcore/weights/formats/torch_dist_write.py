"""Plans a torch distributed checkpoint whose data are streamed into the files instead of being saved from memory.

Every chunk is framed as torch.save does it: a zip archive with a pickled description and the raw data. So
megatron-core's loader can read the result. The frames have a few hundred bytes; the data between them are written as in
any other layout. The checksum of the data in a frame is zero, as when torch is told not to compute it. torch's reader
does not check it. Our digests are in conversion.json.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from sophia_mcore.errors import UsageError
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.weights.formats.opening import parts_note, stored_key
from sophia_mcore.weights.formats.safetensors import DTYPE_BYTES
from sophia_mcore.weights.formats.targets import NewFile, Target
from sophia_mcore.weights.formats.tiles import Tile, Tiled, split_rectangles
from sophia_mcore.weights.formats.torch_dist import DTYPES, MCORE_CONFIG_NAME, METADATA_NAME, STORAGES
from sophia_mcore.weights.ops import Interleave, Rectangle, matrix_shape
from sophia_mcore.weights.tables import Entry, resolve

ALIGNMENT = 64  # bytes; torch aligns data in the file in the same way
_TORCH = {ours: getattr(torch, name) for name, ours in DTYPES.items()}
_STORAGE = {ours: getattr(torch, name) for name, ours in STORAGES.items()}
_ARCHIVE = "archive/"
# content of metadata.json, which megatron-core's dist_checkpointing expects beside the data
_MCORE_CONFIG = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


def plan_megatron(
    spec: ModelSpec, dtypes: Mapping[str, str], folder: Path, *, tensor: int = 1, pipeline: int = 1
) -> Target:
    """Plan a distributed checkpoint with one file per tensor- and pipeline-parallel rank, cut as these ranks hold it.

    It can be loaded at any other layout. Raises UsageError when the model cannot be divided in this way.
    """
    stages = _stages(spec.language.num_layers, pipeline)
    files: list[_RankFile] = [_RankFile(folder / f"__{rank}_0.distcp") for rank in range(tensor * pipeline)]
    described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    tensors: dict[str, Tiled] = {}
    entries = resolve(spec, "hf")
    _check_tensor(entries, tensor)
    for entry in entries:
        dtype, key, first = dtypes[entry.name], stored_key(entry.name), _stage(entry, stages, pipeline) * tensor
        chunks, tiles = [], []
        for rank, box, _, _ in split_rectangles(entry.shape, _cut(entry, tensor)):
            starts, sizes = _in_tensor(entry.shape, box)
            info, offset = files[first + rank].add(dtype, sizes)
            chunks.append(ChunkStorageMetadata(torch.Size(starts), torch.Size(sizes)))
            places[MetadataIndex(key, torch.Size(starts))] = info
            pitch = box.columns * DTYPE_BYTES[dtype]
            tiles.append(Tile(box, f"{key}@{','.join(map(str, starts))}", files[first + rank].path, offset, pitch))
        described[key] = TensorStorageMetadata(TensorProperties(_TORCH[dtype]), torch.Size(entry.shape), chunks)
        tensors[entry.name] = Tiled(entry.name, entry.shape, dtype, tuple(tiles), parts_note(len(tiles)))
    described_bytes = pickle.dumps(Metadata(described, storage_data=places, storage_meta=StorageMeta()))
    small = {
        METADATA_NAME: described_bytes,
        MCORE_CONFIG_NAME: json.dumps(_MCORE_CONFIG).encode(),
        "common.pt": _saved({"content_metadata": {}}),
    }
    new_files = [file.plan() for file in files] + [
        NewFile(folder / name, len(data), ((0, data),)) for name, data in small.items()
    ]
    return Target("megatron", tuple(new_files), tensors)


def _stages(layers: int, pipeline: int) -> list[int]:
    """Pipeline stage of each language layer."""
    if layers % pipeline:
        nearest = next(number for number in range(min(pipeline, layers), 0, -1) if layers % number == 0)
        raise UsageError(f"--pp {pipeline} does not divide {layers} language layers; nearest: {nearest}")
    return [layer // (layers // pipeline) for layer in range(layers)]


def _stage(entry: Entry, stages: list[int], pipeline: int) -> int:
    if entry.name.startswith("language.decoder.layers."):
        return stages[int(entry.name.split(".")[3])]
    last = entry.name.startswith(("language.decoder.final_layernorm", "language.output_layer"))
    return pipeline - 1 if last else 0


def _check_tensor(entries: Iterable[Entry], tensor: int) -> None:
    """Raise UsageError if a matrix does not divide into ``tensor`` equal parts."""
    lengths = {
        entry.name: matrix_shape(entry.shape)[entry.cut.axis] // entry.cut.blocks
        for entry in entries
        if entry.cut is not None and not entry.cut.uneven
    }
    wrong = next((name for name, length in lengths.items() if length % tensor), None)
    if wrong is not None:
        common = math.gcd(*lengths.values())
        nearest = next(number for number in range(min(tensor, common), 0, -1) if common % number == 0)
        raise UsageError(f"--tp {tensor} does not divide {wrong} (its length {lengths[wrong]}); nearest: {nearest}")


def _cut(entry: Entry, tensor: int) -> Interleave | None:
    """How tensor parallelism divides an entry (None: not at all). The last ranks may get fewer rows of a vocabulary."""
    if entry.cut is None or tensor == 1:
        return None
    length = matrix_shape(entry.shape)[entry.cut.axis] // entry.cut.blocks
    share = -(-length // tensor)
    parts = tuple(max(0, min(share, length - rank * share)) for rank in range(tensor))
    return Interleave(entry.cut.blocks, parts, entry.cut.axis)


def _in_tensor(shape: tuple[int, ...], box: Rectangle) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(offsets, sizes) of a rectangle along the tensor's axes."""
    rows, columns = matrix_shape(shape)
    if (box.rows, box.columns) == (rows, columns):
        return (0,) * len(shape), shape
    if len(shape) == 1:
        return (box.row,), (box.rows,)
    return (box.row, box.column), (box.rows, box.columns)


class _RankFile:
    """Plans the file of one rank: frames one after another."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self.literals: list[tuple[int, bytes]] = []

    def add(self, dtype: str, shape: tuple[int, ...]) -> tuple[_StorageInfo, int]:
        """Reserve space for a chunk; returns its entry in the checkpoint's metadata and the offset of its data."""
        nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
        head, tail = frame(pickled_tensor(dtype, shape), nbytes, self.size)
        start, offset = self.size, self.size + len(head)
        self.literals += [(start, head), (offset + nbytes, tail)]
        self.size = offset + nbytes + len(tail)
        return _StorageInfo(self.path.name, start, self.size - start), offset

    def plan(self) -> NewFile:
        """The finished plan of this file."""
        return NewFile(self.path, self.size, tuple(self.literals))


class _Pickled:
    """Is pickled like a contiguous CPU tensor whose storage is record 0 of the archive."""

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = dtype, shape

    def __reduce__(self) -> tuple[Any, ...]:
        stride = tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))
        return torch._utils._rebuild_tensor_v2, (self.storage(), 0, self.shape, stride, False, OrderedDict())

    def storage(self) -> _Storage:
        return _Storage(("storage", _STORAGE[self.dtype], "0", "cpu", math.prod(self.shape)))


class _Storage:
    def __init__(self, identity: tuple[Any, ...]) -> None:
        self.identity = identity


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.identity if isinstance(value, _Storage) else None


def pickled_tensor(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The pickle that torch.save would write for a tensor of this dtype and shape."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(_Pickled(dtype, shape))
    return buffer.getvalue()


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def frame(pickled: bytes, nbytes: int, start: int) -> tuple[bytes, bytes]:
    """Bytes before and after the data of a chunk. Together they are an uncompressed zip64 archive for torch.load.

    ``start`` is the archive's offset in the file, used to align the data.
    """
    head, directory = b"", b""
    for name, data in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")):
        local, central = _records(_ARCHIVE + name, len(data), len(head), crc=zlib.crc32(data))
        head, directory = head + local + data, directory + central
    bare = len(_records(_ARCHIVE + "data/0", nbytes, 0)[0])
    padding = -(start + len(head) + bare) % ALIGNMENT
    padding += ALIGNMENT if 0 < padding < 4 else 0  # the extra field that pads has a header of four bytes
    local, central = _records(_ARCHIVE + "data/0", nbytes, len(head), padding=padding)
    head, directory = head + local, directory + central
    at = len(head) + nbytes
    # zip64 end of central directory, its locator, and the classic end record
    end = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 4, 4, len(directory), at)
    end += struct.pack("<4sIQI", b"PK\x06\x07", 0, at + len(directory), 1)
    end += struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 4, 4, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return head, directory + end


def _records(name: str, size: int, offset: int, *, crc: int = 0, padding: int = 0) -> tuple[bytes, bytes]:
    """Local header and central directory entry of one file in the archive. Its sizes are in a zip64 field."""
    label, huge = name.encode(), 0xFFFFFFFF
    wide = struct.pack("<HHQQ", 1, 16, size, size)
    filler = struct.pack("<2sH", b"FB", padding - 4) + b"Z" * (padding - 4) if padding else b""
    local = struct.pack(
        "<4sHHHHHIIIHH", b"PK\x03\x04", 45, 0, 0, 0, 33, crc, huge, huge, len(label), len(wide) + len(filler)
    )
    central = struct.pack(
        "<4sHHHHHHIIIHHHHHII",
        *(b"PK\x01\x02", 45, 45, 0, 0, 0, 33, crc, huge, huge, len(label), len(wide) + 8, 0, 0, 0, 0, huge),
    )
    wide_central = struct.pack("<HHQQQ", 1, 24, size, size, offset)
    return local + label + wide + filler, central + label + wide_central
