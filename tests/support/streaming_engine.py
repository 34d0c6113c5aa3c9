"""An engine that answers without a model and whose requests join and end at different times."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence

from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Completion, Cut, Key, OnStep, Request
from tests.support.generate_world import FakeEngine


class StreamingEngine(FakeEngine):
    """Implements ``generate.engine.Streaming``. A text has as many steps as tokens, mostly few and now and then many.

    A share ``right`` of the answers to the questions of ``generate_world`` is right. ``together``: how many requests
    ran in each step. The request of seed ``bad_seed`` cannot be answered; after ``dies_after`` steps all is over.
    """

    def __init__(
        self, *, places: int = 6, across_units: bool = True, right: float = 0.7, bad_seed: int | None = None,
        dies_after: int | None = None, cuts: bool = True, step_seconds: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.across_units, self.cuts, self._step_seconds = across_units, cuts, step_seconds
        self.together: list[int] = []
        self.given_up = 0
        self.tokens = 0
        self._places, self._right, self._bad_seed, self._dies_after = places, right, bad_seed, dies_after

    def stream(
        self, more: Callable[[int], Sequence[tuple[Key, Request]]], on_step: OnStep, cut: Cut[Key] | None = None
    ) -> Iterator[tuple[Key, Completion]]:
        running: dict[Key, tuple[int, Completion]] = {}  # tokens so far
        while True:
            while len(running) < self._places and (further := more(self._places - len(running))):
                for key, request in further:
                    if request.seed == self._bad_seed:
                        raise SophiaError("this prompt does not fit")
                    self.requests.append(request)
                    running[key] = 0, self._complete(request)
            if not running:
                return
            self.together.append(len(running))
            self.tokens += len(running)
            if self._dies_after is not None and len(self.together) > self._dies_after:
                raise KeyboardInterrupt
            time.sleep(self._step_seconds)
            on_step()
            running = {key: (tokens + 1, text) for key, (tokens, text) in running.items()}
            for key, (tokens, text) in list(running.items()):
                if tokens == len(text.token_ids):
                    del running[key]
                    yield key, text
            so_far = {key: tokens for key, (tokens, _) in running.items()}
            for key in cut(so_far.__getitem__) if cut is not None else ():
                del running[key]
                self.given_up += 1

    def _complete(self, request: Request) -> Completion:
        numbers = random.Random(request.seed)
        length = min(60, max(2, int(numbers.lognormvariate(1.5, 1.0))))
        asked = re.search(r"SECRET-(\d+)", request.messages[-1].text)
        answer = asked[1] if asked is not None and numbers.random() < self._right else "77"
        return Completion(
            text=f"I see. \\boxed{{{answer}}}",
            token_ids=tuple(numbers.randint(0, 99) for _ in range(length)),
            token_logprobs=tuple(-numbers.random() for _ in range(length)),
            finish_reason="stop",
            prompt_text="\n".join(f"{message.role}: {message.text}" for message in request.messages),
        )
