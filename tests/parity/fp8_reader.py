"""What vLLM's loader makes of FP8 copies: python fp8_reader.py FOLDER...; in the rollout environment, without a GPU.

Prints a JSON line for each: the method that vLLM finds, and for each stored weight whether its module would be FP8.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from safetensors import safe_open
from vllm.model_executor.layers.quantization.modelopt import ModelOptFp8Config
from vllm.model_executor.models import ModelRegistry

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def read_copy(folder: Path) -> dict[str, Any]:
    """The method that vLLM finds, whether its scales are stored, and by stored weight whether its module is FP8."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    given = config["quantization_config"]
    (architecture,) = config["architectures"]
    model: Any = ModelRegistry._try_load_model_cls(architecture)
    mapper = model.hf_to_vllm_mapper
    read = ModelOptFp8Config.from_config(given)
    read.packed_modules_mapping = {**FUSED, **getattr(model, "packed_modules_mapping", {})}
    read.apply_vllm_mapper(mapper)
    found = {}
    with safe_open(folder / "model.safetensors", framework="np") as stored:
        for name in stored.keys():  # noqa: SIM118
            if not name.endswith((".weight_scale", ".input_scale")):
                place = mapper.map_name(name)
                assert place is not None, name
                for fused, parts in FUSED.items():
                    for part in parts:
                        place = place.replace(f".{part}.", f".{fused}.") if ".layers." in place else place
                found[name] = not read.is_layer_excluded(place.rpartition(".")[0])
    method = ModelOptFp8Config.override_quantization_method(given, None)
    return {"method": method, "static": read.is_checkpoint_fp8_serialized, "fp8": found}


if __name__ == "__main__":
    for given in sys.argv[1:]:
        print(json.dumps(read_copy(Path(given))))
