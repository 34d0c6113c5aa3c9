"""Open a checkpoint of any layout as tiles of our tensors: hf, hf-custom, or a Megatron distributed checkpoint."""

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

NOT_WEIGHTS = ("optimizer.", "random", "rng_state")  # beside the model in a trainer's checkpoint


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk: our tensors by canonical name, and the files they lie in."""

    folder: Path
    layout: Layout
    spec: ModelSpec
    tensors: dict[str, Tiled]
    files: tuple[FileState, ...]
    chunks: tuple[tuple[str, torch_dist.Chunk], ...] = ()  # (key, chunk) whose writer noted a checksum
    spelling: Spelling | None = None  # of a folder in layout hf: how its files spell the tables' names

    def check_bytes(self, progress: Progress) -> None:
        """Raise SophiaError for the first part of a trainer's checkpoint whose bytes are not those that it wrote."""
        progress.start("check the checkpoint", sum(chunk.stored_bytes for _, chunk in self.chunks))
        for key, chunk in self.chunks:
            torch_dist.check_bytes(key, chunk)
            progress.advance(chunk.stored_bytes)

    def check_unchanged(self) -> None:
        """Raise SophiaError if a source file changed since it was opened."""
        for state in self.files:
            state.check()


def open_checkpoint(folder: Path, base: Path | None = None) -> Checkpoint:
    """Open a folder of any layout. ``base`` gives the configuration when the folder has none (a trainer's checkpoint).

    Raises:
        SophiaError: naming what is missing, left over, truncated or of another shape. UsageError: not a checkpoint.
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
    """True for what `fp8.quantize_fp8` writes: some E4M3 tensor has a scale beside it."""
    return any(
        tensor.dtype == "F8_E4M3" and f"{name.removesuffix('weight')}weight_scale" in tensors
        for name, tensor in tensors.items()
    )


def table_names(tensors: Mapping[str, StoredTensor], family: Family | None) -> dict[str, StoredTensor]:
    """The tensors of a folder in transformers' layout by the tables' names, however its files spell them."""
    spelling = spelling_of(tensors, family)
    return {table_name(name, spelling): tensor for name, tensor in tensors.items()}


def _drop_tied_head(spec: ModelSpec, tensors: dict[str, StoredTensor], folder: Path) -> None:
    """With tied embeddings a stored head is redundant: it must equal the embedding, and is then left out."""
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
    """A stored tensor as it is."""
    rows, columns = matrix_shape(tensor.shape)
    pitch = columns * DTYPE_BYTES[tensor.dtype]
    tile = Tile(Rectangle(0, rows, 0, columns), tensor.name, tensor.path, tensor.offset, pitch)
    return Tiled(tensor.name, tensor.shape, tensor.dtype, (tile,))


def same_bytes(a: Tiled, b: Tiled) -> bool:
    """True if two tensors have the same shape, dtype and bytes; read in small bands."""
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
    """A distributed checkpoint, a trainer's or a converted one, at whatever layout it was written."""
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

    Megatron names a norm after the linear that Transformer Engine fuses it into, whichever spec wrote the checkpoint.
    """
    for ours, fused in FUSED_NORMS:
        name = name.replace(f".{ours}", f".{fused}")
    return name


def _fits(entry: Entry, shape: tuple[int, ...]) -> bool:
    """The vocabulary may be padded at its end, everything else has its own shape."""
    padded = entry.cut is not None and entry.cut.uneven and shape[1:] == entry.shape[1:] and shape[0] > entry.shape[0]
    return shape == entry.shape or padded


def _megatron_tensor(entry: Entry, stored: torch_dist.DistTensor) -> Tiled:
    whole = Rectangle(0, matrix_shape(entry.shape)[0], 0, matrix_shape(entry.shape)[1])
    tiles = []
    for chunk in stored.chunks:
        tile = _chunk_tile(stored, chunk)
        if (kept := tile.rectangle.intersect(whole)) is not None:  # without the vocabulary's padding, at its end
            tiles.append(replace(tile, rectangle=kept))
    tiled = Tiled(entry.name, entry.shape, stored.dtype, tuple(tiles), parts_note(len(tiles)))
    tiled.check_covered()
    return tiled


def parts_note(parts: int) -> str:
    """How a tensor of a distributed checkpoint is stored, for the proof file."""
    return "copy" if parts == 1 else f"{parts} parts"


def _chunk_tile(stored: torch_dist.DistTensor, chunk: torch_dist.Chunk) -> Tile:
    """The tile of a chunk, which tensor parallelism cuts along the first two axes at most."""
    leading = len(stored.shape) - len(squeezed(stored.shape))
    starts, sizes = chunk.starts[leading:], chunk.shape[leading:]
    if sizes[2:] != stored.shape[leading + 2 :]:
        raise SophiaError(f"{chunk.path}: {stored.key} is cut along its third axis, which is not supported")
    rows, columns = matrix_shape(sizes) if len(sizes) < 3 else (sizes[0], math.prod(sizes[1:]))
    row, column = (*starts, 0, 0)[:2]
    rectangle = Rectangle(row, rows, column * math.prod(sizes[2:]), columns)
    key = f"{stored.key}@{','.join(map(str, chunk.starts))}"
    return Tile(rectangle, key, chunk.path, chunk.offset, columns * DTYPE_BYTES[stored.dtype])
