"""Helpers: models that are asked and never trained. A reply depends on what is asked alone, and is kept for good."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from sophia_mcore.config.engines import Sampling
from sophia_mcore.config.functions import Helper
from sophia_mcore.environments.codec import messages_json
from sophia_mcore.environments.types import Ask
from sophia_mcore.records import FinishReason
from sophia_mcore.store.atomic import write_json


@dataclass(frozen=True, slots=True)
class HelperReply:
    """What a helper said."""

    text: str
    finish_reason: FinishReason


class HelperEngine(Protocol):
    """What answers for a helper."""

    @property
    def model_digest(self) -> str:
        """Names the model."""

    def answer(self, asks: Sequence[Ask], samplings: Sequence[Sampling], seeds: Sequence[int]) -> list[HelperReply]:
        """One reply per ask. Raises SophiaError when the model cannot be asked."""

    def close(self) -> None:
        """Free memory and processes."""


class Helpers:
    """The helpers of a run. ``open_engine`` opens one when it is first asked; ``folder`` keeps the replies.

    A context manager. The same ask has the same reply in any episode, process and later run.
    """

    def __init__(
        self, helpers: Mapping[str, Helper], folder: Path, open_engine: Callable[[str, Helper], HelperEngine]
    ) -> None:
        self._helpers, self._folder, self._open_engine = helpers, folder, open_engine
        self._engines: dict[str, HelperEngine] = {}

    def __enter__(self) -> Helpers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all engines."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    @property
    def names(self) -> list[str]:
        """What they are called."""
        return list(self._helpers)

    def ask(self, name: str, asks: Sequence[Ask]) -> list[HelperReply]:
        """The replies of one helper, in order; only what was never asked before reaches it.

        Raises SophiaError naming the helper when it is down.
        """
        settings = self._helpers[name]
        if name not in self._engines:
            self._engines[name] = self._open_engine(name, settings)
        engine = self._engines[name]
        samplings = [_sampling(settings.sampling, ask) for ask in asks]
        keys = [_key(engine.model_digest, ask, sampling) for ask, sampling in zip(asks, samplings, strict=True)]
        known = {key: reply for key in dict.fromkeys(keys) if (reply := self._read(name, key)) is not None}
        missing = {key: place for place, key in enumerate(keys) if key not in known}
        if missing:
            places = list(missing.values())
            replies = engine.answer(
                [asks[place] for place in places],
                [samplings[place] for place in places],
                [int(keys[place][:15], 16) for place in places],
            )
            for key, reply in zip(missing, replies, strict=True):
                known[key] = reply
                write_json(
                    self._path(name, key), asdict(reply) | {"messages": messages_json(asks[missing[key]].messages)}
                )
        return [known[key] for key in keys]

    def _path(self, name: str, key: str) -> Path:
        return self._folder / name / key[:2] / f"{key}.json"

    def _read(self, name: str, key: str) -> HelperReply | None:
        try:
            found = json.loads(self._path(name, key).read_bytes())
            return HelperReply(str(found["text"]), "length" if found["finish_reason"] == "length" else "stop")
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not asked yet, or a damaged entry: ask again


def _sampling(settings: Sampling, ask: Ask) -> Sampling:
    most = min(settings.max_tokens, ask.max_tokens or settings.max_tokens)
    return settings.model_copy(update={"max_tokens": most})


def _key(model_digest: str, ask: Ask, sampling: Sampling) -> str:
    images = [hashlib.sha256(image).hexdigest() for image in ask.images]
    content = [model_digest, messages_json(ask.messages), images, sampling.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(content).encode("utf-8", "surrogatepass")).hexdigest()
