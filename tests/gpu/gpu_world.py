"""One CUDA rank: process group, backend with or without Transformer Engine, rows on the device, and arithmetic.

megatron-core is imported inside functions only: `require_gpu` must look at Transformer Engine before.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist

from sophia_mcore.config.schema import Config, Parallel
from sophia_mcore.errors import SophiaError
from sophia_mcore.parallel import backend as backends
from sophia_mcore.pretrained.spec import LanguageSpec, ModelSpec

if TYPE_CHECKING:
    from megatron.core.packed_seq_params import PackedSeqParams

CUDA = torch.cuda.is_available()
TRANSFORMER_ENGINE = CUDA and importlib.util.find_spec("transformer_engine") is not None
needs_cuda = pytest.mark.skipif(not CUDA, reason="no CUDA device: run on a GPU machine as docs/gpu.md says")
needs_te = pytest.mark.skipif(
    not TRANSFORMER_ENGINE, reason="no CUDA device with Transformer Engine: run on a GPU machine as docs/gpu.md says"
)


def require_gpu() -> None:
    """For scripts: ends in one line without a CUDA device, or where Transformer Engine or apex is half installed."""
    if not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device; docs/gpu.md says what this script does and where")
    try:
        backends.check_parts()
    except SophiaError as error:
        raise SystemExit(f"error: {error}") from None


@contextmanager
def one_rank(transformer_engine: bool = True, **changes: Any) -> Iterator[tuple[Any, Any]]:
    """(groups, backend) of a layout of one rank over NCCL; everything is left again. ``changes``: of the backend."""
    from sophia_mcore.parallel import groups as layouts

    backend = replace(backends.select(kind="cuda"), transformer_engine=transformer_engine, **changes)
    dist.init_process_group(backend.distributed, store=dist.HashStore(), rank=0, world_size=1)
    try:
        with backend.adapt():
            yield layouts.initialize(Parallel(), backend), backend
    finally:
        layouts.shutdown()


def update(chunk: Any, optimizer: Any, loss_of: Callable[[Any], torch.Tensor]) -> float:
    """One update without a pipeline schedule; the loss before it.

    The schedules say themselves that a step begins. Without that FP8 would go on with the first step's weights.
    """
    chunk.set_is_first_microbatch()
    chunk.zero_grad_buffer()
    optimizer.zero_grad()
    loss = loss_of(chunk)
    loss.backward()
    chunk.finish_grad_sync()
    optimizer.step()
    return float(loss.detach())


def packed(lengths: list[int]) -> PackedSeqParams:
    """Sequences of these lengths in one row."""
    from megatron.core.packed_seq_params import PackedSeqParams

    ends = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device="cuda")
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=max(lengths), max_seqlen_kv=max(lengths)
    )


def text_only(model: ModelSpec, layers: int, vocab_size: int) -> ModelSpec:
    """The language model alone, cut to some layers and words."""
    language = replace(model.language, num_layers=layers, vocab_size=vocab_size)
    return replace(model, vision=None, projector=None, language=language, image_token_id=None)


def with_train(config: Config, **train: Any) -> Config:
    """The configuration with other training settings."""
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def step_flops(spec: LanguageSpec, lengths: list[int]) -> float:
    """Multiplications and additions of one forward and backward pass over packed sequences, without recomputation.

    6 per weight and token for the matrix products (2 forward, 4 backward); causal attention as half of the full one.
    """
    queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
    layer = spec.hidden_size * (2 * queries + 2 * keys) + 3 * spec.hidden_size * spec.intermediate_size
    weights = spec.num_layers * layer + spec.hidden_size * spec.vocab_size
    attention = sum(12 * length**2 * queries / 2 for length in lengths) * spec.num_layers
    return 6.0 * weights * sum(lengths) + attention
