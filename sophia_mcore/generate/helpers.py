"""The engines of helpers: any that samples, opened when a helper is first asked."""

from __future__ import annotations

from collections.abc import Sequence

from sophia_mcore.config.engines import Sampling
from sophia_mcore.config.functions import Helper
from sophia_mcore.config.schema import Config
from sophia_mcore.endpoint import EndpointUnreachableError
from sophia_mcore.environments.helpers import HelperReply, Helpers
from sophia_mcore.environments.types import Ask
from sophia_mcore.errors import HelperDownError, SophiaError, UsageError
from sophia_mcore.generate.engine import Engine, Request
from sophia_mcore.generate.opening import open_engine
from sophia_mcore.pretrained.families import image_limits
from sophia_mcore.store.layout import RunFolder


class AskedEngine:
    """Implements ``environments.helpers.HelperEngine``."""

    def __init__(self, name: str, engine: Engine) -> None:
        self._name, self._engine = name, engine

    @property
    def model_digest(self) -> str:
        return self._engine.model_digest

    def answer(self, asks: Sequence[Ask], samplings: Sequence[Sampling], seeds: Sequence[int]) -> list[HelperReply]:
        requests = [
            Request(messages=ask.messages, images=ask.images, sampling=sampling, seed=seed)
            for ask, sampling, seed in zip(asks, samplings, seeds, strict=True)
        ]
        try:
            completions = self._engine.generate(requests)
        except EndpointUnreachableError as error:
            raise HelperDownError(f"helper {self._name}: {error}; the same command goes on when it answers") from error
        except SophiaError as error:
            raise SophiaError(f"helper {self._name}: {error}") from error
        return [HelperReply(one.text, one.finish_reason) for one in completions]

    def close(self) -> None:
        self._engine.close()


def open_helpers(config: Config, run: RunFolder, *, endpoints_only: bool = False) -> Helpers:
    """The helpers of a run. ``endpoints_only``: where no model can be loaded, as in the score phase."""

    def open_one(name: str, settings: Helper) -> AskedEngine:
        if endpoints_only and settings.engine.kind != "openai":
            raise UsageError(
                f"helpers.{name}: the score phase asks endpoints only: serve the model and set engine.kind = 'openai'"
            )
        try:
            engine = open_engine(settings.engine, settings.model, limits=image_limits(config.batch))
        except UsageError as error:
            raise UsageError(f"helper {name}: {error}") from error
        except SophiaError as error:
            raise HelperDownError(f"helper {name}: {error}") from error
        return AskedEngine(name, engine)

    return Helpers(config.helpers, run.helpers, open_one)
