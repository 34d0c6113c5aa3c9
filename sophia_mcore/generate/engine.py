"""What samples text: one interface for vLLM in process, an OpenAI-compatible endpoint, and plain transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sophia_mcore.config.schema import Engine as EngineConfig
from sophia_mcore.config.schema import OpenAIEngine as OpenAIConfig
from sophia_mcore.config.schema import Sampling, TransformersEngine, VllmEngine
from sophia_mcore.errors import UsageError
from sophia_mcore.pretrained.chat import Message
from sophia_mcore.records import FinishReason

UNKNOWN_TOKEN = -1
OnDone = Callable[[int], None]  # called with the number of requests that have just finished


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One text to sample. ``messages`` hold one "<IMG_CONTEXT>" per element of ``images`` (encoded files), in order."""

    messages: tuple[Message, ...]
    images: tuple[bytes, ...] = ()
    sampling: Sampling
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What was sampled for one request.

    ``text`` is without the end token, ``token_ids`` with it. Where only their number is known (an endpoint) each is
    ``UNKNOWN_TOKEN``, so that lengths can still be compared. ``token_logprobs`` are natural logs under the distribution
    that was sampled from (after temperature and top-p; for greedy decoding: of the plain softmax), () if unknown.
    ``prompt_text`` is the rendered prompt, images as placeholders.
    """

    text: str
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    prompt_text: str


class Engine(Protocol):
    """A model that samples. The same list of requests gives the same completions, whatever was sampled before."""

    @property
    def model_digest(self) -> str:
        """sha256 over the model's files (for an endpoint: over its address and model name)."""

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """One completion per request, in order. Raises SophiaError when the engine cannot answer."""

    def reload(self, model_dir: Path) -> None:
        """Go on with the weights of ``model_dir``, which has the same architecture; nothing of the old ones stays."""

    def close(self) -> None:
        """Free memory and processes."""


def open_engine(config: EngineConfig, model_dir: Path | None, *, max_tiles: int = 12) -> Engine:
    """The engine that ``config`` names, ready to sample. ``max_tiles`` limits the tiles of an image.

    Raises SophiaError for a model directory that cannot be used, before the engine's own code is even imported.
    """
    if isinstance(config, OpenAIConfig):
        from sophia_mcore.generate.openai_engine import OpenAIEngine

        return OpenAIEngine(config)
    if model_dir is None:
        raise UsageError(f"an engine of kind {config.kind!r} needs a model directory")
    from sophia_mcore.pretrained.complete import check_model_dir

    check_model_dir(model_dir)
    if isinstance(config, VllmEngine):
        from sophia_mcore.generate.vllm_engine import open_vllm

        return open_vllm(config, model_dir, max_tiles)
    assert isinstance(config, TransformersEngine)
    from sophia_mcore.generate.transformers_engine import open_transformers

    return open_transformers(config, model_dir, max_tiles)


class LazyEngine:
    """An engine that is opened when it is first asked for a text: a phase with nothing left to do starts none."""

    def __init__(self, open_it: Callable[[Path | None], Engine], model_dir: Path | None) -> None:
        self._open_it = open_it
        self._model_dir = model_dir
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine behind, opened by now."""
        if self._engine is None:
            self._engine = self._open_it(self._model_dir)
        return self._engine

    @property
    def model_digest(self) -> str:
        return self.engine.model_digest

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        return self.engine.generate(requests, on_done)

    def reload(self, model_dir: Path) -> None:
        if self._engine is None:
            self._model_dir = model_dir
        elif model_dir != self._model_dir:
            self._engine.reload(model_dir)
            self._model_dir = model_dir

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def nothing(_: int) -> None:
    """The ``on_done`` of those who do not watch."""
