"""The digits example on one GPU: NCCL, one rank, bf16; prints report.json's evaluation and the training's summary.

python -m tests.gpu.digits OUT.json [--engine transformers|vllm]

Begins from an empty run folder: `sophia run` would go on with what an earlier call left in runs/digits-gpu.
Needs the example's models (made here if missing; minutes on the CPU). `transformers` samples where vLLM for CUDA is not
installed. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tomli_w

from sophia_mcore.config import dump_toml, load_config
from tests.gpu.gpu_world import require_gpu

ROOT = Path(__file__).resolve().parents[2]


def configuration(engine: str, folder: Path) -> dict[str, Any]:
    """The example's configuration with one rank, bf16 and an engine that this machine has."""
    import tomllib

    values = tomllib.loads(dump_toml(load_config(ROOT / "examples" / "digits" / "run.toml")))
    values["run"] |= {"name": "digits-gpu", "folder": str(folder)}
    values["parallel"] = {}
    values["train"] |= {"dtype": "bfloat16"}
    values["train"].pop("threads_per_process", None)
    values["environments"]["rollout"] = sys.executable
    if engine == "transformers":
        for section in ("captions", "reasoning", "evaluate"):
            values[section]["engine"] = {"kind": "transformers", "max_sequences": 128}
    return values


def empty(folder: Path) -> None:
    """Remove what an earlier call left."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.parent.mkdir(exist_ok=True)


def results(folder: Path, start: float) -> dict[str, Any]:
    """What the run wrote; ends in one line if a file is older than ``start`` (seconds since 1970): an earlier run's."""
    files = {"report": folder / "report.json", "train": folder / "round-0" / "train" / "summary.json"}
    for file in files.values():
        if file.stat().st_mtime < start:
            raise SystemExit(f"error: {file} is older than this run: remove {folder} and run again")
    report, summary = (json.loads(file.read_text()) for file in files.values())
    return {"seconds": round(time.time() - start, 1), "evaluation": report["evaluation"], "train": summary}


def main() -> None:
    """Prepare, run, collect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    options = parser.parse_args()
    require_gpu()
    if not (ROOT / "runs" / "digits" / "data").is_dir():
        subprocess.run([sys.executable, "examples/digits/world.py"], check=True, cwd=ROOT)
    folder = ROOT / "runs" / "digits-gpu"
    empty(folder)
    config = folder.with_suffix(".toml")
    config.write_text(tomli_w.dumps(configuration(options.engine, folder)))
    start = time.time()
    subprocess.run([sys.executable, "-m", "sophia_mcore.cli", "run", str(config)], check=True, cwd=ROOT)
    result = results(folder, start)
    options.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
