"""Emulated FP8 inside the model: what stays in bf16 does, padding does not count, layouts agree as far as scales do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sophia_mcore.config.schema import Config, Fp8, Parallel
from sophia_mcore.model import lvlm
from sophia_mcore.model.fp8_linear import Fp8ColumnLinear, Fp8RowLinear
from tests.support import layouts
from tests.support.harness import run_layout

EMULATED = {"backend": "emulated"}


def settings(parallel: Parallel, recipe: str, **fp8: Any) -> Config:
    low = {"recipe": recipe, **(EMULATED if recipe != "none" else {})}
    return layouts.tiny_config(parallel).model_copy(update={"fp8": Fp8(**low, **fp8)})


def losses(parallel: Parallel, config: Config, steps: int = 3) -> list[float]:
    spec = layouts.tiny_spec("qwen2", True, 4)
    outcomes = run_layout(layouts.train, parallel, spec, config, layouts.rows(2), steps)
    return next(outcome.losses for outcome in reversed(outcomes) if outcome.losses)


@pytest.mark.parametrize("recipe", ["tensorwise", "delayed", "blockwise"])
def test_training_in_fp8_is_near_and_not_equal(recipe: str) -> None:
    plain = losses(Parallel(), settings(Parallel(), "none"))
    rounded = losses(Parallel(), settings(Parallel(), recipe))
    assert rounded != plain and rounded[-1] < rounded[0]
    assert rounded == pytest.approx(plain, rel=0.05)


def test_all_layers_in_bf16_is_no_fp8() -> None:
    config = settings(
        Parallel(), "tensorwise", layers_at_start_in_bf16=1, layers_in_bf16=(1, 2), layers_at_end_in_bf16=1
    )
    assert losses(Parallel(), config, 1) == losses(Parallel(), settings(Parallel(), "none"), 1)


def kinds(groups: Any, backend: Any, config: Config) -> list[tuple[int, str]]:
    chunks = lvlm.build(layouts.tiny_spec("qwen2", True, 4), config, groups, backend)
    return [
        (int(name.split(".layers.")[1].split(".")[0]) + 2 * groups.pipeline_rank, name.rpartition(".")[2])
        for chunk in chunks
        for name, module in chunk.named_modules()
        if isinstance(module, (Fp8ColumnLinear, Fp8RowLinear))
    ]


def test_which_products_are_fp8() -> None:
    parallel = Parallel(pipeline=2)
    config = settings(parallel, "tensorwise", layers_in_bf16=(2,), attention_in_bf16=True)
    found = {kind for rank in run_layout(kinds, parallel, config) for kind in rank}
    assert found == {(layer, name) for layer in (0, 1, 3) for name in ("linear_fc1", "linear_fc2")}


@pytest.mark.parametrize(
    "layout",
    [{"tensor": 2}, {"tensor": 2, "sequence_parallel": True}, {"pipeline": 2}, {"context": 2}],
    ids=lambda layout: " ".join(layout),
)
def test_layouts(layout: dict[str, Any]) -> None:
    """Pipeline: the same numbers. Tensor and context: each rank scales its part by itself, so only near."""
    parallel = Parallel(**layout)
    steps, tolerance = (3, 1e-5) if "pipeline" in layout else (1, 5e-3)
    wanted = losses(Parallel(), settings(Parallel(), "tensorwise"), steps)
    assert losses(parallel, settings(parallel, "tensorwise"), steps) == pytest.approx(wanted, rel=tolerance)


def logprobs(groups: Any, backend: Any, config: Config, padding_id: int, marked: bool) -> torch.Tensor:
    """Log-probs of a row whose last sequence is padding."""
    spec = layouts.tiny_spec("qwen2", True, 4)
    (chunk,) = lvlm.build(spec, config, groups, backend)
    layouts.fill([chunk], spec)
    with torch.no_grad():
        chunk.language.embedding.word_embeddings.weight[8] *= 100.0  # a padding token with a large embedding
        row = layouts.rows(1)[0]
        row.input_ids[0, 40:], row.targets[0, 40:] = padding_id, -100
        real = torch.arange(64)[None] < 40
        out = chunk(
            row.input_ids, None, row.packed_seq_params(), row.pixel_values, row.feature_index, row.targets,
            real_tokens=real if marked else None,
        )  # fmt: skip
    return out.logprobs


@pytest.mark.parametrize(
    "layout", [{}, {"tensor": 2, "sequence_parallel": True}, {"context": 2}], ids=lambda layout: " ".join(layout)
)
def test_padding_takes_no_part_in_scales(layout: dict[str, Any]) -> None:
    parallel = Parallel(**layout)
    config = settings(parallel, "tensorwise")
    small, large = (run_layout(logprobs, parallel, config, token, True)[0] for token in (7, 8))
    assert torch.equal(small, large) and small.abs().sum() > 0


def test_unmarked_padding_would() -> None:
    config = settings(Parallel(), "tensorwise")
    small, large = (run_layout(logprobs, Parallel(), config, token, False)[0] for token in (7, 8))
    assert not torch.equal(small, large)
