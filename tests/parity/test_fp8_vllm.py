"""FP8 copies of every family as vLLM's loader reads them: which modules it takes for FP8 is what the copy stores so."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from sophia_mcore.progress import NoProgress
from sophia_mcore.weights.conversion import Conversion
from sophia_mcore.weights.convert import convert
from sophia_mcore.weights.quantize.fp8 import QUANTIZER, check_fp8
from tests.parity.conftest import ROOT, rollout_environment
from tests.support.fp8_copies import copy_of
from tests.support.tiny_models import save_internvl
from tests.support.tiny_qwen import save_qwen_vl

MODELS: dict[str, Callable[[Path], Path]] = {
    "internvl": save_internvl,
    "Qwen2.5-VL": save_qwen_vl,
    "Qwen2.5-VL, tied": lambda folder: save_qwen_vl(folder, tied=True),
    "Qwen3-VL": lambda folder: save_qwen_vl(folder, deep=True),
    "Qwen3-VL, tied": lambda folder: save_qwen_vl(folder, deep=True, tied=True),
}


def assert_vllm_reads(copies: list[Path], rollout_python: Path) -> None:
    command = [rollout_python, Path(__file__).with_name("fp8_reader.py"), *copies]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=rollout_environment())
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for copy, read in zip(copies, lines, strict=True):
        assert read["method"] == "modelopt" and read["static"] is True
        kinds = _stored(copy)
        matrices = {name for name in read["fp8"] if kinds[name][1] == 2}
        stored_so = {name for name in matrices if kinds[name][0] == "F8_E4M3"}
        assert stored_so == {name for name in matrices if read["fp8"][name]} and len(stored_so) == 14, copy
        scales = {n.removesuffix("weight") + scale for n in stored_so for scale in ("weight_scale", "input_scale")}
        assert kinds.keys() == read["fp8"].keys() | scales


def _stored(folder: Path) -> dict[str, tuple[str, int]]:
    """(type, dimensions) of each tensor."""
    with safe_open(folder / "model.safetensors", framework="pt") as stored:
        parts = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118
        return {name: (part.get_dtype(), len(part.get_shape())) for name, part in parts.items()}


@pytest.mark.vllm
def test_vllm_reads_the_format_of_copies(rollout_python: Path, tmp_path: Path) -> None:
    copies = []
    for name, make in MODELS.items():
        source = make(tmp_path / name)
        copies.append(copy_of(source, tmp_path / f"{name} copy"))
        found = check_fp8(source, copies[-1], NoProgress())
        assert len(found.quantized) == 14 and 0.5 < found.worst <= 1.0 + 2.0**-7
        assert not any("visual" in tensor or "vision" in tensor for tensor in found.quantized)
    assert_vllm_reads(copies, rollout_python)


@pytest.mark.vllm
@pytest.mark.skipif(
    not (ROOT / QUANTIZER).exists(), reason="needs .venv-modelopt (docs/weights.md says how to make it)"
)
def test_vllm_reads_modelopt_s_copies(rollout_python: Path, tmp_path: Path) -> None:
    texts, copies = tmp_path / "texts", []
    texts.write_text("What is it?\nIs it 3, 7?\nfirst\n")
    for name, make in MODELS.items():
        copies.append(tmp_path / f"{name} copy")
        convert(Conversion(make(tmp_path / name), copies[-1], "fp8", calibration=texts, quantizer=ROOT / QUANTIZER))
        proof = json.loads((copies[-1] / "conversion.json").read_text())
        assert len(proof["quantized"]) == 14 and proof["worst_error_of_bound"] <= 1.0 + 2.0**-7
        ours = copy_of(tmp_path / name, tmp_path / f"{name} by hand")
        made, by_hand = (json.loads((folder / "config.json").read_text()) for folder in (copies[-1], ours))
        assert made["quantization_config"] == by_hand["quantization_config"]
    assert_vllm_reads(copies, rollout_python)
