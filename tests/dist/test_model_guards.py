"""What `build` and `forward` refuse, and what they promise beyond the layout matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sophia_mcore.config.schema import Config, Parallel
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.model import lvlm
from tests.support import layouts
from tests.support.harness import run_layout


def built(groups: Any, backend: Any, spec: Any, config: Any) -> Any:
    chunks = lvlm.build(spec, config, groups, backend)
    layouts.fill(chunks, spec)
    return chunks


def forward(groups: Any, backend: Any, row: layouts.Row, parallel: Parallel, **more: Any) -> Tensor:
    (model,) = built(groups, backend, layouts.tiny_spec(), layouts.tiny_config(parallel))
    with torch.no_grad():
        return model(
            row.input_ids, None, row.packed_seq_params(), row.pixel_values, row.feature_index, row.targets, **more
        ).logprobs


def test_placeholders_without_features_name_the_sample() -> None:
    row = layouts.rows(2)[0]
    short = replace(row, feature_index=row.feature_index[:8])
    with pytest.raises(SophiaError, match=r"12 image tokens, but 8 features .*train-1 has 4; train-3 has 8"):
        run_layout(_with_names, Parallel(), short)


def _with_names(groups: Any, backend: Any, row: layouts.Row) -> None:
    forward(groups, backend, row, Parallel(), sample_ids=("train-1", "train-2", "train-3"))


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [([0, 30, 64], "sequence 0 of the row has 30 tokens"), ([0, 32, 60], "packed sequences end at 60")],
)
def test_sequences_that_do_not_fit_the_layout(boundaries: list[int], message: str) -> None:
    row = replace(layouts.rows(2)[1], boundaries=boundaries)
    with pytest.raises(RuntimeError, match=message):
        run_layout(forward, Parallel(context=2), row, Parallel(context=2))


def _too_long(groups: Any, backend: Any) -> None:
    spec = layouts.tiny_spec()
    spec = replace(spec, language=replace(spec.language, max_positions=24))
    (model,) = built(groups, backend, spec, layouts.tiny_config(Parallel()))
    row = layouts.rows(2)[1]
    model(row.input_ids, None, row.packed_seq_params())


def test_positions_that_the_model_does_not_have() -> None:
    with pytest.raises(SophiaError, match="a sequence of 32 tokens exceeds the model's 24 positions"):
        run_layout(_too_long, Parallel())


def _build_fails(groups: Any, backend: Any, spec: Any, sections: dict[str, Any]) -> None:
    values = layouts.tiny_config(groups.parallel).model_dump() | sections
    lvlm.build(spec, Config.model_validate(values), groups, backend)


@pytest.mark.parametrize(
    ("change", "sections", "message"),
    [
        ({"image_token_id": None}, {}, "the id of the image token is unknown"),
        ({}, {"fp8": {"recipe": "tensorwise"}}, "fp8.recipe = 'tensorwise' needs a CUDA device"),
    ],
)
def test_build_refuses(change: dict[str, Any], sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_layout(_build_fails, Parallel(), replace(layouts.tiny_spec(), **change), sections)


def _transfers(groups: Any, backend: Any) -> tuple[bool, bool]:
    config = built(groups, backend, layouts.tiny_spec(), layouts.tiny_config(groups.parallel))[0].config
    return config.overlap_p2p_comm, config.batch_p2p_comm


def test_interleaving_always_overlaps_its_transfers() -> None:
    """With two stages megatron-core gives wrong numbers without (and says nothing)."""
    assert run_layout(_transfers, Parallel(pipeline=2, virtual_pipeline=2)) == [(True, False)] * 2
    assert run_layout(_transfers, Parallel(pipeline=2)) == [(False, True)] * 2


def _encoded(groups: Any, backend: Any, keys: bool) -> tuple[int, list[Tensor]]:
    """Tiles that went through this rank's tower in a step of four rows that show the same two tiles."""
    (model,) = built(groups, backend, layouts.tiny_spec(), layouts.tiny_config(groups.parallel))
    seen: list[int] = []
    model.vision.register_forward_hook(lambda module, arguments, out: seen.append(len(out)))
    row = layouts.rows(2)[0]
    model.start_step({"a": 4, "b": 4})
    logprobs = []
    with torch.no_grad():
        for _ in range(4):
            picture_keys = ("a", "b") if keys else ()
            logprobs.append(
                model(
                    row.input_ids, None, row.packed_seq_params(), row.pixel_values, row.feature_index, row.targets,
                    picture_keys=picture_keys,
                ).logprobs
            )  # fmt: skip
    return sum(seen), logprobs


def test_tiles_of_a_step_are_encoded_once_over_all_ranks_and_rows() -> None:
    parallel = Parallel(tensor=2, sequence_parallel=True)
    plain, shared = run_layout(_encoded, parallel, False), run_layout(_encoded, parallel, True)
    assert [tiles for tiles, _ in plain] == [4, 4], "each rank encodes its half of every row's tiles"
    assert [tiles for tiles, _ in shared] == [1, 1]
    torch.testing.assert_close(shared[0][1], plain[0][1])


def _mixed(groups: Any, backend: Any) -> list[Tensor]:
    """Log-probs of a row whose padded tail changes."""
    (model,) = built(groups, backend, layouts.tiny_spec(), layouts.tiny_config(groups.parallel))
    found = []
    for filler in (0, 5):
        row = layouts.rows(2)[0]
        ids, targets = row.input_ids.clone(), row.targets.clone()
        ids[0, 60:], targets[0, 59:] = filler, -100
        row = replace(row, input_ids=ids, targets=targets)
        with torch.no_grad():
            found.append(
                model(ids, None, row.packed_seq_params(), row.pixel_values, row.feature_index, targets).logprobs
            )
    return found


def test_padding_never_counts() -> None:
    one, other = run_layout(_mixed, Parallel(tensor=2, context=2, sequence_parallel=True))[0]
    torch.testing.assert_close(one, other)
    assert one[0, 59:].abs().max() == 0 and one.min() < -1


def _in_forward(groups: Any, backend: Any) -> tuple[Tensor, Tensor]:
    """Gradient of the embedding with coefficients given as a function of (log-probs, places) and as a tensor."""
    found = []
    for given in ("function", "tensor"):
        (model,) = built(groups, backend, layouts.tiny_spec(), layouts.tiny_config(groups.parallel))
        row = layouts.rows(2)[0]
        slopes = -row.weights
        coefficients = slopes if given == "tensor" else lambda logprobs, places, s=slopes: s.flatten()[places]
        logprobs = model(
            row.input_ids, None, row.packed_seq_params(), row.pixel_values, row.feature_index, row.targets, coefficients
        ).logprobs
        (logprobs * slopes).sum().backward()
        found.append(model.language.embedding.word_embeddings.weight.grad)
    return found[0], found[1]


@pytest.mark.parametrize("parallel", [Parallel(), Parallel(context=2), Parallel(tensor=2, context=2)])
def test_places_of_a_coefficient_function_are_those_of_the_whole_row(parallel: Parallel) -> None:
    for function, tensor in run_layout(_in_forward, parallel):
        torch.testing.assert_close(function, tensor)
        assert tensor.abs().max() > 1e-3
