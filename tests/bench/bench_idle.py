"""How long engines and trainer of the on-policy stage wait for each other, and what `sophia plan` says of it.

python -m tests.bench.bench_idle [--gpus 8] [--work 32] [--questions 96] [--batches 8]

Prints one JSON line. Both sides sleep in place of working (tests/bench/sleeping_stage.py). Lengths have a long tail: 20
tokens on average, up to 120. The GPUs are divided as the planner recommends with lag 1: an engine on each of some, and
`--work` GPU-seconds of training of a batch on the others. A batch has six answers for each place of these engines.

Why so many: with lag L, L + 1 batches take at least as long as the longest answer and a batch's training, however many
engines there are. With two answers for each place, as in `few`, the longest answer takes longer than all the rest of
its batch; then engines wait in the division with the shortest batch too, by the planner's word as well.

The planner plays the same lengths. `error`: predicted over measured seconds of a batch, minus one.
"""

from __future__ import annotations

import argparse
import json

from tests.bench.sleeping_stage import Played, play, recommended_engines

STEP_SECONDS, PER_UNIT = 0.05, 4
LAGS = (0, 1, 2)


def row(found: Played) -> dict[str, float]:
    return {
        "engines": found.engines,
        "train_seconds": round(found.training, 2),
        "seconds": round(found.seconds, 3),
        "predicted_seconds": round(found.predicted.seconds, 3),
        "error": round(found.predicted.seconds / found.seconds - 1.0, 3),
        "trainer_idle": round(found.trainer_idle, 3),
        "predicted_trainer_idle": round(found.predicted.trainer_idle, 3),
        "engine_idle": round(found.engine_idle, 3),
        "predicted_engine_idle": round(found.predicted.engine_idle, 3),
    }


def divided(lag: int, gpus: int, work: float, questions: int, batches: int) -> Played:
    """The stage on the division of the GPUs that is recommended with lag 1."""
    engines = recommended_engines(gpus, questions, PER_UNIT, STEP_SECONDS, work, lag=1)
    return play(
        lag,
        engines=engines,
        batches=batches + lag if lag else batches // 2 + 1,  # without a lag they take long, and are alike
        questions=questions,
        per_unit=PER_UNIT,
        step=STEP_SECONDS,
        train=work / (gpus - engines),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--work", type=float, default=32.0)
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument("--batches", type=int, default=8)
    options = parser.parse_args()
    rows = {
        f"lag {lag}": row(divided(lag, options.gpus, options.work, options.questions, options.batches)) for lag in LAGS
    }
    rows["few"] = row(divided(1, options.gpus // 2, options.work / 4, options.questions // 6, options.batches))
    worst = max(abs(one["error"]) for one in rows.values())
    print(json.dumps({"name": "idle", "worst_error": worst, **rows}))


if __name__ == "__main__":
    main()
