"""Parameter names that no layout, stage or layer spec changes (table in AGENTS.md), and how each tensor is cut."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from sophia_mcore.parallel.groups import Groups
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.pretrained.table import FUSED_NORMS
from sophia_mcore.pretrained.tensors import cut_of

_LAYER = re.compile(r"^language\.decoder\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Shard:
    """This rank's part of a global tensor: along `axis`, part `rank` of `size`; `axis` None means a whole copy.

    `blocks`: the global axis is that many equal blocks (gate and up: 2), and the part is a share of each, joined.
    `padding`: rows at the end of the global tensor that belong to no token (vocabulary); they must be zero.
    """

    axis: int | None
    rank: int
    size: int
    blocks: int = 1
    padding: int = 0


def unwrap(chunk: Any) -> Any:
    """The model inside data-parallel wrappers."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


def canonical_name(chunk: Any, name: str) -> str:
    """Canonical name of a parameter that `chunk.named_parameters()` calls `name` (chunk unwrapped).

    The layer index becomes the model's own (0 = first of the whole model), whatever stage holds it.
    """
    match = _LAYER.match(name)
    if match is None:
        return name
    layer = chunk.language.decoder.layers[int(match[1])].layer_number - 1
    name = f"language.decoder.layers.{layer}.{name[match.end() :]}"
    for own, fused in FUSED_NORMS:
        name = name.replace(fused, own)
    return name


def canonical_parameters(chunks: Iterable[nn.Module], spec: ModelSpec) -> Iterator[tuple[str, nn.Parameter, Shard]]:
    """Every parameter that this rank holds, as (canonical name, parameter, its part of the global tensor).

    Chunks as `lvlm.build` returns them, wrapped by DDP or not.
    """
    for wrapped in chunks:
        chunk = unwrap(wrapped)
        padding = chunk.padded_vocab_size - spec.language.vocab_size
        for name, parameter in chunk.named_parameters():
            canonical = canonical_name(chunk, name)
            yield canonical, parameter, _shard(canonical, chunk.groups, padding)


def _shard(name: str, groups: Groups, padding: int) -> Shard:
    cut = cut_of(name)
    if cut is None:
        return Shard(None, 0, 1)
    return Shard(cut.axis, groups.tensor_rank, groups.tensor_size, cut.blocks, padding if cut.uneven else 0)
