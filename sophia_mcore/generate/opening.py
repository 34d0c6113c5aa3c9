"""Opens the engine that the configuration names, at once or when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sophia_mcore.config.schema import Config
from sophia_mcore.config.schema import Engine as EngineConfig
from sophia_mcore.config.schema import OpenAIEngine as OpenAIConfig
from sophia_mcore.config.schema import TransformersEngine as TransformersConfig
from sophia_mcore.config.schema import VllmEngine as VllmConfig
from sophia_mcore.errors import UsageError
from sophia_mcore.generate.engine import Completion, Cut, Engine, Key, OnDone, OnStep, Request, RequestError, Streaming
from sophia_mcore.generate.vllm_cpu import prepare_process
from sophia_mcore.pretrained.complete import check_model_dir
from sophia_mcore.pretrained.families import image_limits
from sophia_mcore.pretrained.family import ImageLimits
from sophia_mcore.progress import Progress

NO_LIMITS = ImageLimits()  # but those of the checkpoint


def open_engine(config: EngineConfig, model_dir: Path | None, *, limits: ImageLimits = NO_LIMITS) -> Engine:
    """The engine that ``config`` names, ready to sample. ``limits``: how large images may become.

    Raises SophiaError for a model directory that cannot be used, before the engine's own code is even imported.
    """
    if isinstance(config, OpenAIConfig):
        from sophia_mcore.generate.openai_engine import OpenAIEngine

        return OpenAIEngine(config)
    if model_dir is None:
        raise UsageError(f"an engine of kind {config.kind!r} needs a model directory")
    check_model_dir(model_dir)
    if isinstance(config, VllmConfig):
        from sophia_mcore.generate.vllm_engine import open_vllm

        return open_vllm(config, model_dir, limits)
    assert isinstance(config, TransformersConfig)
    from sophia_mcore.generate.transformers_engine import TransformersEngine

    return TransformersEngine(config, model_dir, limits)


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

    @property
    def across_units(self) -> bool:
        return isinstance(self.engine, Streaming) and self.engine.across_units

    @property
    def cuts(self) -> bool:
        return isinstance(self.engine, Streaming) and self.engine.cuts

    def stream(
        self, more: Callable[[int], Sequence[tuple[Key, Request]]], on_step: OnStep, cut: Cut[Key] | None = None
    ) -> Iterator[tuple[Key, Completion | RequestError]]:
        assert isinstance(self.engine, Streaming)  # else ``across_units`` is False
        return self.engine.stream(more, on_step, cut)

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


def lazy_engine(config: Config, engine: EngineConfig, model_dir: Path | None, progress: Progress) -> LazyEngine:
    """The engine of a phase, opened at the first unit; sets the process up for it."""

    def open_it(chosen: Path | None) -> Engine:
        progress.note(f"starting {engine.kind}")
        return open_engine(engine, chosen, limits=image_limits(config.batch))

    if engine.kind == "vllm":
        prepare_process(engine.threads)
    return LazyEngine(open_it, model_dir)
