"""A finished run without any model: questions, captions, trajectories, verdicts, training curve, evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sophia_mcore.config import dump_toml
from sophia_mcore.config.schema import Config
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Answer, Caption, Question, Trajectory, caption_id, trajectory_id
from sophia_mcore.score.phase import score_round
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import write_shard
from sophia_mcore.track.metrics import MetricsLog
from tests.support.generate_world import make_config, png

HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'></script><!-- "
    "{{ 7 * 7 }} \u202edesrever\u202c \x00 \u2028 </textarea>"
)
PROTOCOLS = [{"name": "paper", "sampling": {"temperature": 1.0}}]


def sampled(text: str, count: int) -> dict[str, Any]:
    return {
        "text": text,
        "token_ids": tuple(range(count)),
        "token_logprobs": (),
        "logprob_sum": 0.0,
        "finish_reason": "stop",
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 64,
        "seed": 0,
        "model_digest": "m",
        "prompt_hash": "p",
    }


def _answer(question: int, caption: int, number: int) -> str:
    """Caption 0 is good, caption 1 misleads; question 2 is never answered right, question 3 is hostile."""
    thinking = f"<think>{'I look at it again. ' * 20}</think>"
    if question == 3 and number == 0:
        return f"{thinking}{HOSTILE} \\boxed{{3}}"
    right = caption == 0 and question != 2
    return f"{thinking}The answer is \\boxed{{{question if right else 99}}}."


def make_finished_run(
    folder: Path, questions: int = 30, captions: int = 2, answers: int = 2, images: list[bytes] | None = None
) -> tuple[RunFolder, Config]:
    """A run of one round with ``captions`` per image and ``answers`` per caption; ``images`` are used in turn."""
    held_out = [{"kind": "jsonl", "path": "unused"}]
    config = make_config(folder, evaluate={"protocols": PROTOCOLS, "questions": held_out})
    run = RunFolder(folder)
    digests = ImageStore(run.images).add_many(images or [png(i % 250) for i in range(min(questions, 250))])
    asked = [
        Question(id=f"q{i}", question=f"What is number {i}?", answer=str(i), images=(digests[i % len(digests)],))
        for i in range(questions)
    ]
    write_shard(run.questions_file, asked, Question)
    run.config_file.write_text(dump_toml(config))
    _rollouts(run, asked, captions, answers)
    score_round(Round(config, run, 0), NoProgress())
    train = MetricsLog(run.round(0).train / "metrics.jsonl")
    for step in range(1, 20):
        train.log(
            step, "train", {"loss": 1 / step, "logprob_kept": -1 / step, "gradient_norm": 1.0, "step_seconds": 0.5}
        )
    train.close()
    summary = {"steps": 19, "loss_first": 1.0, "loss_last": 0.05, "logprob_before": -1.0, "logprob_after": -0.1}
    (run.round(0).train / "summary.json").write_text(json.dumps(summary))
    run.round(0).model.mkdir()
    phases = MetricsLog(run.metrics_file)
    for name in ("captions", "reasoning", "score", "train"):
        phases.log(0, name, {"seconds": 12.5})
    phases.close()
    _evaluation(run, asked[:20])
    return run, config


def _rollouts(run: RunFolder, asked: list[Question], captions: int, answers: int) -> None:
    seen: dict[str, list[Caption]] = {}
    made = []
    for i, question in enumerate(asked):
        if question.images[0] not in seen:
            texts = [f"caption {k} of image {i}" + (HOSTILE if i == 3 else "") for k in range(captions)]
            seen[question.images[0]] = [
                Caption(id=caption_id(question.images, k), images=question.images, index=k, **sampled(text, 5 + k))
                for k, text in enumerate(texts)
            ]
        for k, caption in enumerate(seen[question.images[0]]):
            for n in range(answers):
                name = trajectory_id(question.id, caption.id, n)
                values = sampled(_answer(i, k, n), 20 + n)
                made.append(Trajectory(id=name, question_id=question.id, caption_id=caption.id, index=n, **values))
    folder = run.round(0)
    write_shard(folder.captions / "000000-a.parquet", [c for cs in seen.values() for c in cs], Caption)
    half = len(made) // 2
    write_shard(folder.trajectories / "000000-a.parquet", made[:half], Trajectory)
    write_shard(folder.trajectories / "000001-b.parquet", made[half:], Trajectory)


def _evaluation(run: RunFolder, asked: list[Question]) -> None:
    write_shard(run.evaluation_questions_file, asked, Question)
    for label, right in (("base", 4), ("round-0", 16)):
        answers = [
            Answer(
                id=f"{q.id}.n0",
                question_id=q.id,
                index=0,
                verdict="correct" if i < right else "wrong",
                extracted=q.answer if i < right else "<b>99</b>",
                **sampled("x", 3),
            )
            for i, q in enumerate(asked)
        ]
        write_shard(run.evaluation(label, "paper") / "000000-a.parquet", answers, Answer)
