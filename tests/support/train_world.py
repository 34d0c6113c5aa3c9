"""A run folder that is ready to train: tiny policy, images, kept trajectories, configuration."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from sophia_mcore.config import dump_toml
from sophia_mcore.config.schema import Config
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Kept
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import write_shard
from sophia_mcore.track.metrics import read_metrics
from sophia_mcore.train import loop, session
from tests.support import configs, tiny_models
from tests.support.pictures import smooth

SAMPLES = 24


def make_policy(folder: Path) -> Path:
    """A random InternVL of two layers with transformers' native layout."""
    return tiny_models.save_internvl(folder)


def make_config(folder: Path, policy: Path, **sections: dict[str, Any]) -> Config:
    """Configuration of a run in ``folder``; ``sections`` replace single settings."""
    values: dict[str, dict[str, Any]] = {
        "run": {"name": "tiny"},
        "batch": {"sequence_length_tokens": 192, "max_tiles": 1, "long_thinking_prompt_file": folder / "prompt.txt"},
        "train": {
            "dtype": "float32",
            "steps": 6,
            "global_batch_samples": 4,
            "learning_rate": 5e-3,
            "save_every_steps": 2,
            "measure_samples": 8,
            "threads_per_process": 1,
        },
        "track": {"enabled": False},
    }
    return configs.make_config(folder, policy, policy, **configs.merged(values, sections))


def make_run(folder: Path, policy: Path, **sections: dict[str, Any]) -> tuple[Config, RunFolder]:
    """The run folder with everything that training reads."""
    config = make_config(folder, policy, **sections)
    run = RunFolder(folder)
    folder.mkdir()
    config.batch.long_thinking_prompt_file.write_text("Think.")
    digests = ImageStore(run.images).add_many(smooth(40, 40, seed=i) for i in range(6))
    rng = random.Random(1)
    kept = [
        Kept(
            trajectory_id=f"train-{i}.k0.n0",
            question_id=f"train-{i}",
            caption_id="k0",
            images=(digests[i % 6],) if i % 4 else (),
            question=f"What is {i}?",
            response=f"<think>first {i}, third {'2 ' * rng.randint(1, 9)}</think>It is {i}.",
            token_count=5,
            outcome=1.0,
            caption_reward=1.0,
        )
        for i in range(SAMPLES)
    ]
    run.round(0).path.mkdir(parents=True)
    write_shard(run.round(0).kept_file, kept, Kept)
    run.config_file.write_text(dump_toml(config))
    return config, run


def copy_run(run: RunFolder, folder: Path, policy: Path, **sections: dict[str, Any]) -> tuple[Config, RunFolder]:
    """A run folder as it stands, copied: several tests go on from the same interrupted training."""
    shutil.copytree(run.path, folder)
    config = make_config(folder, policy, **sections)
    RunFolder(folder).config_file.write_text(dump_toml(config))
    return config, RunFolder(folder)


def train(config: Config, run: RunFolder, before_step: Callable[[Any, int], None] | None = None) -> bool:
    """Train round 0 on this rank; ``before_step(job, step)`` is called in front of every update."""
    if before_step is not None:
        plain = loop.train_step

        def step(job: Any, batches: Any, index: int, stop: bool) -> Any:
            before_step(job, index)
            return plain(job, batches, index, stop)

        loop.train_step = step  # this process is a forked rank: nobody else sees it
    return session.train_round(Round(config, run, 0), NoProgress())


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every whole tensor of a distributed checkpoint, parameters and optimizer state, by name."""
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        dcp_to_torch_save(checkpoint, file.name)
        state = torch.load(file.name, weights_only=False)
    return {name: value for name, value in _flat(state, "") if torch.is_tensor(value)}


def _flat(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for name, child in tree.items():
            yield from _flat(child, f"{prefix}{name}.")
    else:
        yield prefix.removesuffix("."), tree


def losses(run: RunFolder) -> list[float]:
    """The loss of every step, in the order of the log."""
    return [line["loss"] for line in read_metrics(run.round(0).train / "metrics.jsonl") if "loss" in line]
