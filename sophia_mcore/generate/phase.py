"""What captions, trajectories and evaluation answers have in common: requests that become records, with lineage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Completion, Request
from sophia_mcore.records import Question
from sophia_mcore.store.lineage import prompt_hash
from sophia_mcore.store.shards import read_shard

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Asked(Generic[Record]):
    """A request, and what makes a record of its completion: ``make`` takes the fields of ``records.Sampled``.

    ``id`` is the record's, where it is asked for before there is one.
    """

    request: Request
    make: Callable[..., Record]
    id: str = ""

    def record(self, completion: Completion, model_digest: str) -> Record:
        """The record of what was sampled by the model of that digest."""
        return self.make(**sampled_fields(self.request, completion, model_digest))


def sampled_fields(request: Request, completion: Completion, model_digest: str) -> dict[str, Any]:
    """The fields of ``records.Sampled``."""
    logprobs = completion.token_logprobs
    return {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "token_logprobs": logprobs,
        "logprob_sum": math.fsum(logprobs) if logprobs or not completion.token_ids else math.nan,
        "finish_reason": completion.finish_reason,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        "max_tokens": request.sampling.max_tokens,
        "seed": request.seed,
        "model_digest": model_digest,
        "prompt_hash": prompt_hash(completion.prompt_text),
        "opened": completion.opened,
    }


def read_questions(questions_file: Path, *, with_images: bool) -> list[Question]:
    """The checked questions. Raises SophiaError when there are none, or one has no image though ``with_images``."""
    if not questions_file.is_file():
        raise SophiaError(f"{questions_file}: no such file; run `sophia generate` first")
    questions = read_shard(questions_file, Question)
    if not questions:
        raise SophiaError(f"{questions_file}: no questions in it")
    if with_images:
        bare = next((question.id for question in questions if not question.images), None)
        if bare is not None:
            raise SophiaError(
                f"question {bare!r} has no image: a round starts from images (text-only data goes into batch.mixtures)"
            )
    return questions
