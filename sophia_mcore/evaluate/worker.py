"""The evaluation of models of one architecture, one after the other in one engine, in the rollout environment.

python -m sophia_mcore.evaluate.worker RUN/config.toml --model base=DIR --model round-N=DIR
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sophia_mcore.config import load_config
from sophia_mcore.errors import run_command
from sophia_mcore.generate.answers import evaluate
from sophia_mcore.generate.worker import lazy_engine
from sophia_mcore.progress import Progress, worker_progress
from sophia_mcore.store.layout import Round, RunFolder


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code (errors.run_command)."""
    parser = argparse.ArgumentParser(prog="sophia_mcore.evaluate.worker", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="RUN/config.toml")
    parser.add_argument(
        "--model", required=True, action="append", metavar="LABEL=DIR", type=_labelled, dest="models",
        help="folder of the answers (base or round-N) and Hugging Face directory of the policy; may be repeated",
    )  # fmt: skip
    parser.add_argument("--progress-fd", type=int, default=None)
    options = parser.parse_args(arguments)
    progress = worker_progress(options.progress_fd)
    names = " and ".join(label for label, _ in options.models)
    return run_command(f"evaluation of {names}", lambda: work(options.config, options.models, progress))


def _labelled(text: str) -> tuple[str, Path]:
    label, separator, folder = text.partition("=")
    if not (label and separator and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=DIR")
    return label, Path(folder)


def work(config_file: Path, models: list[tuple[str, Path]], progress: Progress, unit_attempts: int = 1) -> None:
    """Evaluate each (label, directory) for the run that ``config_file`` lies in."""
    config = load_config(config_file)
    round = Round(config, RunFolder(config_file.parent), 0, unit_attempts)  # all rounds ask the same questions
    engine = lazy_engine(config, config.evaluate.engine, models[0][1], progress)
    for label, model_dir in models:
        engine.reload(model_dir)
        evaluate(round, label, engine, progress)
    engine.close()


if __name__ == "__main__":
    sys.exit(main())
