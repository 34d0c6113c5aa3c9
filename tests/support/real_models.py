"""The released models at their real sizes, and what one rank of a layout builds of them, on meta tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from sophia_mcore.config.schema import Config
from sophia_mcore.model import lvlm
from sophia_mcore.model.names import canonical_parameters
from sophia_mcore.parallel import backend as backends
from sophia_mcore.parallel import groups as groups_module
from sophia_mcore.pretrained.internvl.spec import ProjectorSpec, VisionSpec
from sophia_mcore.pretrained.spec import LanguageSpec, ModelSpec
from tests.support import harness  # noqa: F401  (imports megatron-core once)


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


# by the folder in examples/; the Qwen3 ones from the base models' configs and the 9 added tokens
MODELS = {
    "internvl2_5_8b": spec("internlm2", False, 4096, 32, 32, 8, 14336, 92553),
    "internvl2_5_38b": spec("qwen2", True, 5120, 64, 40, 8, 27648, 151674),
    "internvl3_8b": spec("qwen2", False, 3584, 28, 28, 4, 18944, 151674),
    "internvl3_38b": spec("qwen2", True, 5120, 64, 40, 8, 27648, 151674),
    "internvl3_5_8b": spec("qwen3", False, 4096, 36, 32, 8, 12288, 151678),
    "internvl3_5_38b": spec("qwen3", True, 5120, 64, 64, 8, 25600, 151678),
}
BILLIONS = {  # vision, projector, language, all
    "internvl2_5_8b": (0.30, 0.03, 7.74, 8.08),
    "internvl2_5_38b": (5.54, 0.09, 32.76, 38.39),
    "internvl3_8b": (0.30, 0.03, 7.61, 7.94),
    "internvl3_38b": (5.54, 0.09, 32.76, 38.39),
    "internvl3_5_8b": (0.30, 0.03, 8.19, 8.53),
    "internvl3_5_38b": (5.54, 0.09, 32.76, 38.39),
}


def count(config: Config, model: ModelSpec, rank: int) -> dict[str, int]:
    """Parameters by part that one rank of the config's layout builds; no other rank is needed."""
    parallel = config.parallel
    dist.destroy_process_group()
    dist.init_process_group("fake", rank=rank, world_size=parallel.processes or 1, store=FakeStore())
    backend = backends.select(kind="cpu")
    with backend.adapt():
        groups = groups_module.initialize(parallel, backend, gloo_copies=False)
        with torch.device("meta"):
            chunks = lvlm.build(model, config, groups, backend)
    held = {"vision": 0, "projector": 0, "language": 0}
    for name, parameter, shard in canonical_parameters(chunks, model):
        assert parameter.is_meta
        held[name.split(".")[0]] += parameter.numel()
        if shard.axis is not None:
            assert parameter.shape[shard.axis] % shard.blocks == 0
    return held
