"""Opens a checkpoint of any layout (hf, hf-custom, Megatron distributed checkpoint) as tiles of our tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.pretrained.family import Family, Spelling
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.pretrained.table import FUSED_NORMS, LLAMA_LIKE
from sophia_mcore.progress import Progress
from sophia_mcore.weights.formats import torch_dist
from sophia_mcore.weights.formats.safetensors import DTYPE_BYTES, FileState, StoredTensor, open_folder
from sophia_mcore.weights.formats.stream import BUFFER_BYTES, Files, bands, read_box
from sophia_mcore.weights.formats.tiles import NO_WEIGHTS, Tile, Tiled, raise_problems, tiles_of_folder, wrong_dtypes
from sophia_mcore.weights.ops import Rectangle, matrix_shape, squeezed
from sophia_mcore.weights.tables import Entry, language_prefix, resolve, spelling_of, table_name

Layout = Literal["hf", "hf-custom", "megatron"]

NOT_WEIGHTS = ("optimizer.", "random", "rng_state")  # prefixes of other keys in a trainer's checkpoint


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk: our tensors by canonical name, and the files that hold them."""

    folder: Path
    layout: Layout
    spec: ModelSpec
    tensors: dict[str, Tiled]
    files: tuple[FileState, ...]
    chunks: tuple[tuple[str, torch_dist.Chunk], ...] = ()  # (key, chunk) of chunks that have a checksum
    spelling: Spelling | None = None  # layout hf only: how the files spell the names of the tables

    def check_bytes(self, progress: Progress) -> None:
        """Raise SophiaError for the first chunk of a trainer's checkpoint whose bytes do not match its checksum."""
        progress.start("check the checkpoint", sum(chunk.stored_bytes for _, chunk in self.chunks))
        for key, chunk in self.chunks:
            torch_dist.check_bytes(key, chunk)
            progress.advance(chunk.stored_bytes)

    def check_unchanged(self) -> None:
        """Raise SophiaError if a file has changed since it was opened."""
        for state in self.files:
            state.check()


def open_checkpoint(folder: Path, base: Path | None = None) -> Checkpoint:
    """Open a folder of any layout. ``base``: model folder of a trainer's checkpoint without configuration.

    Raises:
        SophiaError: names the tensors that are missing, left over or of another shape, or a damaged file.
        UsageError: the folder is not a checkpoint.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    if (folder / torch_dist.METADATA_NAME).exists():
        if base is None and not (folder / "config.json").exists():
            raise UsageError(f"{folder} is a trainer's checkpoint, without a configuration: name its model with --base")
        return _open_megatron(folder, ModelSpec.from_model_dir(folder if base is None else base))
    spec = ModelSpec.from_model_dir(folder)
    stored = open_folder(folder)
    if is_fp8_copy(stored.tensors):
        raise UsageError(f"{folder} is an FP8 copy of a model, for rollouts only; name the model that it was made from")
    spelling = spelling_of(stored.tensors, spec.family) if spec.layout == "hf" else None
    tensors = {table_name(name, spelling or ()): tensor for name, tensor in stored.tensors.items()}
    entries = resolve(spec, spec.layout)
    _drop_tied_head(spec, tensors, folder)
    return Checkpoint(
        folder, spec.layout, spec, tiles_of_folder(entries, tensors, folder), stored.files, spelling=spelling
    )


def is_fp8_copy(tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether the folder was written by `fp8.quantize_fp8`: it has an E4M3 tensor with a scale."""
    return any(
        tensor.dtype == "F8_E4M3" and f"{name.removesuffix('weight')}weight_scale" in tensors
        for name, tensor in tensors.items()
    )


def table_names(tensors: Mapping[str, StoredTensor], family: Family | None) -> dict[str, StoredTensor]:
    """The tensors of a folder in transformers' layout under the names of the tables, for any spelling in its files."""
    spelling = spelling_of(tensors, family)
    return {table_name(name, spelling): tensor for name, tensor in tensors.items()}


def _drop_tied_head(spec: ModelSpec, tensors: dict[str, StoredTensor], folder: Path) -> None:
    """Remove a stored output layer from ``tensors`` if it is tied to the embedding.

    Raises SophiaError if it differs from the embedding.
    """
    if not spec.language.tied_embeddings:
        return
    prefix = language_prefix(spec)
    custom = spec.language.family in LLAMA_LIKE and spec.layout == "hf-custom"
    head = prefix + ("output.weight" if custom else "lm_head.weight")
    embedding = prefix + ("model.tok_embeddings.weight" if custom else "model.embed_tokens.weight")
    if head not in tensors:
        return
    if embedding in tensors and not same_bytes(single_tile(tensors[head]), single_tile(tensors[embedding])):
        raise SophiaError(f"{folder}: tie_word_embeddings is true, but {head} differs from {embedding}")
    del tensors[head]


def single_tile(tensor: StoredTensor) -> Tiled:
    """A stored tensor as one tile."""
    rows, columns = matrix_shape(tensor.shape)
    pitch = columns * DTYPE_BYTES[tensor.dtype]
    tile = Tile(Rectangle(0, rows, 0, columns), tensor.name, tensor.path, tensor.offset, pitch)
    return Tiled(tensor.name, tensor.shape, tensor.dtype, (tile,))


def same_bytes(a: Tiled, b: Tiled) -> bool:
    """Whether two tensors have the same shape, dtype and bytes. Reads them in small bands."""
    if (matrix_shape(a.shape), a.dtype) != (matrix_shape(b.shape), b.dtype):
        return False
    rows, columns = matrix_shape(a.shape)
    row_bytes = columns * DTYPE_BYTES[a.dtype]
    with Files() as files:
        for row, count in bands(rows, row_bytes, BUFFER_BYTES):
            box = Rectangle(row, count, 0, columns)
            views = [memoryview(bytearray(count * row_bytes)) for _ in range(2)]
            for tensor, view in zip((a, b), views, strict=True):
                read_box(tensor, box, view, files)
            if views[0] != views[1]:
                return False
    return True


def _open_megatron(folder: Path, spec: ModelSpec) -> Checkpoint:
    """Open a distributed checkpoint, made by a trainer or a conversion, at any parallel layout."""
    stored, files = torch_dist.read_checkpoint(folder, lambda key: not key.startswith(NOT_WEIGHTS))
    entries = {stored_key(entry.name): entry for entry in resolve(spec, "hf")}
    problems = {
        "missing": [entry.name for key, entry in entries.items() if key not in stored],
        "not part of this model": [key for key in stored if key not in entries],
        "of another shape": [
            f"{key} {list(stored[key].shape)}, expected {list(entry.shape)}"
            for key, entry in entries.items()
            if key in stored and not _fits(entry, stored[key].shape)
        ],
        NO_WEIGHTS: wrong_dtypes({key: stored[key].dtype for key in entries if key in stored}),
    }
    raise_problems(f"{folder} does not fit its configuration", problems)
    tensors = {entry.name: _megatron_tensor(entry, stored[key]) for key, entry in entries.items()}
    chunks = tuple((key, chunk) for key, tensor in stored.items() for chunk in tensor.chunks if chunk.crc32)
    return Checkpoint(folder, "megatron", spec, tensors, files, chunks)


def stored_key(name: str) -> str:
    """Key of one of our tensors in a distributed checkpoint.

    Megatron names a norm after the linear layer into which Transformer Engine fuses it, even if it was not fused.
    """
    for ours, fused in FUSED_NORMS:
        name = name.replace(f".{ours}", f".{fused}")
    return name


def _fits(entry: Entry, shape: tuple[int, ...]) -> bool:
    """Whether ``shape`` is the entry's shape. The vocabulary may be padded at its end."""
    padded = entry.cut is not None and entry.cut.uneven and shape[1:] == entry.shape[1:] and shape[0] > entry.shape[0]
    return shape == entry.shape or padded


def _megatron_tensor(entry: Entry, stored: torch_dist.DistTensor) -> Tiled:
    whole = Rectangle(0, matrix_shape(entry.shape)[0], 0, matrix_shape(entry.shape)[1])
    tiles = []
    for chunk in stored.chunks:
        tile = _chunk_tile(stored, chunk)
        if (kept := tile.rectangle.intersect(whole)) is not None:  # cuts off the padding at the end of the vocabulary
            tiles.append(replace(tile, rectangle=kept))
    tiled = Tiled(entry.name, entry.shape, stored.dtype, tuple(tiles), parts_note(len(tiles)))
    tiled.check_covered()
    return tiled


def parts_note(parts: int) -> str:
    """Text for conversion.json: in how many parts a tensor of a distributed checkpoint is stored."""
    return "copy" if parts == 1 else f"{parts} parts"


def _chunk_tile(stored: torch_dist.DistTensor, chunk: torch_dist.Chunk) -> Tile:
    """The tile of a chunk. Raises SophiaError if it is cut along a third axis; tensor parallelism uses only two."""
    leading = len(stored.shape) - len(squeezed(stored.shape))
    starts, sizes = chunk.starts[leading:], chunk.shape[leading:]
    if sizes[2:] != stored.shape[leading + 2 :]:
        raise SophiaError(f"{chunk.path}: {stored.key} is cut along its third axis, which is not supported")
    rows, columns = matrix_shape(sizes) if len(sizes) < 3 else (sizes[0], math.prod(sizes[1:]))
    row, column = (*starts, 0, 0)[:2]
    rectangle = Rectangle(row, rows, column * math.prod(sizes[2:]), columns)
    key = f"{stored.key}@{','.join(map(str, chunk.starts))}"
    return Tile(rectangle, key, chunk.path, chunk.offset, columns * DTYPE_BYTES[stored.dtype])
