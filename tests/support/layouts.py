"""Tiny InternVL models on any layout: filled by name, run through megatron-core's own schedules, put together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from sophia_mcore.config.schema import Batch, Config, Objective, Parallel, Train
from sophia_mcore.model import lvlm
from sophia_mcore.model.names import Shard, canonical_parameters
from sophia_mcore.pretrained.internvl.spec import ProjectorSpec, VisionSpec
from sophia_mcore.pretrained.spec import LanguageSpec, ModelSpec
from sophia_mcore.weights.tables import resolve
from tests.support.configs import make_config

IMAGE_TOKEN, VOCABULARY, LENGTH, TOKENS_PER_TILE = 190, 203, 64, 4


def with_slow(cases: Iterable[str], slow: Iterable[str]) -> list[Any]:
    """Names of cases as parameters of a test, those of ``slow`` with that mark."""
    marked = set(slow)
    assert marked <= set(cases)
    return [pytest.param(case, marks=pytest.mark.slow) if case in marked else case for case in cases]


def tiny_spec(family: str = "qwen2", six_billion: bool = True, layers: int = 4, kv_heads: int = 2) -> ModelSpec:
    """Five heads in the tower, as 25 in InternViT-6B: no tensor-parallel size divides them."""
    vision = VisionSpec(
        hidden_size=40, num_layers=2, num_attention_heads=5, intermediate_size=48, image_size=28, patch_size=7,
        num_channels=3, qkv_bias=not six_billion, qk_norm=six_billion,
        norm_type="rms_norm" if six_billion else "layer_norm", norm_eps=1e-6,
    )  # fmt: skip
    language = LanguageSpec(
        family=family, num_layers=layers, hidden_size=48, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=kv_heads, head_dim=16, vocab_size=VOCABULARY, norm_eps=1e-6, rope_theta=1e4,
        max_positions=4096, qkv_bias=family == "qwen2", qk_norm=family == "qwen3", tied_embeddings=False,
    )  # fmt: skip
    projector = ProjectorSpec(shuffle=2, input_size=160, output_size=48)
    return ModelSpec(vision=vision, projector=projector, language=language, layout="hf", image_token_id=IMAGE_TOKEN)


def tiny_config(parallel: Parallel, **train: Any) -> Config:
    return make_config(
        parallel=parallel,
        train=Train(**{"dtype": "float32", **train}),
        batch=Batch(sequence_length_tokens=LENGTH),
        objective=Objective(chunk_tokens=16),
    )


@dataclass(frozen=True)
class Row:
    """A microbatch, as `batch.collate` makes it."""

    input_ids: Tensor
    targets: Tensor
    weights: Tensor
    boundaries: list[int]
    pixel_values: Tensor
    feature_index: Tensor
    packed: bool = True
    position_ids: Tensor | None = None  # [3, 1, S] for a model with three axes
    picture_grids: list[tuple[int, int]] | None = None

    def packed_seq_params(self) -> PackedSeqParams | None:
        if not self.packed:
            return None
        cu = torch.tensor(self.boundaries, dtype=torch.int32)
        longest = int((cu[1:] - cu[:-1]).max())
        return PackedSeqParams(
            qkv_format="thd", cu_seqlens_q=cu, cu_seqlens_kv=cu, max_seqlen_q=longest, max_seqlen_kv=longest
        )


def rows(count: int, packed: bool = True, seed: int = 0) -> list[Row]:
    """Rows with three sequences: an image across the context-parallel cut, text only, that image again and another.

    The last row is text only.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        ids = torch.randint(0, IMAGE_TOKEN, (1, LENGTH), generator=generator)
        tiles, slots = torch.zeros(0, 3, 28, 28), torch.zeros(0, dtype=torch.long)
        if number < count - 1:
            # a sequence of 32 tokens over two ranks is cut at 8, 16 and 24: tokens 6..9 lie on both sides
            for start in (6, 42, 52):
                ids[0, start : start + TOKENS_PER_TILE] = IMAGE_TOKEN
            tiles = torch.randn(2, 3, 28, 28, generator=generator)
            slots = torch.tensor([1, 0, 1])[:, None] * TOKENS_PER_TILE + torch.arange(TOKENS_PER_TILE)
        targets = torch.where(ids.roll(-1, 1) == IMAGE_TOKEN, -100, ids.roll(-1, 1))
        targets[0, torch.randperm(LENGTH, generator=generator)[:20]] = -100
        boundaries = [0, 32, 40, 64] if packed else [0, LENGTH]
        for end in boundaries[1:]:
            targets[0, end - 1] = -100
        weights = torch.rand(1, LENGTH, generator=generator) * (targets >= 0)
        made.append(Row(ids, targets, weights, boundaries, tiles, slots.flatten(), packed))
    return made


@dataclass
class Outcome:
    """What one rank saw."""

    losses: list[float] = field(default_factory=list)
    gradients: list[tuple[str, Shard, Tensor]] = field(default_factory=list)  # of the first step
    parameters: list[tuple[str, Shard, Tensor]] = field(default_factory=list)  # after the last step


def fill(chunks: list[Any], spec: ModelSpec) -> None:
    """Each parameter from its own name: the same global values at every layout."""
    for name, parameter, shard in canonical_parameters(chunks, spec):
        if name == "language.output_layer.weight" and spec.language.tied_embeddings:
            name = "language.embedding.word_embeddings.weight"  # the last stage's copy
        whole = list(parameter.shape)
        if shard.axis is not None:
            whole[shard.axis] *= shard.size
        generator = torch.Generator().manual_seed(sum(map(ord, name)) * 7919 + len(name))
        values = torch.randn(whole, generator=generator) * (0.3 if len(whole) == 1 else 0.15)
        if "norm" in name and name.endswith("weight"):
            values += 1.0
        if shard.padding:
            values[-shard.padding :] = 0.0
        with torch.no_grad():
            parameter.copy_(cut(values, shard))


def cut(whole: Tensor, shard: Shard) -> Tensor:
    if shard.axis is None:
        return whole
    blocks = whole.chunk(shard.blocks, dim=shard.axis)
    return torch.cat([block.chunk(shard.size, dim=shard.axis)[shard.rank] for block in blocks], dim=shard.axis)


def together(parts: list[tuple[str, Shard, Tensor]]) -> dict[str, Tensor]:
    """Global tensors from the parts of all ranks; copies must agree, padding must be zero."""
    by_name: dict[str, dict[int, tuple[Shard, Tensor]]] = {}
    for name, shard, value in parts:
        known = by_name.setdefault(name, {}).setdefault(shard.rank, (shard, value))
        torch.testing.assert_close(
            value, known[1], rtol=0, atol=1e-6, msg=lambda text, n=name: f"copies of {n}: {text}"
        )
    whole = {}
    for name, ranks in by_name.items():
        shard = ranks[0][0]
        if shard.axis is None:
            whole[name] = ranks[0][1]
            continue
        assert len(ranks) == shard.size, name
        blocks = [ranks[rank][1].chunk(shard.blocks, dim=shard.axis) for rank in range(shard.size)]
        joined = torch.cat([blocks[r][b] for b in range(shard.blocks) for r in range(shard.size)], dim=shard.axis)
        if shard.padding:
            assert joined[-shard.padding :].abs().max() == 0, f"{name}: padding rows changed"
            joined = joined[: -shard.padding]
        whole[name] = joined
    return whole


def train(groups: Any, backend: Any, spec: ModelSpec, config: Config, batch: list[Row], steps: int = 3) -> Outcome:
    """`steps` optimizer steps on `batch`, split over data-parallel ranks, through the pipeline schedule."""
    chunks = lvlm.build(spec, config, groups, backend)
    fill(chunks, spec)
    model = chunks[0].config
    ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True)
    wrapped = [DistributedDataParallel(model, ddp, chunk) for chunk in chunks]
    trained = [p for chunk in chunks for p in chunk.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, eps=1e-4)
    mine = batch[groups.data_rank :: groups.data_size]
    outcome = Outcome()
    for step in range(steps):
        for chunk in wrapped:
            chunk.zero_grad_buffer()
            chunk.train()
        reports = get_forward_backward_func()(
            forward_step_func=partial(forward_step, groups=groups),
            data_iterator=[iter(mine) for _ in wrapped],
            model=wrapped,
            num_microbatches=len(mine),
            seq_length=LENGTH,
            micro_batch_size=1,
            forward_only=False,
        )
        if groups.is_last_stage:
            outcome.losses.append(float(sum(reports)))
        if step == 0:
            outcome.gradients = list(parts(chunks, spec, "main_grad"))
        for parameter in trained:
            parameter.grad = parameter.main_grad
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # .grad is main_grad here: the next backward must not add to it
    outcome.parameters = list(parts(chunks, spec, "data"))
    return outcome


def parts(chunks: list[Any], spec: ModelSpec, what: str) -> Iterator[tuple[str, Shard, Tensor]]:
    for name, parameter, shard in canonical_parameters(chunks, spec):
        if parameter.requires_grad:
            yield name, shard, getattr(parameter, what).clone()


def forward_step(data: Iterator[Row], model: Any, groups: Any) -> Any:
    row = next(data)
    output = model(
        row.input_ids, row.position_ids, row.packed_seq_params(), row.pixel_values, row.feature_index, row.targets,
        -row.weights, picture_grids=row.picture_grids,
    )  # fmt: skip

    def loss(scores: lvlm.Scores) -> tuple[Tensor, Tensor, Tensor]:
        total = -(scores.logprobs * row.weights).sum()
        counted = (row.targets >= 0).sum() if groups.context_rank == 0 else torch.zeros((), dtype=torch.long)
        return total, counted.int(), total.detach().clone()

    return output, loss


Numbers = tuple[list[float], dict[str, Tensor], dict[str, Tensor]]


def losses_of_steps(outcomes: list[Outcome], parallel: Parallel, data: int) -> list[float]:
    """Losses of all rows of a step, from the ranks that know them; those of one row must agree."""
    by_data: dict[int, list[float]] = {}
    for rank, outcome in enumerate(outcomes):
        if outcome.losses:
            known = by_data.setdefault(rank // (parallel.tensor * parallel.context) % data, outcome.losses)
            assert outcome.losses == pytest.approx(known, rel=1e-6), "ranks of one row disagree"
    return [sum(values) for values in zip(*by_data.values(), strict=True)]


def trained_names(spec: ModelSpec, **train: Any) -> set[str]:
    """Canonical names of what has a gradient under these settings, from the tables of weights."""
    trained = {"language": True, **{part: bool(train.get(f"train_{part}")) for part in ("vision_tower", "projector")}}
    trained["vision"] = trained.pop("vision_tower")
    names = [entry.name for entry in resolve(spec, "hf-custom" if spec.language.family == "internlm2" else "hf")]
    return {name for name in names if trained[name.partition(".")[0]]}


def assert_same_training(found: Numbers, wanted: Numbers, names: set[str]) -> None:
    """Losses of the steps, gradients of the first (of exactly ``names``), parameters after the last are the same."""
    losses, gradients, parameters = found
    wanted_losses, wanted_gradients, wanted_parameters = wanted
    assert losses == pytest.approx(wanted_losses, rel=1e-5)
    assert losses[-1] < losses[0]
    assert gradients.keys() == wanted_gradients.keys() == names
    for name, value in wanted_gradients.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=2e-6, msg=lambda t, n=name: f"{n}: {t}")
        assert value.abs().max() > 1e-5, name
    for name, value in wanted_parameters.items():
        torch.testing.assert_close(parameters[name], value, rtol=1e-4, atol=2e-5, msg=lambda t, n=name: f"{n}: {t}")
