"""FP8 copies of small models made with torch alone, as nvidia-modelopt 0.47 writes them for each family."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LINEAR = re.compile(r"(?<!visual\.)\blayers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight$")
# "ignore" of config.json as seen from modelopt 0.47.0 on models of these kinds
IGNORED = {
    "internvl": [
        "language_model.lm_head", "language_model.model.embed_tokens", "multi_modal_projector*", "vision_tower*",
    ],
    "qwen2_5_vl": ["lm_head", "model.embed_tokens", "visual*"],
    "qwen3_vl": ["lm_head", "model.language_model.embed_tokens", "model.visual*"],
}  # fmt: skip


def is_linear(name: str) -> bool:
    """Whether a stored weight becomes FP8: the language model's seven linears of each layer."""
    return LINEAR.search(name) is not None and not re.search(r"vision_tower|vision_model", name)


def quantized(source: Path) -> dict[str, torch.Tensor]:
    """Tensors of a copy."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not is_linear(name):
            state[name] = tensor
            continue
        scale = tensor.float().abs().max() / 448.0
        state[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        state[name.removesuffix("weight") + "weight_scale"] = scale
        state[name.removesuffix("weight") + "input_scale"] = torch.tensor(0.1)
    return state


def copy_of(source: Path, folder: Path) -> Path:
    """A whole folder, with the configuration that names the format."""
    shutil.copytree(source, folder)
    save_file(quantized(source), folder / "model.safetensors")
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    values = {"dynamic": False, "num_bits": 8, "type": "float"}
    group = {"input_activations": values, "weights": values, "targets": ["Linear"]}
    config["quantization_config"] = {
        "config_groups": {"group_0": group}, "ignore": IGNORED[config["model_type"]], "quant_algo": "FP8",
        "producer": {"name": "modelopt", "version": "0.47.0"}, "quant_method": "modelopt",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder
