"""A run folder that is ready to train: tiny policy, images, kept trajectories, configuration."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from sophia_mcore.config import dump_toml
from sophia_mcore.config.schema import Config
from sophia_mcore.records import Kept
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import write_shard

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "parity"))
import tiny_models

SAMPLES = 24


def make_policy(folder: Path) -> Path:
    """A random InternVL of two layers with transformers' native layout."""
    return tiny_models.save_internvl(folder)


def make_config(folder: Path, policy: Path, **sections: dict[str, Any]) -> Config:
    """Configuration of a run in ``folder``; ``sections`` replace single settings."""
    values: dict[str, dict[str, Any]] = {
        "run": {"name": "tiny", "folder": folder},
        "models": {"policy": policy, "reasoner": policy},
        "data": {"questions": [{"kind": "jsonl", "path": "unused.jsonl"}]},
        "batch": {"sequence_length_tokens": 1024, "max_tiles": 2},
        "train": {
            "dtype": "float32",
            "steps": 6,
            "global_batch_samples": 8,
            "learning_rate": 5e-3,
            "save_every_steps": 2,
            "measure_samples": 8,
            "threads_per_process": 1,
        },
        "track": {"enabled": False},
    }
    for name, settings in sections.items():
        values[name] = values.get(name, {}) | settings
    return Config.model_validate(values)


def make_run(folder: Path, policy: Path, **sections: dict[str, Any]) -> tuple[Config, RunFolder]:
    """The run folder with everything that training reads."""
    config = make_config(folder, policy, **sections)
    run = RunFolder(folder)
    digests = ImageStore(run.images).add_many(tiny_models.picture(40 + 30 * (i % 2), 40, seed=i) for i in range(6))
    rng = random.Random(1)
    kept = [
        Kept(
            trajectory_id=f"train-{i}.k0.n0",
            question_id=f"train-{i}",
            caption_id="k0",
            images=(digests[i % 6],) if i % 4 else (),
            question=f"What is {i}?",
            response=f"<think>first {i}, third {'2 ' * rng.randint(1, 30)}</think>It is {i}.",
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
