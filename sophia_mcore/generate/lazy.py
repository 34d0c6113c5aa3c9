"""The engine of a phase, opened when the first unit needs it."""

from __future__ import annotations

from pathlib import Path

from sophia_mcore.config.schema import Config
from sophia_mcore.config.schema import Engine as EngineConfig
from sophia_mcore.generate.engine import Engine, LazyEngine, open_engine
from sophia_mcore.generate.vllm_cpu import prepare_process
from sophia_mcore.progress import Progress


def lazy_engine(config: Config, engine: EngineConfig, model_dir: Path | None, progress: Progress) -> LazyEngine:
    """The engine of a phase, opened at the first unit; sets the process up for it."""

    def open_it(chosen: Path | None) -> Engine:
        progress.note(f"starting {engine.kind}")
        return open_engine(engine, chosen, max_tiles=config.batch.max_tiles)

    if engine.kind == "vllm":
        prepare_process()
    return LazyEngine(open_it, model_dir)
