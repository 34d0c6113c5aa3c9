"""Parameter names that no layout, stage or layer spec changes (table in AGENTS.md), and how each tensor is cut."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from sophia_mcore.parallel.groups import Groups
from sophia_mcore.pretrained.spec import ModelSpec

# Transformer Engine's fused layers keep a norm inside the linear that follows it.
_FUSED = (
    ("self_attention.linear_qkv.layer_norm_", "input_layernorm."),
    ("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm."),
)
_LAYER = re.compile(r"^language\.decoder\.layers\.(\d+)\.")
_CUT = re.compile(
    r"^language\.(?:(?P<rows>embedding\.word_embeddings\.weight|output_layer\.weight"
    r"|decoder\.layers\.\d+\.self_attention\.linear_qkv\.(?:weight|bias))"
    r"|(?P<gated>decoder\.layers\.\d+\.mlp\.linear_fc1\.weight)"
    r"|(?P<columns>decoder\.layers\.\d+\.(?:self_attention\.linear_proj|mlp\.linear_fc2)\.weight))$"
)


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


def tensor_axis(name: str) -> tuple[int | None, int]:
    """(axis, blocks) along which tensor parallelism cuts the canonical parameter `name`; axis None: replicated.

    >>> tensor_axis("language.decoder.layers.3.mlp.linear_fc1.weight")
    (0, 2)
    >>> tensor_axis("vision.class_token")
    (None, 1)
    """
    match = _CUT.match(name)
    if match is None:
        return None, 1
    if match["columns"]:
        return 1, 1
    return 0, 2 if match["gated"] else 1


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
    for fused, own in _FUSED:
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
    axis, blocks = tensor_axis(name)
    if axis is None:
        return Shard(None, 0, 1)
    vocabulary = name in ("language.embedding.word_embeddings.weight", "language.output_layer.weight")
    return Shard(axis, groups.tensor_rank, groups.tensor_size, blocks, padding if vocabulary else 0)
