"""How long engines and trainer of the on-policy stage wait for each other, and what `sophia plan` says of it.

python -m tests.bench.bench_idle [--step-seconds 0.05] [--train-seconds 4] [--batches 8]

Prints one JSON line. Both sides sleep in place of working (tests/bench/sleeping_stage.py). Lengths have a long tail.
The planner plays the same lengths. `error`: predicted over measured seconds of a batch, minus one.
"""

from __future__ import annotations

import json

from tests.bench.sleeping_stage import options, played

LAGS = (0, 1, 2)


def main() -> None:
    given, rows = options(__doc__ or ""), {}
    for lag in LAGS:
        found = played(lag, given)
        rows[f"lag {lag}"] = {
            "seconds": round(found.seconds, 3),
            "predicted_seconds": round(found.predicted.seconds, 3),
            "error": round(found.predicted.seconds / found.seconds - 1.0, 3),
            "trainer_idle": round(found.trainer_idle, 3),
            "predicted_trainer_idle": round(found.predicted.trainer_idle, 3),
            "engine_idle": round(found.engine_idle, 3),
            "predicted_engine_idle": round(found.predicted.engine_idle, 3),
        }
    worst = max(abs(row["error"]) for row in rows.values())
    print(json.dumps({"name": "idle", "worst_error": worst, **rows}))


if __name__ == "__main__":
    main()
