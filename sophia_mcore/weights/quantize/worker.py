"""Quantizes a model to FP8 with nvidia-modelopt. `quantize.fp8` starts this in the environment that has modelopt.

    python -m sophia_mcore.weights.quantize.worker MODEL_DIR OUT_DIR JOB.json

JOB.json holds "texts" (the calibration set) and "kept" (patterns of modules outside of the language model). The linear
layers of the language model become FP8 (E4M3, one scale per tensor for weights and for inputs). Everything else is
unchanged. The process needs memory for the whole model.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError, run_command
from sophia_mcore.pretrained.families import family_of_folder

MAX_TOKENS = 2048  # longer calibration texts are cut


def quantize(model_dir: Path, out_dir: Path, texts: list[str], kept: list[str]) -> None:
    """Load the model, calibrate it on the texts, quantize and write it. Raises SophiaError if no text has a token."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

    kind: Any = AutoModelForImageTextToText if family_of_folder(model_dir) else AutoModelForCausalLM
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = kind.from_pretrained(model_dir, dtype="auto").to(device).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(model_dir / "tokenizer.json"))
    samples = [tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"] for text in texts]
    samples = [ids for ids in samples if ids]
    if not samples:
        raise SophiaError("no calibration text has a token")
    mtq.quantize(model, fp8_config(mtq.FP8_DEFAULT_CFG, kept), forward_loop=calibration(samples, device))
    export_hf_checkpoint(model, export_dir=out_dir)


def fp8_config(default: dict[str, Any], kept: list[str]) -> dict[str, Any]:
    """modelopt's FP8 preset, but embedding, output layer and modules that match ``kept`` are not quantized."""
    config = copy.deepcopy(default)
    names = (*kept, "*lm_head*", "*embed_tokens*")
    config["quant_cfg"] = [*config["quant_cfg"], *({"quantizer_name": name, "enable": False} for name in names)]
    return config


def calibration(samples: list[list[int]], device: str) -> Callable[[Any], None]:
    """A function that runs each sample through the language model, so that modelopt records the ranges of inputs."""
    import torch

    def forward(model: Any) -> None:
        with torch.no_grad():
            for ids in samples:
                model(input_ids=torch.tensor([ids], device=device))

    return forward


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("job", type=Path)
    options = parser.parse_args()
    job = json.loads(options.job.read_text())
    return run_command("quantize", lambda: quantize(options.model_dir, options.out_dir, job["texts"], job["kept"]))


if __name__ == "__main__":
    raise SystemExit(main())
