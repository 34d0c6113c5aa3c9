"""The policy's own answers of a round (objective.fresh_share) as training samples with their log-probs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sophia_mcore.batch.recorded import recorded_logprobs
from sophia_mcore.batch.samples import FRESH, Sample
from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.chat import plain
from sophia_mcore.records import Answer, Question
from sophia_mcore.score.advantage import Scored
from sophia_mcore.score.reward import BROKEN
from sophia_mcore.store.failures import read_failures
from sophia_mcore.store.layout import RoundFolder
from sophia_mcore.store.shards import read_folder, read_table, shard_files

FRESH_SOURCE = "fresh"
_COLUMNS = ("id", "question_id", "verdict", "finish_reason")


def scored_fresh(folder: RoundFolder, question_ids: Sequence[str], dropped: Counter[str]) -> list[Scored]:
    """Reward of each of the policy's own answers: 1 if right and not cut off (eq. 4), else 0.

    Answers that could not be judged (timeout, error) are left out and counted in ``dropped``.
    Raises SophiaError when questions have none, except those of work units that failed for good.
    """
    shards = shard_files(folder.fresh) if folder.fresh.is_dir() else []
    rows = [row for path in shards for row in read_table(path, Answer, columns=_COLUMNS).to_pylist()]
    missing = sorted(set(question_ids) - {row["question_id"] for row in rows})
    if missing and not read_failures(folder.fresh):
        raise SophiaError(
            f"{folder.fresh}: {len(missing)} of {len(question_ids)} questions have no answers of the policy's own yet "
            f"(objective.fresh_share), such as {missing[0]!r}: run `sophia generate` to the end first"
        )
    dropped.update(row["verdict"] for row in rows if row["verdict"] in BROKEN)
    return [
        Scored(
            row["id"],
            row["question_id"],
            float(row["verdict"] == "correct" and row["finish_reason"] != "length"),
            fresh=True,
        )
        for row in rows
        if row["verdict"] not in BROKEN
    ]


def fresh_samples(
    folder: RoundFolder, weights: Mapping[str, float], questions: Mapping[str, Question], long_thinking: str
) -> Iterator[tuple[Sample, NDArray[np.float32]]]:
    """The chosen answers as samples, each with the natural log-prob of every response token when it was sampled.

    Raises SophiaError when the engine recorded no tokens or log-probs.
    """
    for answer in read_folder(folder.fresh, Answer):
        if answer.id not in weights:
            continue
        logprobs = recorded_logprobs(answer, "objective.fresh_share")
        if min(answer.token_ids) < 0:
            raise SophiaError(f"trajectory {answer.id}: objective.fresh_share cannot be served, its tokens are unknown")
        question = questions[answer.question_id]
        sample = Sample(
            id=answer.id,
            source=FRESH_SOURCE,
            images=question.images,
            system=long_thinking,  # what it was sampled with, whether it thinks or not
            question=plain(question.question),
            response=answer.text,
            weight=weights[answer.id],
            kind=FRESH,
            complete=answer.finish_reason == "stop",
            response_ids=answer.token_ids,
        )
        yield sample, logprobs
