"""Impossible layouts are refused before anything is computed, with the nearest layout that works."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sophia_mcore.config.schema import Parallel
from sophia_mcore.errors import UsageError
from sophia_mcore.parallel import backend
from sophia_mcore.parallel.context import rank_order
from sophia_mcore.parallel.layout import check_layout, layers_per_stage
from sophia_mcore.pretrained.spec import LanguageSpec, ModelSpec

LANGUAGE = LanguageSpec(
    family="qwen2", num_layers=64, hidden_size=5120, intermediate_size=27648, num_attention_heads=40,
    num_key_value_heads=8, head_dim=128, vocab_size=151674, norm_eps=1e-6, rope_theta=1e6, max_positions=32768,
    qkv_bias=True, qk_norm=False, tied_embeddings=False,
)  # fmt: skip
SPEC = ModelSpec(vision=None, projector=None, language=LANGUAGE, layout="hf", image_token_id=None)


@pytest.mark.parametrize(
    ("layout", "length", "message"),
    [
        ({"tensor": 16}, None, "parallel.tensor = 16 does not divide 40 attention heads; 1, 2, 4, 5, 8, 10, 20, 40 do"),
        ({"tensor": 5}, None, "fits no even share of 8 key-value heads; 1, 2, 4, 8, 40 do"),
        ({"tensor": 40}, None, "does not divide intermediate_size = 27648; 1, 2, 4, 8 do"),
        ({"pipeline": 3}, None, "64 language layers do not fit parallel.pipeline = 3; 1, 2, 4, 8, 16, 32, 64 do"),
        ({"pipeline": 4, "layers_on_first_stage": 3}, None, "61 layers are left for 3 stages"),
        ({"pipeline": 2, "layers_on_first_stage": 30, "layers_on_last_stage": 30}, None, "4 layers are left for 0"),
        ({"pipeline": 4, "virtual_pipeline": 3}, None, "parallel.virtual_pipeline = 3 does not divide a stage of 16"),
        ({"virtual_pipeline": 2}, None, "parallel.virtual_pipeline needs parallel.pipeline > 1"),
        ({"layers_on_first_stage": 60}, None, "need parallel.pipeline > 1"),
        ({"context": 2}, 4098, "is not a multiple of 4, which parallel.context = 2 need; nearest: 4096"),
        ({"tensor": 8, "context": 2, "sequence_parallel": True}, 4104, "nearest: 4096"),
        ({"sequence_parallel": True}, None, "sequence_parallel needs parallel.tensor > 1"),
    ],
)
def test_refused_with_what_would_fit(layout: dict[str, Any], length: int | None, message: str) -> None:
    with pytest.raises(UsageError) as error:
        check_layout(SPEC, Parallel(**layout), length)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "layout",
    [
        {"tensor": 8, "pipeline": 8, "context": 2, "sequence_parallel": True},
        {"tensor": 4, "pipeline": 4, "virtual_pipeline": 4},
        {"pipeline": 8, "layers_on_first_stage": 1, "layers_on_last_stage": 3, "tensor": 2},
        {"tensor": 8, "pipeline": 64},
    ],
)
def test_possible_layouts_pass(layout: dict[str, Any]) -> None:
    check_layout(SPEC, Parallel(**layout), 32768)  # raises nothing


def test_more_ranks_than_key_value_heads_must_be_a_multiple() -> None:
    few = replace(SPEC, language=replace(LANGUAGE, num_attention_heads=24, num_key_value_heads=4))
    check_layout(few, Parallel(tensor=8))
    with pytest.raises(UsageError, match="4 key-value heads; 1, 2, 4, 8, 12, 24 do"):
        check_layout(few, Parallel(tensor=6))


def test_layers_per_stage() -> None:
    uneven = Parallel(pipeline=4, layers_on_first_stage=10, layers_on_last_stage=14, virtual_pipeline=2)
    assert layers_per_stage(64, uneven) == [[5, 5], [10, 10], [10, 10], [7, 7]]
    assert sum(map(sum, layers_per_stage(63, Parallel(pipeline=2, layers_on_first_stage=31)))) == 63


def test_lengths_divide_down_to_every_rank() -> None:
    for tensor in (1, 2, 4, 6):
        for context in (1, 2, 4):
            for fp8 in (False, True):
                layout = Parallel(tensor=tensor, context=context, sequence_parallel=tensor > 1)
                row = layout.row_multiple(fp8)
                assert row % layout.sequence_multiple == 0
                assert row % context == 0 and (row // context) % tensor == 0
                assert not fp8 or (row // context // tensor) % 16 == 0
                assert context == 1 or layout.sequence_multiple == 2 * context


def test_zigzag_gives_every_rank_the_same_causal_work() -> None:
    order = rank_order([0, 16, 24], 2).view(2, -1)
    assert order.flatten().sort().values.tolist() == list(range(24))
    assert order[0].tolist() == [0, 1, 2, 3, 12, 13, 14, 15, 16, 17, 22, 23]
    assert order[0].sum() == order[1].sum()
    with pytest.raises(ValueError, match=r"sequence 1 of the row has 6 tokens; .* needs a multiple of 4"):
        rank_order([0, 16, 22], 2)


def test_fp8_is_refused_where_it_would_silently_do_nothing() -> None:
    cpu = backend.select(kind="cpu")
    cpu.check_fp8("none")
    with pytest.raises(UsageError, match=r"fp8\.recipe = 'delayed' needs a CUDA device"):
        cpu.check_fp8("delayed")
    without_engine = replace(cpu, kind="cuda")
    with pytest.raises(UsageError, match="needs Transformer Engine, which is not here"):
        without_engine.check_fp8("tensorwise")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here; runs on machines without one")
def test_cuda_without_a_device_is_refused() -> None:
    with pytest.raises(UsageError, match="torch sees no CUDA device"):
        backend.select(kind="cuda")


def test_multiples_of_a_layout() -> None:
    layout = Parallel(tensor=8, context=4, sequence_parallel=True)
    assert (layout.sequence_multiple, layout.row_multiple(), layout.row_multiple(fp8=True)) == (8, 32, 512)
