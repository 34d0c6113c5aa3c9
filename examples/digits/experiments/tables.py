"""What came out: pass@1 by variant with intervals, and how good the kept trajectories are."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from examples.digits import world
from examples.digits.experiments.stages import right_answers
from examples.digits.experiments.variants import REFERENCE, variants
from sophia_mcore.records import Caption, Kept
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_shard, shard_files


def table(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One row per variant and protocol: mean over seeds, spread, and the paired difference to `REFERENCE`.

    Intervals are 95%, by resampling the questions (1,000 times) of the mean over seeds: they cover the questions that
    might have been asked, not other trainings; `per_seed` shows those.
    """
    folders = {seed: RunFolder(options.out / f"seed-{seed}" / "rollouts") for seed in options.seeds}
    asked = [json.loads(line) for line in Path("runs/digits/data/validation.jsonl").read_text().splitlines()]
    kinds = np.array([row["kind"] for row in sorted(asked, key=lambda row: row["id"])])
    rng = np.random.default_rng(0)
    for protocol in ("paper", "greedy"):
        scores: dict[str, dict[int, np.ndarray]] = {}
        for name in variants(options):
            for seed, run in folders.items():
                right = right_answers(run.evaluation(name, protocol))
                if len(right) == 500:
                    scores.setdefault(name, {})[seed] = np.array([right[q] for q in sorted(right)], float)
        draws = rng.integers(0, 500, (1000, 500))
        for name, by_seed in scores.items():
            mean = np.mean(list(by_seed.values()), 0)
            row: dict[str, object] = {
                "protocol": protocol, "variant": name, "pass_at_1": round(100 * mean.mean(), 1),
                "ci95": [round(float(v), 1) for v in np.percentile(100 * mean[draws].mean(1), [2.5, 97.5])],
                "per_seed": {seed: round(100 * float(v.mean()), 1) for seed, v in by_seed.items()},
                "by_kind": {str(kind): round(100 * mean[kinds == kind].mean(), 1) for kind in np.unique(kinds)},
            }  # fmt: skip
            common = [seed for seed in by_seed if seed in scores.get(REFERENCE, {})]
            if common and name != REFERENCE:
                gap = 100 * np.mean([by_seed[seed] - scores[REFERENCE][seed] for seed in common], 0)
                row["difference"] = round(float(gap.mean()), 1)
                row["difference_ci95"] = [round(float(v), 1) for v in np.percentile(gap[draws].mean(1), [2.5, 97.5])]
            yield row


def boards(count: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Digits of the four cells and the cells asked for, by id of the first training questions."""
    rng, found = random.Random("questions of train"), {}
    for index in range(count):
        board, task = world.random_board("train", rng), world.random_task(rng)
        world.draw(board, rng)  # draws from the same stream
        found[f"train-{index}"] = board.digits, task.cells
    return found


def kept_sets(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """By variant and seed: how many trajectories were kept, and from how many captions that miss or misread a cell."""
    truth = boards(1200)
    for name in variants(options):
        row: dict[str, object] = {"variant": name}
        for seed in options.seeds:
            run = RunFolder(options.out / f"seed-{seed}" / name).round(0)
            if not run.kept_file.is_file():
                continue
            captions = {c.id: c.text for shard in shard_files(run.captions) for c in read_shard(shard, Caption)}
            kept = read_shard(run.kept_file, Kept)
            flawed = 0
            for one in kept:
                digits, cells = truth[one.question_id]
                flawed += any(f"{world.NAMES[i]} {digits[i]}" not in captions[one.caption_id] for i in cells)
            row[f"seed {seed}"] = {"kept": len(kept), "from flawed captions": round(flawed / len(kept), 3)}
        yield row
