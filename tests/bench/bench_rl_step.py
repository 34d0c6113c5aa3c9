"""What the protocol of the on-policy stage costs beside sampling and training.

python -m tests.bench.bench_rl_step [--step-seconds 0.05] [--train-seconds 4] [--batches 8]

Prints one JSON line. Both sides sleep in place of working (tests/bench/sleeping_stage.py). `ratio`: seconds of a batch
over those of the same batch where files cost nothing (lag 0: sampling, then training; lag 1: both at once, as
`plan.turns` plays it). What is more than 1 are claims, shards, verdicts, pointers, digests and pauses.
"""

from __future__ import annotations

import json

from tests.bench.sleeping_stage import options, played

GOALS = {0: 1.05, 1: 1.15}


def main() -> None:
    given, rows = options(__doc__ or ""), {}
    for lag, goal in GOALS.items():
        found = played(lag, given)
        rows[f"lag {lag}"] = {
            "seconds": round(found.seconds, 3),
            "ratio": round(found.seconds / found.predicted.seconds, 3),
            "goal": goal,
        }
    print(json.dumps({"name": "rl_step", **rows}))


if __name__ == "__main__":
    main()
