"""Open a checkpoint of any layout as tiles of our tensors: hf, hf-custom, or a Megatron distributed checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.model.spec import ModelSpec
from sophia_mcore.weights import torch_dist
from sophia_mcore.weights.ops import Rectangle, matrix_shape
from sophia_mcore.weights.safetensors_io import DTYPE_BYTES, FileState, StoredTensor, open_folder
from sophia_mcore.weights.stream import BUFFER_BYTES, Files, bands, read_box
from sophia_mcore.weights.tables import LLAMA_LIKE, Entry, resolve
from sophia_mcore.weights.tiles import Tile, Tiled, fold_layers, raise_problems, tiles_of_folder

Layout = Literal["hf", "hf-custom", "megatron"]

# transformers' in-memory names, which some releases of it also wrote; the hub's names are on the right.
MEMORY_NAMES = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk: our tensors by canonical name, and the files they lie in."""

    folder: Path
    layout: Layout
    spec: ModelSpec
    tensors: dict[str, Tiled]
    files: tuple[FileState, ...]

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
        return _open_megatron(folder, ModelSpec.from_model_dir(folder if base is None else base))
    spec = ModelSpec.from_model_dir(folder)
    stored = open_folder(folder)
    tensors = _hub_names(stored.tensors) if spec.layout == "hf" and spec.vision is not None else dict(stored.tensors)
    entries = resolve(spec, spec.layout)
    _drop_tied_head(spec, tensors, folder)
    return Checkpoint(folder, spec.layout, spec, tiles_of_folder(entries, tensors, folder), stored.files)


def _hub_names(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    if not any(name.startswith("model.") for name in tensors):
        return dict(tensors)
    renamed = {}
    for name, tensor in tensors.items():
        old, new = next(((a, b) for a, b in MEMORY_NAMES if name.startswith(a)), ("", ""))
        renamed[new + name.removeprefix(old)] = tensor
    return renamed


def _drop_tied_head(spec: ModelSpec, tensors: dict[str, StoredTensor], folder: Path) -> None:
    """With tied embeddings a stored head is redundant: it must equal the embedding, and is then left out."""
    if not spec.language.tied_embeddings:
        return
    prefix = "" if spec.vision is None else "language_model."
    custom = spec.language.family in LLAMA_LIKE and spec.layout == "hf-custom"
    head = prefix + ("output.weight" if custom else "lm_head.weight")
    embedding = prefix + ("model.tok_embeddings.weight" if custom else "model.embed_tokens.weight")
    if head not in tensors:
        return
    if embedding in tensors and not same_bytes(_single(tensors[head]), _single(tensors[embedding])):
        raise SophiaError(f"{folder}: tie_word_embeddings is true, but {head} differs from {embedding}")
    del tensors[head]


def _single(tensor: StoredTensor) -> Tiled:
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


# Keys of a Megatron checkpoint

# Megatron names a norm after the linear that Transformer Engine fuses it into, whichever spec wrote the checkpoint.
FUSED_NORMS = (
    ("input_layernorm.", "self_attention.linear_qkv.layer_norm_"),
    ("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"),
)
NOT_WEIGHTS = ("optimizer.", "random", "rng_state")
_LAYER = re.compile(r"\.layers\.(\d+)\.")
PADDED = ("language.embedding.word_embeddings.weight", "language.output_layer.weight")


def stored_keys(name: str) -> list[tuple[str, int | None]]:
    """Keys under which a checkpoint may hold one of our tensors: (key, index along a leading layer axis or None)."""
    names = [name] + [name.replace(f".{ours}", f".{fused}") for ours, fused in FUSED_NORMS if f".{ours}" in name]
    found: list[tuple[str, int | None]] = [(n, None) for n in names]
    match = _LAYER.search(name)
    if match:
        found += [(_LAYER.sub(".layers.", n, count=1), int(match[1])) for n in names]
    return found


def _open_megatron(folder: Path, spec: ModelSpec) -> Checkpoint:
    stored, files = torch_dist.read_checkpoint(folder, lambda key: not key.startswith(NOT_WEIGHTS))
    tensors: dict[str, Tiled] = {}
    used: set[str] = set()
    missing = []
    for entry in resolve(spec, "hf"):
        key = next(((k, i) for k, i in stored_keys(entry.name) if k in stored), None)
        if key is None:
            missing.append(entry.name)
            continue
        used.add(key[0])
        tensors[entry.name] = _megatron_tensor(entry, stored[key[0]], key[1], folder)
    _check_layer_counts(stored, tensors, used, folder)
    unused = [key for key in stored if key not in used]
    raise_problems(f"{folder} does not fit its configuration", {"missing": missing, "not part of this model": unused})
    return Checkpoint(folder, "megatron", spec, tensors, files)


def _megatron_tensor(entry: Entry, stored: torch_dist.DistTensor, layer: int | None, folder: Path) -> Tiled:
    shape = stored.shape if layer is None else stored.shape[1:]
    padded = entry.name in PADDED and shape[1:] == entry.shape[1:] and shape[0] >= entry.shape[0]
    if shape != entry.shape and not padded:
        raise SophiaError(f"{folder}: {stored.key} has shape {list(shape)}, expected {list(entry.shape)}")
    rows, columns = matrix_shape(entry.shape)
    leading = len(entry.shape) - len(_squeezed(entry.shape))
    tiles = []
    for chunk in stored.chunks:
        starts, sizes = list(chunk.starts), list(chunk.shape)
        if layer is not None:
            if not starts[0] <= layer < starts[0] + sizes[0]:
                continue
            skip, starts, sizes = layer - starts[0], starts[1:], sizes[1:]
        else:
            skip = 0
        tiles.append(_chunk_tile(stored, chunk, starts[leading:], sizes[leading:], skip, _squeezed(entry.shape)))
    whole = Rectangle(0, rows, 0, columns)
    kept = [replace(t, rectangle=common) for t in tiles if (common := t.rectangle.intersect(whole)) is not None]
    tiled = Tiled(
        entry.name, entry.shape, stored.dtype, tuple(kept), "copy" if len(kept) == 1 else f"{len(kept)} shards"
    )
    tiled.check_covered()
    return tiled


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = list(shape)
    while len(sizes) > 1 and sizes[0] == 1:
        del sizes[0]
    return tuple(sizes)


def _chunk_tile(
    stored: torch_dist.DistTensor, chunk: torch_dist.Chunk, starts: Sequence[int], sizes: Sequence[int], skip: int,
    shape: Sequence[int],
) -> Tile:  # fmt: skip
    """The tile of a chunk, cut along the first two axes at most; ``skip`` layers precede it in the chunk."""
    if list(sizes[2:]) != list(shape[2:]):
        raise SophiaError(f"{chunk.path}: {stored.key} is cut along its third axis, which is not supported")
    rows, columns = matrix_shape(sizes) if len(sizes) > 1 else (sizes[0] if sizes else 1, 1)
    inner = matrix_shape((1, *sizes[2:]))[0] * _product(sizes[2:])
    size = DTYPE_BYTES[stored.dtype]
    column = (starts[1] if len(starts) > 1 else 0) * inner
    rectangle = Rectangle(starts[0] if starts else 0, rows, column, columns)
    key = f"{stored.key}@{','.join(map(str, chunk.starts))}"
    return Tile(rectangle, key, chunk.path, chunk.offset + skip * rows * columns * size, columns * size)


def _product(sizes: Sequence[int]) -> int:
    return matrix_shape((1, 1, *sizes))[1] if sizes else 1


def _check_layer_counts(
    stored: Mapping[str, torch_dist.DistTensor], tensors: Mapping[str, Tiled], used: set[str], folder: Path
) -> None:
    """Refuse a stack of more layers than the configuration has: the rest would be lost without a word."""
    layers: dict[str, int] = {}
    for name in tensors:
        for key, index in stored_keys(name):
            if index is not None and key in used:
                layers[key] = layers.get(key, 0) + 1
    wrong = [
        f"{key} ({stored[key].shape[0]} layers, {n} expected)" for key, n in layers.items() if stored[key].shape[0] != n
    ]
    if wrong:
        raise SophiaError(f"{folder} does not fit its configuration: {', '.join(fold_layers(wrong))}")
