"""DeepStack: image features of several depths of the vision tower, added behind the first language layers.

They travel through the layers as megatron-core's `context` (its place for a second stream), which pipelines and
recomputation treat as an input: a recomputed layer gets its own, and the gradient comes back. Each of the first layers
takes the first level that is left; behind the last of them there is nothing left to carry.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def add_deep_features(decoder: nn.Module, levels: int) -> None:
    """Let the first `levels` layers of a megatron-core TransformerBlock add what comes as `context` [s, b, levels, h].

    Without a context they do nothing.
    """
    for layer in list(decoder.layers)[:levels]:  # type: ignore[arg-type]
        layer.register_forward_hook(_add_first)


def _add_first(_: nn.Module, arguments: Any, output: tuple[Tensor, Tensor | None]) -> Any:
    hidden, deep = output
    if deep is None:
        return None
    return hidden + deep[:, :, 0], deep[:, :, 1:] if deep.shape[2] > 1 else None
