"""The work of a seed: rollouts once, then selection, training and evaluation of each variant."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from examples.digits.experiments.variants import AT_ONCE, Variant, seed_config, variants
from sophia_mcore.config import dump_toml, load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import run_command
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Answer, Trajectory
from sophia_mcore.store.atomic import write_text
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import read_shard, read_table, shard_files, write_shard


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
            train_round(Round(config, run, 0), NoProgress())
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
    from sophia_mcore.generate.answers import evaluate
    from sophia_mcore.generate.opening import lazy_engine

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
        evaluate(Round(config, rollouts, 0), label, engine, NoProgress())
        opened = True
    if engine is not None:
        engine.close()


def answered(rollouts: RunFolder, config: Config, label: str) -> bool:
    """Whether every question is answered under every protocol."""
    return all(
        len(right_answers(rollouts.evaluation(label, protocol.name))) == 500 for protocol in config.evaluate.protocols
    )


def right_answers(folder: Path) -> dict[str, bool]:
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
        command = [config.environments.rollout, "-m", __package__, "--evaluate", rollouts.path, "--minutes", left()]
        log = out / "evaluate.log"
        with open(log, "ab") as file:
            words = [*map(str, command), *(f"{n}={models[n]}" for n in ready)]
            code = subprocess.run(words, stdout=file, stderr=file).returncode
        print(f"seed {seed}: {len(ready)} models to evaluate, exit code {code} ({log})", flush=True)
