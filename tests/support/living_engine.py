"""An engine of the on-policy stage without a model: texts from seed and version, a little time per step."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Completion, Key, OnDone, OnStep, Request, no_step
from sophia_mcore.rl.versions import verify_version


class FakeLivingEngine:
    """Implements ``generate.engine.LivingEngine``. ``loads``: what it was given; ``hang``: steps that never end."""

    def __init__(self, folder: Path, digest: str, *, step_seconds: float = 0.0, sleeps: bool = False) -> None:
        verify_version(folder, digest)
        self.model_digest = digest
        self.loads = [digest]
        self.requests: list[Request] = []
        self.sleeps = sleeps
        self.naps = 0
        self.together: list[int] = []  # how many requests ran in each step of a stream
        self._step_seconds = step_seconds

    def generate(
        self, requests: Sequence[Request], on_done: OnDone | None = None, on_step: OnStep | None = None
    ) -> list[Completion]:
        if not self.model_digest:
            raise SophiaError("asleep")
        self.requests += requests
        for _ in range(3):
            time.sleep(self._step_seconds)
            (on_step or no_step)()
        return [self._complete(request) for request in requests]

    def stream(
        self, more: Callable[[int], Sequence[tuple[Key, Request]]], on_step: OnStep
    ) -> Iterator[tuple[Key, Completion]]:
        running: list[tuple[int, Key, Request]] = []  # steps left
        while True:
            while len(running) < 8 and (further := more(8 - len(running))):
                for key, request in further:
                    self.requests.append(request)
                    running.append((1 + request.seed % 5, key, request))
            if not running:
                return
            self.together.append(len(running))
            time.sleep(self._step_seconds)
            on_step()
            running = [(left - 1, key, request) for left, key, request in running]
            for _, key, request in [one for one in running if one[0] == 0]:
                yield key, self._complete(request)
            running = [one for one in running if one[0] > 0]

    def _complete(self, request: Request) -> Completion:
        numbers = random.Random(f"{request.seed}{self.model_digest}")
        ids = tuple(numbers.randint(20, 90) for _ in range(numbers.randint(2, 6)))
        return Completion(
            text=rf"\boxed{{{numbers.randint(0, 3)}}}",
            token_ids=ids,
            token_logprobs=tuple(-numbers.random() for _ in ids),
            finish_reason="stop",
            prompt_text="\n".join(f"{message.role}: {message.text}" for message in request.messages),
        )

    def load(self, model_dir: Path, digest: str) -> None:
        verify_version(model_dir, digest)
        self.model_digest = digest
        self.loads.append(digest)

    def sleep(self) -> bool:
        if self.sleeps and self.model_digest:
            self.naps += 1
            self.model_digest = ""
        return self.sleeps

    def reload(self, model_dir: Path) -> None:
        raise AssertionError("the stage loads published versions")

    def close(self) -> None:
        pass
