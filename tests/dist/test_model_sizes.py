"""Production layouts on meta tensors at real size: every rank's parameters, counted by part against the releases."""

from __future__ import annotations

from typing import Any

import harness  # noqa: F401  (imports megatron-core once)
import layouts
import pytest
import torch
import torch.distributed as dist
from harness import run
from torch.testing._internal.distributed.fake_pg import FakeStore

from sophia_mcore.config.schema import Parallel
from sophia_mcore.model import lvlm
from sophia_mcore.model.names import canonical_parameters
from sophia_mcore.model.sizes import parameters, rank_parameters
from sophia_mcore.model.spec import LanguageSpec, ModelSpec, ProjectorSpec, VisionSpec
from sophia_mcore.parallel import backend as backends
from sophia_mcore.parallel import groups as groups_module


def vision(six_billion: bool) -> VisionSpec:
    hidden, layers, heads, ffn = (3200, 45, 25, 12800) if six_billion else (1024, 24, 16, 4096)
    return VisionSpec(
        hidden_size=hidden, num_layers=layers, num_attention_heads=heads, intermediate_size=ffn, image_size=448,
        patch_size=14, num_channels=3, qkv_bias=not six_billion, qk_norm=six_billion,
        norm_type="rms_norm" if six_billion else "layer_norm", norm_eps=1e-6,
    )  # fmt: skip


def spec(
    family: Any, six_billion: bool, hidden: int, layers: int, heads: int, kv: int, ffn: int, vocab: int
) -> ModelSpec:
    tower = vision(six_billion)
    language = LanguageSpec(
        family=family, num_layers=layers, hidden_size=hidden, intermediate_size=ffn, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=128, vocab_size=vocab, norm_eps=1e-6, rope_theta=1e6, max_positions=32768,
        qkv_bias=family == "qwen2", qk_norm=family == "qwen3", tied_embeddings=False,
    )  # fmt: skip
    projector = ProjectorSpec(shuffle=2, input_size=4 * tower.hidden_size, output_size=hidden)
    return ModelSpec(vision=tower, projector=projector, language=language, layout="hf", image_token_id=vocab - 7)


MODELS = {
    "internvl3_38b": (spec("qwen2", True, 5120, 64, 40, 8, 27648, 151674), 38.39),
    "internvl3_8b": (spec("qwen2", False, 3584, 28, 28, 4, 18944, 151674), 7.94),
    "internvl2_5_8b": (spec("internlm2", False, 4096, 32, 32, 8, 14336, 92553), 8.08),
    "internvl3_5_8b": (spec("qwen3", False, 4096, 36, 32, 8, 12288, 151678), 8.53),
    "internvl3_5_38b": (spec("qwen3", True, 5120, 64, 64, 8, 25600, 151678), 38.39),
}
LAYOUTS = {
    "tp8 pp4 uneven": Parallel(tensor=8, pipeline=4, sequence_parallel=True, layers_on_first_stage=10, processes=32),
    "tp4 pp2 cp2": Parallel(tensor=4, pipeline=2, context=2, sequence_parallel=True, processes=16),
    "tp4 pp2 vpp2": Parallel(tensor=4, pipeline=2, virtual_pipeline=2, sequence_parallel=True, processes=8),
    "tp8": Parallel(tensor=8, sequence_parallel=True, processes=8),
}


def count(parallel: Parallel, model: ModelSpec, rank: int) -> dict[str, int]:
    """Parameters by part that one rank of a layout builds; no other rank is needed."""
    dist.destroy_process_group()
    dist.init_process_group("fake", rank=rank, world_size=parallel.processes or 1, store=FakeStore())
    backend = backends.select(kind="cpu")
    with backend.adapt():
        groups = groups_module.initialize(parallel, backend, gloo_copies=False)
        with torch.device("meta"):
            chunks = lvlm.build(model, layouts.tiny_config(parallel), groups, backend)
    held = {"vision": 0, "projector": 0, "language": 0}
    for name, parameter, shard in canonical_parameters(chunks, model):
        assert parameter.is_meta
        held[name.split(".")[0]] += parameter.numel()
        if shard.axis is not None:
            assert parameter.shape[shard.axis] % shard.blocks == 0
    return held


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_every_stage_holds_what_the_release_has(model: str, layout: str) -> None:
    built, billions = MODELS[model]
    parallel = LAYOUTS[layout]
    if built.language.num_attention_heads % parallel.tensor:  # 28 heads
        parallel = parallel.model_copy(update={"tensor": 4, "processes": (parallel.processes or 1) // 2})
    if parallel.layers_on_first_stage is not None:  # the tower's stage takes fewer language layers
        first = {64: 10, 28: 4, 32: 5, 36: 6}[built.language.num_layers]
        parallel = parallel.model_copy(update={"layers_on_first_stage": first})
    assert round(sum(parameters(built).values()) / 1e9, 2) == billions
    world, wanted = parallel.processes or 1, rank_parameters(built, parallel)
    for stage in range(parallel.pipeline):
        (held,) = run(count, 1, parallel, built, stage * world // parallel.pipeline)
        assert held == wanted[stage], f"stage {stage}"
    padding = sum(w["language"] for w in wanted) * parallel.tensor - parameters(built)["language"]
    norms = built.language.num_layers * (2 * built.language.hidden_size + 256 * built.language.qk_norm)
    replicated = (parallel.tensor - 1) * (norms + built.language.hidden_size)
    assert 0 <= padding - replicated < 2 * 128 * built.language.hidden_size, "ranks hold the model once, plus padding"
