"""Models of the CUDA path as they are built: every example at real size, Transformer Engine's parts beside plain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config, Fp8, Parallel
from sophia_mcore.errors import UsageError
from sophia_mcore.model import lvlm
from sophia_mcore.model.names import canonical_parameters
from sophia_mcore.model.sizes import rank_parameters
from sophia_mcore.parallel import backend as backends
from sophia_mcore.parallel import groups as groups_module
from sophia_mcore.parallel.backend import Backend
from sophia_mcore.pretrained.released import spec_of
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.pretrained.tensors import parameters
from sophia_mcore.train.checkpoint import METADATA
from sophia_mcore.train.optim import build_optimizer, require_current_parameters, wrap_ddp
from sophia_mcore.weights.tables import resolve
from tests.cuda_path.shim import shimmed
from tests.support import layouts, pretended_cuda
from tests.support.qwen_models import config_of
from tests.support.real_models import MODELS

ROOT = Path(__file__).resolve().parents[2]
MARKS = ("tensor_model_parallel", "partition_dim", "sequence_parallel", "average_gradients_across_tp_domain")
RECIPES = {"tensorwise": "Float8CurrentScaling", "delayed": "DelayedScaling", "blockwise": "Float8BlockScaling"}


QWEN = {"qwen2_5_vl_7b": "Qwen2.5-VL-7B", "qwen2_5_vl_32b": "Qwen2.5-VL-32B", "qwen3_vl_8b": "Qwen3-VL-8B"}
SMALL = "internvl3_1b"  # for one GPU of 24 GB


def released(name: str) -> ModelSpec:
    """The model of an example; the tokenizers, which the image token comes from, are not there."""
    if name == SMALL:
        found = spec_of(load_config(ROOT / "examples" / name / "run.toml").models.policy)
        assert found is not None
        return replace(found, image_token_id=7)
    return MODELS[name] if name in MODELS else ModelSpec.from_config(config_of(QWEN[name]))


@pytest.mark.parametrize("recipe", ["none", "tensorwise"])
@pytest.mark.parametrize("name", sorted([*MODELS, *QWEN, SMALL]))
def test_every_example_builds_at_its_real_size(name: str, recipe: str) -> None:
    """First rank of every stage, pages never touched: names, shapes and counts are those of the release."""
    spec, config = released(name), load_config(ROOT / "examples" / name / "run.toml")
    config = config.model_copy(update={"fp8": config.fp8.model_copy(update={"recipe": recipe})})
    parallel = config.parallel
    custom = "hf-custom" if spec.language.family == "internlm2" else "hf"
    wanted = {entry.name: tuple(entry.shape) for entry in resolve(spec, custom)}
    seen = set()
    for stage in range(parallel.pipeline):
        rank = stage * parallel.world_size // parallel.pipeline
        with pretended_cuda.fake_world(rank, parallel.world_size), shimmed():
            chosen = pretended_cuda.backend()
            groups = groups_module.initialize(parallel, chosen, gloo_copies=False)
            held = {"vision": 0, "projector": 0, "language": 0}
            for own, parameter, shard in canonical_parameters(lvlm.build(spec, config, groups, chosen), spec):
                assert parameter.dtype == torch.bfloat16, own
                held[own.split(".")[0]] += parameter.numel()
                whole = list(parameter.shape)
                if shard.axis is not None:
                    whole[shard.axis] *= shard.size
                whole[0] -= shard.padding
                assert tuple(whole) == wanted[own], own
                seen.add(own)
            assert held == rank_parameters(spec, parallel)[stage], f"stage {stage}"
    assert seen == set(wanted) and parameters(spec)


def test_attention_without_a_kernel_is_refused_before_anything_is_built() -> None:
    """fp32 under context parallelism: Transformer Engine would say so at the first step."""
    parallel = Parallel(context=2)
    with pretended_cuda.fake_world(0, 2), shimmed():
        chosen = pretended_cuda.backend()
        groups = groups_module.initialize(parallel, chosen, gloo_copies=False)
        with pytest.raises(UsageError, match=r"'float32' with parallel.context = 2"):
            lvlm.build(layouts.tiny_spec(), layouts.tiny_config(parallel, dtype="float32"), groups, chosen)
        assert lvlm.build(layouts.tiny_spec(), layouts.tiny_config(parallel, dtype="bfloat16"), groups, chosen)


LAYOUTS = {
    "one rank": (Parallel(), 0),
    "tp2 sp": (Parallel(tensor=2, sequence_parallel=True), 1),
    "tp2 sp pp2 dp2, first": (Parallel(tensor=2, sequence_parallel=True, pipeline=2, processes=8), 0),
    "tp2 sp pp2 dp2, last": (Parallel(tensor=2, sequence_parallel=True, pipeline=2, processes=8), 7),
    "pp2 vpp2, last": (Parallel(pipeline=2, virtual_pipeline=2), 1),
    "tp2 cp2 pp2": (Parallel(tensor=2, context=2, pipeline=2, sequence_parallel=True), 3),
    "tp4, more than kv heads": (Parallel(tensor=4, sequence_parallel=True), 3),
}


def look(spec: ModelSpec, config: Config, rank: int, chosen: Backend) -> dict[str, Any]:
    """Everything of a rank that the other path must have too."""
    parallel = config.parallel
    with pretended_cuda.fake_world(rank, parallel.world_size), shimmed() if chosen.kind == "cuda" else chosen.adapt():
        groups = groups_module.initialize(parallel, chosen, gloo_copies=False)
        chunks = lvlm.build(spec, config, groups, chosen)
        wrapped = wrap_ddp(chunks, config.train)
        require_current_parameters(wrapped)
        optimizer = build_optimizer(wrapped, config.train)
        model = {f"model{i}": c.module.sharded_state_dict(metadata=dict(METADATA)) for i, c in enumerate(wrapped)}
        state = optimizer.sharded_state_dict(dict(model), is_loading=True, metadata=dict(METADATA))
        kinds = {type(o.optimizer).__name__ for o in getattr(optimizer, "chained_optimizers", [optimizer])}
        return {
            "parameters": {
                name: (tuple(p.shape), p.dtype, p.requires_grad, shard, [getattr(p, m, None) or None for m in MARKS])
                for name, p, shard in canonical_parameters(chunks, spec)
            },
            "sharded": {key: value for part in model.values() for key, value in map(_entry, nested_values(part))},
            "buffers": [
                (b.param_dtype, b.grad_dtype, b.numel, len(b.buckets))
                for chunk in wrapped
                for b in chunk.buffers
            ],
            "optimizer": sorted({v.key for v in nested_values(state) if hasattr(v, "key")}),
            "kinds": kinds,
        }  # fmt: skip


def _entry(value: Any) -> tuple[str, Any]:
    if isinstance(value, ShardedTensor | ShardedObject):
        return value.key, (type(value).__name__, value.global_shape, value.global_offset, value.replica_id)
    return value.key, (type(value).__name__,)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "internlm2"])
def test_transformer_engine_s_parts_are_the_plain_ones(family: str, layout: str) -> None:
    """Names, shapes, marks, gradient buffers, checkpoint keys with offsets and replicas, optimizer keys."""
    parallel, rank = LAYOUTS[layout]
    spec, config = layouts.tiny_spec(family), layouts.tiny_config(parallel, dtype="bfloat16")
    plain = look(spec, config, rank, backends.select(kind="cpu"))
    engine = look(spec, config, rank, pretended_cuda.backend())
    assert plain.pop("kinds") == {"Adam"} and engine.pop("kinds") == {"FusedAdam"}
    for what in plain:
        assert engine[what] == plain[what], what


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_those_of_transformer_engine(recipe: str) -> None:
    from megatron.core.fp8_utils import get_fp8_recipe

    from sophia_mcore.model.language import transformer_config

    config = layouts.tiny_config(Parallel())
    with pretended_cuda.fake_world(0, 1), shimmed():
        chosen = pretended_cuda.backend()
        groups = groups_module.initialize(Parallel(), chosen, gloo_copies=False)
        made = transformer_config(layouts.tiny_spec().language, config.train, Fp8(recipe=recipe), groups, chosen)
        assert type(get_fp8_recipe(made)).__name__.removeprefix("TE") == RECIPES[recipe]
