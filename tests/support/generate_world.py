"""A small run folder and an engine that answers without a model; shared by the tests of generate and evaluate."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Completion, OnDone, Request
from sophia_mcore.records import Question
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import write_shard
from tests.support import configs
from tests.support.pictures import plain


def png(value: int) -> bytes:
    """A picture of 8 x 8 pixels; other values give other pictures."""
    return plain(8, 8, (value, 20, 30))


def make_config(folder: Path, **sections: dict[str, Any]) -> Config:
    """A config of two captions per image, three trajectories per caption, units of two."""
    values: dict[str, Any] = {
        "run": {"seed": 7},
        "captions": {"per_image": 2, "images_per_unit": 2},
        "reasoning": {"per_caption": 3, "questions_per_unit": 2},
        "score": {"workers": 1, "second_opinions": 0},
        "evaluate": {"questions_per_unit": 2},
    }
    settings = configs.merged(values, sections)
    return configs.make_config(folder, folder / "policy", folder / "reasoner", **settings)


def make_run(folder: Path) -> RunFolder:
    """Five questions over three image sets: q0 and q1 share an image, q4 has two images."""
    run = RunFolder(folder)
    digests = ImageStore(run.images).add_many([png(i) for i in range(4)])
    sets = [(0,), (0,), (1,), (2,), (2, 3)]
    questions = [
        Question(
            id=f"q{i}",
            question=f"SECRET-{i}: what is {{caption}} in \\frac{{1}}{{2}}?",
            answer=str(i),
            answer_type="integer",
            images=tuple(digests[j] for j in members),
            source="test",
        )
        for i, members in enumerate(sets)
    ]
    write_shard(run.questions_file, questions, Question)
    write_shard(run.evaluation_questions_file, questions, Question)
    return run


class FakeEngine:
    """Text from the request's seed alone. Keeps all requests; fails at call number ``fail_at``."""

    model_digest = "d" * 64

    def __init__(self, fail_at: int | None = None, reply: str = "reply {seed}") -> None:
        self.requests: list[Request] = []
        self.calls = 0
        self.fail_at = fail_at
        self.reply = reply

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        self.calls += 1
        if self.calls == self.fail_at:
            raise SophiaError("the engine died")
        self.requests += requests
        if on_done:
            for _ in requests:
                on_done(1)
        return [self._complete(request) for request in requests]

    def _complete(self, request: Request) -> Completion:
        numbers = random.Random(request.seed)
        length = numbers.randint(1, 6)
        return Completion(
            text=self.reply.format(seed=request.seed),
            token_ids=tuple(numbers.randint(0, 99) for _ in range(length)),
            token_logprobs=tuple(-numbers.random() for _ in range(length)),
            finish_reason="stop",
            prompt_text="\n".join(f"{message.role}: {message.text}" for message in request.messages),
        )

    def reload(self, model_dir: Path) -> None:
        raise AssertionError("no phase of a round reloads its engine")

    def close(self) -> None:
        pass
