"""`python -m tests.support.rl_engine RUN/config.toml [--step-seconds S]`: an engine process without a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sophia_mcore.generate.rollouts import serve
from tests.support.living_engine import FakeLivingEngine


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-seconds", type=float, default=0.0)
    parser.add_argument("--fail", default="", help="end with this line")
    parser.add_argument("--copies", type=Path, help="where this node's copies of versions lie")
    parser.add_argument("config", type=Path)
    options = parser.parse_args()
    if options.fail:
        print(f"error: {options.fail}", file=sys.stderr)
        return 1
    return serve(
        options.config,
        lambda config, run, version: FakeLivingEngine(
            version.path(run.rl.versions), version.digest, step_seconds=options.step_seconds
        ),
        copies=options.copies,
    )


if __name__ == "__main__":
    sys.exit(main())
