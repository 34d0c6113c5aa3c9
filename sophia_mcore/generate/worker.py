"""What the policy samples (captions, and its own answers for objective.fresh_share) or the reasoner does.

    python -m sophia_mcore.generate.worker RUN/config.toml --round R --stage captions|reasoning

Any number of these may work on one round at a time; each may be killed and started again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.config.schema import Engine as EngineConfig
from sophia_mcore.errors import run_command
from sophia_mcore.generate.answers import generate_fresh
from sophia_mcore.generate.captions import generate_captions
from sophia_mcore.generate.engine import Engine
from sophia_mcore.generate.opening import LazyEngine, open_engine
from sophia_mcore.generate.reasoning import generate_trajectories
from sophia_mcore.generate.vllm_cpu import prepare_process
from sophia_mcore.progress import Progress, worker_progress
from sophia_mcore.store.layout import Round, RunFolder


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code (errors.run_command)."""
    parser = argparse.ArgumentParser(prog="sophia_mcore.generate.worker", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="RUN/config.toml")
    parser.add_argument("--round", type=int, required=True, dest="round_index")
    parser.add_argument("--stage", choices=["captions", "reasoning"], required=True)
    parser.add_argument("--progress-fd", type=int, default=None)
    options = parser.parse_args(arguments)
    progress = worker_progress(options.progress_fd)
    return run_command(
        f"{options.stage} of round {options.round_index}",
        lambda: work(options.config, options.round_index, options.stage, progress),
    )


def work(config_file: Path, round_index: int, stage: str, progress: Progress, unit_attempts: int = 1) -> None:
    """Do the stage of the round of the run that ``config_file`` lies in."""
    config = load_config(config_file)
    round = Round(config, RunFolder(config_file.parent), round_index, unit_attempts)
    if stage == "captions":
        engine = lazy_engine(config, config.captions.engine, round.policy, progress)
        generate_captions(round, engine, progress)
        if config.objective.fresh_share:
            generate_fresh(round, engine, progress)
    else:
        engine = lazy_engine(config, config.reasoning.engine, config.models.reasoner, progress)
        generate_trajectories(round, engine, progress)
    engine.close()


def lazy_engine(config: Config, engine: EngineConfig, model_dir: Path | None, progress: Progress) -> LazyEngine:
    """The engine of a phase, opened at the first unit; sets the process up for it."""

    def open_it(chosen: Path | None) -> Engine:
        progress.note(f"starting {engine.kind}")
        return open_engine(engine, chosen, max_tiles=config.batch.max_tiles)

    if engine.kind == "vllm":
        prepare_process()
    return LazyEngine(open_it, model_dir)


if __name__ == "__main__":
    sys.exit(main())
