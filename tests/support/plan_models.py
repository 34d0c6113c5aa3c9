"""Real models for the planner as configurations without weights, and the figures that others published."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Fp8, Objective, Parallel, Train
from sophia_mcore.plan.cost import model_flops, step_time
from sophia_mcore.plan.hardware import load_gpu
from sophia_mcore.plan.memory import Row, Setting
from sophia_mcore.pretrained.spec import LanguageSpec, ModelSpec

VISION = {
    "300m": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm",
    },
    "6b": {
        "hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25, "intermediate_size": 12800,
        "qkv_bias": False, "qk_normalization": True, "norm_type": "rms_norm",
    },
}  # fmt: skip
LANGUAGE = {
    "internvl3-8b": ("300m", 3584, 28, 28, 4, 18944),
    "internvl3-38b": ("6b", 5120, 64, 40, 8, 27648),
}


def write_config(folder: Path, model: str, reasoner: bool = True) -> Path:
    """A run configuration beside model folders that have nothing but a config.json."""
    tower, hidden, layers, heads, groups, mlp = LANGUAGE[model]
    text = {
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "intermediate_size": mlp, "vocab_size": 151674,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768, "tie_word_embeddings": False,
    }  # fmt: skip
    policy = {
        "architectures": ["InternVLChatModel"], "downsample_ratio": 0.5, "force_image_size": 448, "llm_config": text,
        "vision_config": {**VISION[tower], "image_size": 448, "patch_size": 14, "layer_norm_eps": 1e-6},
    }  # fmt: skip
    for name, config in {"policy": policy, "reasoner": text}.items():
        (folder / name).mkdir(parents=True)
        if name == "policy" or reasoner:
            (folder / name / "config.json").write_text(json.dumps(config))
    path = folder / "run.toml"
    path.write_text(
        f'[run]\nname = "x"\nfolder = "run"\n[models]\npolicy = "{folder}/policy"\nreasoner = "{folder}/reasoner"\n'
        '[[data.questions]]\nkind = "jsonl"\npath = "questions.jsonl"\n'
    )
    return path


def llama(hidden: int, layers: int, heads: int, mlp: int, vocabulary: int = 128_256) -> ModelSpec:
    """A text model with 8 key-value heads of 128."""
    language = LanguageSpec(
        family="llama", num_layers=layers, hidden_size=hidden, intermediate_size=mlp, num_attention_heads=heads,
        num_key_value_heads=8, head_dim=128, vocab_size=vocabulary, norm_eps=1e-5, rope_theta=5e5,
        max_positions=131_072, qkv_bias=False, qk_norm=False, tied_embeddings=False,
    )  # fmt: skip
    return ModelSpec(vision=None, projector=None, language=language, layout="hf", image_token_id=None)


@dataclass(frozen=True)
class Published:
    """A published training run. `overlap`: share of tensor-parallel traffic that its recipe hides."""

    name: str
    spec: ModelSpec
    gpu: str
    gpus: int
    layout: dict[str, Any]
    length: int
    batch: int  # rows of `length` tokens
    fp8: str
    tflops: float  # per GPU
    overlap: float = 0.0
    fitted: bool = False

    def estimate(self) -> float:
        """TFLOP/s per GPU of the planner."""
        parallel = Parallel(**self.layout, sequence_parallel=self.layout.get("tensor", 1) > 1)
        data = self.gpus // (parallel.tensor * parallel.pipeline * parallel.context)
        row = Row(tokens=self.length, squares=self.length**2, targets=self.length, pictures=0)
        setting = Setting(
            spec=self.spec, parallel=parallel, train=Train(), fp8=Fp8(recipe=self.fp8), objective=Objective(), row=row,
            data=data,
            micro_batches=self.batch // data,
        )  # fmt: skip
        device = replace(load_gpu(self.gpu), tensor_overlap=self.overlap)
        return self.batch * model_flops(self.spec, row) / step_time(setting, device).total / self.gpus / 1e12

    def error(self) -> float:
        """Relative error of the estimate."""
        return self.estimate() / self.tflops - 1


LLAMA_8B, LLAMA_70B = llama(4096, 32, 32, 14336), llama(8192, 80, 64, 28672)
# 126 layers and two stage ends share the stages evenly in the published run: counted as 128 layers here.
LLAMA_405B = llama(16384, 128, 128, 53248)
QWEN_32B = llama(5120, 64, 40, 27648, 152_064)
SEVENTY = {"tensor": 4, "pipeline": 8, "virtual_pipeline": 5}
LARGE = {"tensor": 8, "pipeline": 8, "virtual_pipeline": 8, "context": 2}
HIDDEN = 0.6
PUBLISHED = [
    Published("8B, 8 H100, FP8", LLAMA_8B, "h100", 8, {}, 8192, 128, "tensorwise", 744, fitted=True),
    Published("70B SFT, 32 H100, FP8", LLAMA_70B, "h100", 32, {"tensor": 4, "pipeline": 4, "virtual_pipeline": 5},
              4096, 32, "tensorwise", 710, HIDDEN, fitted=True),
    Published("70B, 64 H100, FP8, batch 256", LLAMA_70B, "h100", 64, SEVENTY, 8192, 256, "tensorwise", 731, HIDDEN),
    Published("70B, 64 H100, FP8, batch 128", LLAMA_70B, "h100", 64, SEVENTY, 8192, 128, "tensorwise", 719, HIDDEN),
    Published("405B, 1024 H100, FP8, batch 512", LLAMA_405B, "h100", 1024, LARGE, 8192, 512, "tensorwise", 737, HIDDEN),
    Published("405B, 1024 H100, FP8", LLAMA_405B, "h100", 1024, LARGE, 8192, 1536, "tensorwise", 824, HIDDEN),
    Published("32B, 8 H200, bf16", QWEN_32B, "h200", 8, {"tensor": 4, "pipeline": 2}, 4096, 128, "none", 420),
]  # fmt: skip
