"""Layer parts in plain torch, with the interfaces of megatron-core's layer specs, for where Transformer Engine is not.

Legend: S tokens of this rank, B rows, A heads of this rank, G key-value heads of this rank, D size of a head.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from sophia_mcore.parallel.context import rank_order


class Norm(nn.Module):
    """RMSNorm whose weight is marked when its gradient must be summed over the sequence-parallel ranks."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LoneNorm:
    """Transformer Engine's norm where it is not fused into a linear layer: final norm, norms of queries and keys.

    Without the state that Transformer Engine's operations add to checkpoints (a norm's is empty): the plain parts have
    none, and a checkpoint of either loads into the other.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        from megatron.core.extensions.transformer_engine import TENorm

        norm: Any = TENorm(config=config, hidden_size=hidden_size, eps=eps)
        plain = {"get_extra_state": nn.Module.get_extra_state, "set_extra_state": nn.Module.set_extra_state}
        norm.__class__ = type(type(norm).__name__, (type(norm),), plain)
        return norm


class CoreAttention(nn.Module):
    """Causal attention with grouped queries, packed sequences and all-gather context parallelism.

    Each packed sequence attends only within itself. Under context parallelism keys and values of all ranks are
    gathered and every rank computes its two slices of each sequence (see `parallel.context`).
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__()
        self.scale = softmax_scale
        self.group = pg_collection.cp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """query [S,B,A,D], key and value [S,B,G,D] (packed: without B) -> [S,B,A*D] (packed: [S,A*D])."""
        packed = query.dim() == 3
        if packed:
            query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        size = self.group.size()
        boundaries = [0, len(query) * size] if packed_seq_params is None else packed_seq_params.cu_seqlens_q.tolist()
        if size > 1:
            key, value = self._whole(torch.cat((key, value), dim=-1), boundaries).chunk(2, dim=-1)
        # [S,B,A,D] -> [B,A,S,D]
        query, key, value = (part.permute(1, 2, 0, 3) for part in (query, key, value))
        pieces, start = [], 0
        for first, last in pairwise(boundaries):
            keys, values = key[:, :, first:last], value[:, :, first:last]
            length = (last - first) // size
            pieces += self._sequence(query[:, :, start : start + length], keys, values)
            start += length
        context = torch.cat(pieces, dim=2).permute(2, 0, 1, 3).flatten(2)
        return context.squeeze(1) if packed else context

    def _whole(self, local: Tensor, boundaries: list[int]) -> Tensor:
        """Keys and values of all ranks in the order of the row; their gradient is summed over the ranks."""
        gathered = gather_from_sequence_parallel_region(local, tensor_parallel_output_grad=True, group=self.group)
        order = rank_order(boundaries, self.group.size()).to(local.device)
        return gathered.index_select(0, torch.argsort(order))

    def _sequence(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Attention of this rank's queries [B,A,s,D] of one sequence over its keys [B,G,S,D]; one piece per slice."""
        if query.shape[2] == 0:
            return []
        size, rank = self.group.size(), self.group.rank()
        if size == 1:
            return [_attend(query, key, value, None, self.scale)]
        slice_length = query.shape[2] // 2
        pieces = []
        for part, place in zip(query.split(slice_length, dim=2), (rank, 2 * size - 1 - rank), strict=True):
            seen = (place + 1) * slice_length
            mask = torch.ones(slice_length, seen, dtype=torch.bool, device=query.device).tril(place * slice_length)
            pieces.append(_attend(part, key[:, :, :seen], value[:, :, :seen], mask, self.scale))
        return pieces


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )
