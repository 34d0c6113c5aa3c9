"""Ablations on digits: the rollouts of a seed are made once, only selection, training and evaluation differ.

    python -m examples.digits.experiments [--seeds 0 1 2] [--groups ladder objectives precision halves]
        [--only VARIANT ...] [--out runs/experiments] [--minutes 60]

Needs the base models and the data of `make demo`. Every variant is trained by one process on one thread, two variants
at a time, and answers the validation questions in one vLLM. Finished work is not redone: --minutes only says when to
begin nothing more. Prints the tables and writes OUT/results.json: pass@1, and how good the kept trajectories are.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from examples.digits.experiments.stages import evaluate_all, run_seed
from examples.digits.experiments.variants import GROUPS
from sophia_mcore.errors import run_command
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.layout import RunFolder


def work(options: argparse.Namespace) -> None:
    """Seed after seed, then the table."""
    if options.evaluate is not None:
        return evaluate_all(RunFolder(options.evaluate), options.models, options.minutes)
    from examples.digits.experiments.tables import kept_sets, table  # scikit-learn: not in the rollout environment

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
    parser = argparse.ArgumentParser(
        "experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
