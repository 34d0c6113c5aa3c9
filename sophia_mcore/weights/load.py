"""Loads a checkpoint of any layout into the model. Each rank reads only its own slices, directly to its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from sophia_mcore.errors import SophiaError
from sophia_mcore.model.names import Shard, canonical_parameters
from sophia_mcore.parallel.groups import Groups
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.weights.formats.opening import Checkpoint, open_checkpoint
from sophia_mcore.weights.formats.safetensors import DTYPE_BYTES
from sophia_mcore.weights.formats.stream import BUFFER_BYTES, Files, bands, read_box
from sophia_mcore.weights.formats.tiles import Tiled, raise_problems, split_rectangles
from sophia_mcore.weights.formats.torch_dtypes import TORCH_DTYPES
from sophia_mcore.weights.ops import Rectangle, matrix_shape, split

EMBEDDING, HEAD = "language.embedding.word_embeddings.weight", "language.output_layer.weight"


def load_hf(chunks: Iterable[nn.Module], model_dir: Path, spec: ModelSpec, groups: Groups) -> None:
    """Fill this rank's parameters from a model folder (hf, hf-custom, or a converted Megatron checkpoint).

    Values are cast to each parameter's dtype; padded rows of the vocabulary become zero. All ranks must call this
    together.

    Raises:
        SophiaError: the folder does not fit the model (all names are listed), or a file is damaged.
    """
    checkpoint = open_checkpoint(Path(model_dir))
    used, missing = set(), []
    with Files() as files, torch.no_grad():
        for name, parameter, shard in canonical_parameters(chunks, spec):
            tiled = checkpoint.tensors.get(name)
            if tiled is None and name == HEAD and spec.language.tied_embeddings:
                tiled = checkpoint.tensors.get(EMBEDDING)
            if tiled is None:
                missing.append(name)
                continue
            used.add(name)
            load_parameter(tiled, parameter.data, shard, files)
    checkpoint.check_unchanged()
    raise_problems(f"{model_dir} lacks tensors of the model", {"missing": missing})
    _check_all_used(checkpoint, used, groups, Path(model_dir))


def load_parameter(tiled: Tiled, target: torch.Tensor, shard: Shard, files: Files) -> None:
    """Read one rank's part of a tensor into ``target`` (its local shape, any dtype and device).

    Raises SophiaError if the shapes do not fit.
    """
    rows, columns = matrix_shape(tiled.shape)
    rows += shard.padding
    local = target.view(-1) if target.is_contiguous() else torch.empty_like(target).view(-1)
    position = 0
    for box in shard_boxes(rows, columns, shard):
        if position + box.area > local.numel():
            break
        real = max(0, min(box.rows, rows - shard.padding - box.row))
        part = Rectangle(box.row, real, box.column, box.columns)
        _read(tiled, part, local[position : position + part.area], files)
        local[position + part.area : position + box.area].zero_()
        position += box.area
    if position != target.numel():
        shapes = f"{list(tiled.shape)} (+{shard.padding} rows) cut {shard.size}-fold, parameter {list(target.shape)}"
        raise SophiaError(f"{tiled.name}: the stored tensor does not fit the model: {shapes}")
    if not target.is_contiguous():
        target.copy_(local.view(target.shape))


def shard_boxes(rows: int, columns: int, shard: Shard) -> Iterator[Rectangle]:
    """Yield the rectangles of the global tensor that make up a shard, in its order. Each is contiguous in the shard."""
    if shard.axis is None:
        yield Rectangle(0, rows, 0, columns)
        return
    op = split(columns if shard.axis else rows, shard.size, axis=shard.axis, groups=shard.blocks)
    for rank, box, _, _ in split_rectangles((rows, columns), op):
        if rank == shard.rank:
            yield box


def _read(tiled: Tiled, box: Rectangle, target: torch.Tensor, files: Files) -> None:
    """Read a box into a flat contiguous tensor: directly if it has the stored dtype and is on the CPU, else by copy."""
    if tiled.dtype not in TORCH_DTYPES:
        raise SophiaError(f"{tiled.name}: cannot train from dtype {tiled.dtype}")
    dtype = TORCH_DTYPES[tiled.dtype]
    if target.dtype == dtype and target.device.type == "cpu":
        if target.numel():
            read_box(tiled, box, memoryview(target.view(torch.uint8).numpy().data), files)
        return
    row_bytes = box.columns * DTYPE_BYTES[tiled.dtype]
    buffer = memoryview(bytearray(max(row_bytes, min(BUFFER_BYTES, box.rows * row_bytes))))
    for row, count in bands(box.rows, row_bytes, len(buffer)):
        part = buffer[: count * row_bytes]
        read_box(tiled, Rectangle(box.row + row, count, box.column, box.columns), part, files)
        start = row * box.columns
        target[start : start + count * box.columns].copy_(torch.frombuffer(part, dtype=dtype))


def _check_all_used(checkpoint: Checkpoint, used: set[str], groups: Groups, model_dir: Path) -> None:
    """Raise SophiaError if a tensor of the checkpoint was used by no pipeline stage."""
    everywhere: list[set[str]] = [used]
    if groups.pipeline_size > 1:
        everywhere = [set() for _ in range(groups.pipeline_size)]
        dist.all_gather_object(everywhere, used, group=groups.collection.pp)
    unused = sorted(set(checkpoint.tensors) - set().union(*everywhere))
    raise_problems(f"{model_dir} holds tensors that the model does not take", {"unused": unused})
