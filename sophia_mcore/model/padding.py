"""Padding as zeros wherever an FP8 product reads it, so that no scale depends on it.

Rows are filled up to a length that FP8 products can take. Such positions run through the layers like any other (their
results are never used and their gradients are zero), and their activations would enter the largest magnitudes from
which scales are made. Here they become zeros in front of the four products of each decoder layer.
"""

from __future__ import annotations

from typing import Any

from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor, nn

_ATTRIBUTE = "real_tokens"


def mark_padding(packed: PackedSeqParams, real_sb: Tensor, tensor_rank: int, shares: int) -> None:
    """Let the decoder know which of this rank's positions [s, b] are real; `shares` > 1 under sequence parallelism."""
    setattr(
        packed, _ATTRIBUTE, (real_sb[..., None], real_sb.chunk(shares)[tensor_rank if shares > 1 else 0][..., None])
    )


def zero_padding(decoder: nn.Module) -> None:
    """Hooks on the layers of a megatron-core TransformerBlock. Without `mark_padding` they do nothing.

    The mark travels with the arguments of each layer, so that a recomputed layer finds its own.
    """
    for layer in decoder.layers:  # type: ignore[union-attr]
        here: dict[str, Any] = {}

        def remember(_: nn.Module, args: Any, kwargs: dict[str, Any], here: dict[str, Any] = here) -> None:
            here["real"] = getattr(kwargs.get("packed_seq_params"), _ATTRIBUTE, None)

        def zero(_: nn.Module, args: Any, kwargs: dict[str, Any], here: dict[str, Any] = here, part: int = 1) -> Any:
            if here["real"] is None:
                return None
            name = next(iter(kwargs)) if not args else None  # hidden states, positional or first keyword
            values = kwargs[name] if name else args[0]
            masked = values * here["real"][part].to(values.dtype)
            return (args, {**kwargs, name: masked}) if name else ((masked, *args[1:]), kwargs)

        def zero_whole(module: nn.Module, args: Any, kwargs: dict[str, Any], zero: Any = zero) -> Any:
            return zero(module, args, kwargs, part=0)  # the attention's output covers the whole sequence

        layer.register_forward_pre_hook(remember, with_kwargs=True)
        layer.self_attention.register_forward_pre_hook(zero, with_kwargs=True)
        layer.self_attention.linear_proj.register_forward_pre_hook(zero_whole, with_kwargs=True)
        layer.mlp.register_forward_pre_hook(zero, with_kwargs=True)
