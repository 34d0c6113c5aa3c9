"""An on-policy stage as it lies in a run folder when it has ended, without any model."""

from __future__ import annotations

import json
from typing import Any

from sophia_mcore.records import Answer, Question, Rollout, rollout_id
from sophia_mcore.rl.versions import Version, announce
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_shard, write_shard
from sophia_mcore.track.metrics import MetricsLog
from tests.support.report_world import HOSTILE, sampled


def add_stage(run: RunFolder, batches: int = 6, questions: int = 4, answers: int = 4, ended: bool = True) -> None:
    """Of each batch: question 0 all right, 1 all wrong, the others mixed; one hostile answer, one rethought."""
    asked = read_shard(run.questions_file, Question)[:questions]
    for number in range(batches):
        rows = [_rollout(q, number, place, n) for place, q in enumerate(asked) for n in range(answers)]
        write_shard(run.rl.batch(number) / "000000-a.parquet", rows, Rollout)
    log = MetricsLog(run.rl.train / "metrics.jsonl")
    for number in range(1, batches + 1):
        log.log(number, "update", {"loss": 1 / number, "gradient_norm": 1.0, "share_clipped": 0.0})
        log.log(number, "batch", _figures(number, questions * answers))
    log.close()
    write_shard(run.rl.validation_questions_file, asked, Question)
    for version in (0, batches):
        given = [_answer(q, place <= (version > 0)) for place, q in enumerate(asked)]
        write_shard(run.rl.validation(version, "paper") / "000000-a.parquet", given, Answer)
    for version in range(batches + 1):
        known = Version(version=version, folder="x", digest="d", bytes=1, step=version, seconds=0.1)
        announce(run.rl.versions, known)
    if ended:
        summary = {"batches": batches, "updates": batches, "version": batches, "validation_accuracy": 0.5}
        run.rl.summary_file.write_text(json.dumps(summary))


def _rollout(question: Question, number: int, place: int, n: int) -> Rollout:
    right = place == 0 or (place > 1 and n % 2 == 0)
    text = f"\\boxed{{{question.answer if right else 99}}}" + (HOSTILE if place == 2 and n == 0 else "")
    return Rollout(
        id=rollout_id(question.id, number, n),
        question_id=question.id,
        caption_id="",
        index=n,
        verdict="correct" if right else "wrong",
        extracted="",
        batch=number,
        version=number,
        trigger="verification" if place == 3 and n == 1 else "",
        **sampled(text, 10 + 5 * (not right)),
    )


def _answer(question: Question, right: bool) -> Answer:
    made = sampled("x", 3)
    name = f"{question.id}.n0"
    verdict = "correct" if right else "wrong"
    return Answer(id=name, question_id=question.id, index=0, verdict=verdict, extracted="", **made)


def _figures(number: int, answers: int) -> dict[str, Any]:
    return {
        "accuracy": 0.4 + 0.05 * number,
        "tokens_right": 10.0,
        "tokens_wrong": 15.0,
        "tokens_mean": 12.0,
        "entropy_sampled": 0.5 / number,
        "lag_mean": 0.0,
        "lag_max": 1,
        "groups_mixed": 2,
        "groups_all_right": 1,
        "groups_all_wrong": 1,
        "answers": answers,
        "answers_effective": answers // 2,
        "tokens_sampled": 12 * answers,
        "rollout_gap_mean": 1e-4,
        "rollout_gap_p99": 1e-3,
        "seconds_waiting": 1.0,
        "seconds_training": 2.0,
        "seconds_publishing": 0.1,
    }
