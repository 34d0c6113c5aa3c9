"""The evaluation of one model, in the rollout environment.

python -m sophia_mcore.evaluate.worker RUN/config.toml --label base|round-N --model DIR
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sophia_mcore.config import load_config
from sophia_mcore.errors import run_command
from sophia_mcore.evaluate.answers import evaluate
from sophia_mcore.generate.worker import lazy_engine
from sophia_mcore.progress import Progress, worker_progress
from sophia_mcore.store.layout import RunFolder


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code (errors.run_command)."""
    parser = argparse.ArgumentParser(prog="sophia_mcore.evaluate.worker", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="RUN/config.toml")
    parser.add_argument("--label", required=True, help="base or round-N: the folder of the answers")
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory of the policy")
    parser.add_argument("--progress-fd", type=int, default=None)
    options = parser.parse_args(arguments)
    progress = worker_progress(options.progress_fd)
    return run_command(
        f"evaluation of {options.label}", lambda: work(options.config, options.label, options.model, progress)
    )


def work(config_file: Path, label: str, model_dir: Path, progress: Progress) -> None:
    """Evaluate ``model_dir`` for the run that ``config_file`` lies in."""
    config, run = load_config(config_file), RunFolder(config_file.parent)
    engine = lazy_engine(config, config.evaluate.engine, model_dir, progress)
    evaluate(config, run, label, engine, progress)
    engine.close()


if __name__ == "__main__":
    sys.exit(main())
