"""Ablations on digits: the rollouts of a seed are made once, only selection, training and evaluation differ.

    python examples/digits/experiments.py [--seeds 0 1 2] [--groups ladder objectives precision halves]
        [--only VARIANT ...] [--out runs/experiments] [--minutes 60]

Needs the base models and the data of `make demo`. Every variant is trained by one process on one thread, two variants
at a time, and answers the validation questions in one vLLM. Finished work is not redone: --minutes only says when to
begin nothing more. Prints the tables and writes OUT/results.json: pass@1, and how good the kept trajectories are.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sophia_mcore.config import dump_toml, load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError, run_command
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Answer, Caption, Kept, Trajectory
from sophia_mcore.store.atomic import write_json, write_text
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import read_shard, read_table, shard_files, write_shard

HERE = Path(__file__).parent
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
        name: Variant((f"objective.name={name}",)) for name in ("dft", "awr", "topr", "luffy", "grpo", "gspo", "cispo")
    }
    | {
        f"{name}_reference": Variant((f"objective.name={name}", "objective.behaviour=reference"))
        for name in ("topr", "grpo")
    },
    "precision": {
        "bfloat16": Variant(("train.dtype=bfloat16",)),
    }
    | {
        f"fp8_{recipe}": Variant(
            ("train.dtype=bfloat16", f"train.fp8={recipe}", "train.fp8_backend=emulated", "fp8.without_check=true")
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
    return load_config(HERE / "run.toml", sets=[*fixed, *sets])


def make_rollouts(seed: int, folder: Path) -> Config:
    """Questions, captions, trajectories and verdicts of a seed, as `sophia run` makes them."""
    from sophia_mcore.launch.local import run_phases

    config = seed_config(seed, folder)
    if not RunFolder(folder).round(0).kept_file.is_file():
        run_phases(config, ["questions", "captions", "reasoning", "score"], [0])
    return config


def prepare(seed: int, rollouts: RunFolder, folder: Path, variant: Variant) -> Config:
    """The variant's run folder: the seed's rollouts, or the allowed part of them, and its own kept set."""
    from sophia_mcore.score.phase import score_round

    config, run = seed_config(seed, folder, variant.sets), RunFolder(folder)
    source, target = rollouts.round(0), run.round(0)
    target.path.mkdir(parents=True, exist_ok=True)
    whole = (variant.captions, variant.trajectories) == (config.captions.per_image, config.reasoning.per_caption)
    pairs = [
        (rollouts.images, run.images),
        (rollouts.questions_file, run.questions_file),
        (source.captions, target.captions),
    ]
    if whole:
        pairs += [(source.trajectories, target.trajectories), (source.verdicts, target.verdicts)]
    for there, here in pairs:
        if not here.exists():
            here.symlink_to(there.resolve())
    if not whole and not target.trajectories.exists():
        for shard in shard_files(source.trajectories):
            rows = [row for row in read_shard(shard, Trajectory) if allowed(row, variant)]
            write_shard(target.trajectories / shard.name, rows, Trajectory)
    score_round(Round(config, run, 0), NoProgress())
    write_text(run.config_file, dump_toml(config))
    return config


def allowed(row: Trajectory, variant: Variant) -> bool:
    """Whether the trajectory belongs to the first `captions` captions and is among their first `trajectories`.

    Example id: "train-17.3f2a9c0d1e2f3a4b.k2.n5".
    """
    return row.index < variant.trajectories and int(row.caption_id.rpartition(".k")[2]) < variant.captions


def train_variant(seed: int, rollouts: RunFolder, folder: Path, variant: Variant) -> None:
    """Select, train and export; output goes to FOLDER/log. Runs in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)

    def work() -> None:
        from sophia_mcore.train.checkpoint_folder import newest_checkpoint
        from sophia_mcore.train.session import train_round
        from sophia_mcore.weights.export import export_hf

        config, run = prepare(seed, rollouts, folder, variant), RunFolder(folder)
        if not (run.round(0).train / "summary.json").is_file():
            train_round(config, run, 0, NoProgress())
        if not run.round(0).model.is_dir():
            export_hf(newest_checkpoint(run.round(0).checkpoints), config.models.policy, run.round(0).model)
        shutil.rmtree(run.round(0).checkpoints)

    sys.exit(run_command(folder.name, work))


def train_all(seed: int, rollouts: RunFolder, out: Path, chosen: dict[str, Variant], late: Callable[[], bool]) -> None:
    """Train what is not trained yet, `AT_ONCE` at a time; says what failed and goes on."""
    import sophia_mcore.train.session  # noqa: F401  once for all children

    waiting = [n for n, v in chosen.items() if v.trained and not (out / n / "round-0" / "model").is_dir()]
    context = multiprocessing.get_context("fork")
    while waiting and not late():
        names, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        began = time.monotonic()
        children = {
            name: context.Process(target=train_variant, args=(seed, rollouts, out / name, chosen[name]))
            for name in names
        }
        for child in children.values():
            child.start()
        for name, child in children.items():
            child.join()
            state = "trained" if child.exitcode == 0 else f"FAILED, see {out / name / 'log'}"
            print(f"seed {seed} {name}: {state} ({time.monotonic() - began:.0f} s)", flush=True)


def evaluate_all(rollouts: RunFolder, models: Iterable[str], minutes: float) -> None:
    """Answer the validation questions with "label=folder" models, one engine for all. In the rollout environment."""
    from sophia_mcore.evaluate.answers import evaluate
    from sophia_mcore.generate.lazy import lazy_engine

    config, began = load_config(rollouts.config_file), time.monotonic()
    engine, opened = None, False
    for model in models:
        label, _, folder = model.partition("=")
        if time.monotonic() - began > 60 * minutes:
            break
        if engine is None:
            engine = lazy_engine(config, config.evaluate.engine, Path(folder), NoProgress())
        elif opened:
            engine.reload(Path(folder))
        evaluate(config, rollouts, label, engine, NoProgress())
        opened = True
    if engine is not None:
        engine.close()


def answered(rollouts: RunFolder, config: Config, label: str) -> bool:
    """Whether every question is answered under every protocol."""
    return all(len(_right(rollouts.evaluation(label, protocol.name))) == 500 for protocol in config.evaluate.protocols)


def _right(folder: Path) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for shard in shard_files(folder) if folder.is_dir() else []:
        columns = read_table(shard, Answer, columns=["question_id", "verdict"]).to_pydict()
        found |= {q: v == "correct" for q, v in zip(columns["question_id"], columns["verdict"], strict=True)}
    return found


def run_seed(seed: int, options: argparse.Namespace, late: Callable[[], bool], left: Callable[[], float]) -> None:
    """Everything of one seed that is not done yet."""
    out = options.out / f"seed-{seed}"
    rollouts = RunFolder(out / "rollouts")
    config = make_rollouts(seed, rollouts.path)
    chosen = variants(options)
    train_all(seed, rollouts, out, chosen, late)
    models = {
        name: config.models.policy if not v.trained else out / name / "round-0/model" for name, v in chosen.items()
    }
    ready = [n for n, m in models.items() if m.is_dir() and not answered(rollouts, config, n)]
    if ready and not late():
        write_text(rollouts.config_file, dump_toml(config))
        command = [config.environments.rollout, __file__, "--evaluate", rollouts.path, "--minutes", left()]
        log = out / "evaluate.log"
        with open(log, "ab") as file:
            words = [*map(str, command), *(f"{n}={models[n]}" for n in ready)]
            code = subprocess.run(words, stdout=file, stderr=file).returncode
        print(f"seed {seed}: {len(ready)} models to evaluate, exit code {code} ({log})", flush=True)


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
                right = _right(run.evaluation(name, protocol))
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
    import world  # not in the rollout environment

    rng, found = random.Random("questions of train"), {}
    for index in range(count):
        board, task = world.random_board("train", rng), world.random_task(rng)
        world.draw(board, rng)  # draws from the same stream
        found[f"train-{index}"] = board.digits, task.cells
    return found


def kept_sets(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """By variant and seed: how many trajectories were kept, and from how many captions that miss or misread a cell."""
    from world import NAMES

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
                flawed += any(f"{NAMES[i]} {digits[i]}" not in captions[one.caption_id] for i in cells)
            row[f"seed {seed}"] = {"kept": len(kept), "from flawed captions": round(flawed / len(kept), 3)}
        yield row


def work(options: argparse.Namespace) -> None:
    """Seed after seed, then the table."""
    if options.evaluate is not None:
        return evaluate_all(RunFolder(options.evaluate), options.models, options.minutes)
    began = time.monotonic()

    def left() -> float:
        return options.minutes - (time.monotonic() - began) / 60

    for seed in options.seeds:
        if left() > 0:
            run_seed(seed, options, lambda: left() <= 0, left)
    rows, kept = list(table(options)), [row for row in kept_sets(options) if len(row) > 1]
    write_json(options.out / "results.json", {"rows": rows, "kept": kept})
    for row in rows:
        low, high = row["ci95"]  # type: ignore[misc]
        line = f"{row['protocol']:7}{row['variant']:20}{row['pass_at_1']:6.1f}% ({low:.1f}-{high:.1f})"
        if "difference" in row:
            low, high = row["difference_ci95"]  # type: ignore[misc]
            line += f"  {row['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
        print(f"{line}  {row['per_seed']}")
    for row in kept:
        print(row)
    return None


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="of these groups")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--evaluate", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("models", nargs="*", help=argparse.SUPPRESS)
    return run_command("experiments", lambda: work(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
