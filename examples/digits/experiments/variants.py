"""What is compared: settings beside run.toml's, by group."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError

CONFIG = Path(__file__).parents[1] / "run.toml"
REFERENCE = "sophia"  # what differences are taken to
AT_ONCE = 2
ALL = ("reward.require_correct=false", "reward.use_visual_reward=false", "reward.select=random")


@dataclass(frozen=True)
class Variant:
    """Settings beside run.toml's, and how much of the seed's rollouts it may see."""

    sets: tuple[str, ...] = ()
    captions: int = 4
    trajectories: int = 4
    trained: bool = True


GROUPS: dict[str, dict[str, Variant]] = {
    "ladder": {
        "base": Variant(trained=False),
        "random_of_d": Variant(ALL),
        "no_visual_reward": Variant(("reward.use_visual_reward=false",)),
        "no_shortest_rule": Variant(("reward.select=random",)),
        REFERENCE: Variant(),
    },
    "objectives": {
        name: Variant((f"objective.loss.name={name}",))
        for name in ("dft", "awr", "topr", "luffy", "grpo", "gspo", "cispo")
    }
    | {
        f"{name}_reference": Variant((f"objective.loss.name={name}", "objective.behaviour=reference"))
        for name in ("topr", "grpo")
    },
    "precision": {
        "bfloat16": Variant(("train.dtype=bfloat16",)),
    }
    | {
        f"fp8_{recipe}": Variant(
            ("train.dtype=bfloat16", f"fp8.recipe={recipe}", "fp8.backend=emulated", "fp8.check.skip=true")
        )
        for recipe in ("tensorwise", "delayed", "blockwise")
    },
    "halves": {"k_half": Variant(captions=2), "n_half": Variant(trajectories=2)},
}


def variants(options: argparse.Namespace) -> dict[str, Variant]:
    """The variants that were asked for, in that order, and the one that all are compared with.

    Raises UsageError naming an unknown one.
    """
    every = {name: variant for group in options.groups for name, variant in GROUPS[group].items()}
    unknown = sorted(set(options.only or ()) - set(every))
    if unknown:
        raise UsageError(f"--only {unknown[0]}: not among {', '.join(every)}")
    return {REFERENCE: Variant()} | {name: every[name] for name in options.only or every}


def seed_config(seed: int, folder: Path, sets: Iterable[str] = ()) -> Config:
    """run.toml for one seed: one process, one checkpoint, all validation questions."""
    fixed = (
        f"run.seed={seed}", f"run.name={folder.name}", f"run.folder={json.dumps(str(folder))}", "parallel.tensor=1",
        "parallel.pipeline=1", "train.save_every_steps=1000000", "train.threads_per_process=1", "track.enabled=false",
        "evaluate.questions_per_unit=250",
        'evaluate.questions=[{kind="jsonl", path="runs/digits/data/validation.jsonl", name="digits-validation"}]',
    )  # fmt: skip
    return load_config(CONFIG, sets=[*fixed, *sets])
