"""What `sophia doctor` says of vLLM on a GPU, asked of the installed vLLM's Python: no device, no kernel."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from sophia_mcore.config.engines import VllmEngine
from sophia_mcore.generate.vllm_arguments import engine_arguments, gpu_subjects
from tests.parity.conftest import rollout_environment

pytestmark = pytest.mark.vllm

ASK = """
import json, sys, types
for name in ("vllm._C_stable_libtorch", "vllm._moe_C_stable_libtorch"):  # compiled for CUDA only
    sys.modules[name] = types.ModuleType(name)
import torch
from vllm.config.vllm import OptimizationLevel, VllmConfig, OPTIMIZATION_LEVEL_TO_CONFIG
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms.cuda import _get_backend_priorities
from vllm.platforms.interface import DeviceCapability

from vllm.v1.sample.ops import topk_topp_sampler as sampler

def chosen(dtype):
    for backend in _get_backend_priorities(False, DeviceCapability(9, 0)):
        try:
            if backend.get_class().supports_dtype(dtype):
                return backend.name
        except ImportError:  # flashinfer, which the CPU's build does not bring: with dtypes of FlashAttention
            assert backend.name == "FLASHINFER"

level = EngineArgs(model="m").optimization_level
class Cuda:
    is_cuda = staticmethod(lambda: True)
sampler.current_platform, sampler.register_top_k_top_p_warmups = Cuda, lambda: None
sampler.flashinfer_sampler_supported = lambda: True
def path(mode):
    return sampler.TopKTopPSampler(mode).forward.__name__
def seeded():
    made = sampler.TopKTopPSampler("raw_logprobs")
    made.forward_native = lambda *_: "native"
    sampler.flashinfer_sample = lambda *_: "flashinfer"
    x = torch.zeros(1, 4)
    return [found if isinstance(found, str) else found[0] for found in (
        made.forward(x, {}, None, torch.ones(1)), made.forward(x, {0: torch.Generator()}, None, torch.ones(1)))]
print(json.dumps({
    "bfloat16": chosen(torch.bfloat16), "float32": chosen(torch.float32),
    "graphs": OPTIMIZATION_LEVEL_TO_CONFIG[level]["compilation_config"]["cudagraph_mode"].name, "level": level.name,
    "raw": path("raw_logprobs"), "processed": path("processed_logprobs"), "seeded": seeded(),
    "memory": EngineArgs(model="m").gpu_memory_utilization,
}))
"""


@pytest.mark.slow
def test_the_doctor_s_words_are_vllm_s_own_choices(rollout_python: Path) -> None:
    done = subprocess.run([rollout_python, "-c", ASK], env=rollout_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    given = engine_arguments(VllmEngine(dtype="bfloat16"), Path("model"), {}, on_cpu=False)
    short = engine_arguments(VllmEngine(dtype="float32"), Path("model"), {}, on_cpu=False)
    assert found["bfloat16"] == "FLASH_ATTN" and "FlashAttention" in gpu_subjects(given)["attention"]
    assert found["float32"] == "TRITON_ATTN" and "Triton" in gpu_subjects(short)["attention"]
    assert "attention_backend" not in given and "compilation_config" not in given, "left to vLLM"
    assert (found["level"], found["graphs"]) == ("O2", "FULL_AND_PIECEWISE")
    assert given["logprobs_mode"] == "processed_logprobs"
    assert (found["raw"], found["processed"]) == ("forward_cuda", "forward_native"), "FlashInfer has no such log-probs"
    assert found["seeded"] == ["flashinfer", "native"], "FlashInfer has no seed for each request"
