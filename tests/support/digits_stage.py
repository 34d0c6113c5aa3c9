"""A small on-policy stage of the digits' base model with a real vLLM: the model answers some questions right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from examples.digits import world
from sophia_mcore.store.layout import RunFolder

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "examples" / "digits" / "base" / "policy"
SYSTEM = "Think step by step."

_CONFIG = """
[run]
name = "stage"
folder = "run"
[models]
policy = "{policy}"
reasoner = "{policy}" # not asked
[environments]
rollout = "{rollout}"
[[data.questions]]
kind = "jsonl"
path = "data/train.jsonl"
[batch]
sequence_length_tokens = 256
max_tiles = 1
long_thinking_prompt_file = "system.txt"
[score]
workers = 1
[train]
dtype = "float32"
threads_per_process = 1
[track]
enabled = false
[rl]
questions_per_batch = 12
group = 4
samples_per_update = 48
max_tokens = 48
questions_per_unit = 6
engine = {{ kind = "vllm", dtype = "float32", threads = 1, kv_cache_mib = 64, max_model_length_tokens = 256 }}
"""


def make_stage(folder: Path, rollout_python: Path, questions: int, rl: str) -> RunFolder:
    """FOLDER/run.toml and its questions; ``rl``: further lines of [rl]. Returns the run folder, not there yet."""
    world.write_questions("train", questions, folder / "data")
    (folder / "system.txt").write_text(SYSTEM)
    (folder / "run.toml").write_text(_CONFIG.format(policy=POLICY, rollout=rollout_python) + rl)
    return RunFolder(folder / "run")


def start(folder: Path, command: str = "rl", *arguments: str) -> subprocess.Popen[str]:
    """`sophia COMMAND run.toml` in ``folder``, as a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "sophia_mcore.cli", command, "run.toml", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, process_group=0,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a good end; returns what it said."""
    output, _ = process.communicate(timeout=1500)
    assert process.returncode == 0, output[-6000:]
    return output
