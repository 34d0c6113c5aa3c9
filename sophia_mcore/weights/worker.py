"""The export phase as a process: python -m sophia_mcore.weights.worker RUN/config.toml --round 0"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from sophia_mcore.config import load_config
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, run_command
from sophia_mcore.progress import Progress, worker_progress
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.weights import proof
from sophia_mcore.weights.export import export_hf
from sophia_mcore.weights.formats.opening import open_checkpoint

_STEP = re.compile(r"step-(\d{8,})")


def newest(checkpoints: Path) -> Path:
    """The checkpoint of the highest step. Raises SophiaError when there is none."""
    found = {int(m[1]): p for p in checkpoints.glob("step-*") if (m := _STEP.fullmatch(p.name)) and p.is_dir()}
    if not found:
        raise SophiaError(f"{checkpoints}: no checkpoint to export (train first)")
    return found[max(found)]


def _made_from(model: Path) -> str | None:
    """Name of the checkpoint that a finished export was made from."""
    try:
        return str(json_or_empty(model / proof.NAME)["source"]["folder"])
    except (KeyError, TypeError):
        return None


def _require_finished(summary_file: Path, checkpoint: Path) -> None:
    try:
        steps = int(json_or_empty(summary_file)["steps"])
    except (ValueError, KeyError, TypeError):
        steps = None
    if steps is None or checkpoint.name != f"step-{steps:08d}":
        end = "is not finished" if steps is None else f"has {steps} steps"
        raise SophiaError(
            f"{checkpoint} is the newest checkpoint, but the training {end}: run `sophia train` again, or convert this "
            "checkpoint as it is (`sophia convert CHECKPOINT OUT --to hf --base POLICY`)"
        )


def _is_intact(model: Path) -> bool:
    """Whether every weights file of an export is there and whole (by its header)."""
    try:
        open_checkpoint(model)
    except SophiaError:
        return False
    return True


def main() -> int:
    """Parse, export, exit code. A finished export is left alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--round", type=int, required=True, dest="round_index")
    parser.add_argument("--progress-fd", type=int)
    arguments = parser.parse_args()

    def work() -> None:
        progress = worker_progress(arguments.progress_fd)
        run = RunFolder(arguments.config.parent)
        export_round(load_config(arguments.config), run, arguments.round_index, progress)

    return run_command("export", work)


def export_round(config: Config, run: RunFolder, index: int, progress: Progress) -> None:
    """Export the last checkpoint of a round's training, unless that is done already and intact.

    Raises as ``export_hf``, and SophiaError when the training is not finished.
    """
    base = run.starting_policy(index, config.models.policy)
    out = run.round(index).model
    checkpoint = newest(run.round(index).checkpoints)
    _require_finished(run.round(index).train / "summary.json", checkpoint)
    if out.exists() and _made_from(out) == checkpoint.name and _is_intact(out):
        return
    shutil.rmtree(out, ignore_errors=True)  # of an earlier checkpoint (training went on), or damaged
    export_hf(checkpoint, base, out, config.export.shard_size_mib, progress=progress)


if __name__ == "__main__":
    raise SystemExit(main())
