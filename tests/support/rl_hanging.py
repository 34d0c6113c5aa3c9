"""`python -m tests.support.rl_hanging RUN/config.toml`: a real engine whose twentieth step never returns."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.generate.engine import LivingEngine
from sophia_mcore.generate.rollouts import open_policy, serve
from sophia_mcore.generate.vllm_cpu import prepare_process
from sophia_mcore.rl.versions import Version
from sophia_mcore.store.layout import RunFolder


def open_hanging(config: Config, run: RunFolder, version: Version) -> LivingEngine:
    engine: Any = open_policy(config, run, version)
    step, steps = engine._llm.llm_engine.step, 0

    def hang() -> Any:
        nonlocal steps
        steps += 1
        if steps == 20:
            threading.Event().wait()
        return step()

    engine._llm.llm_engine.step = hang
    return engine


if __name__ == "__main__":
    prepare_process()
    sys.exit(serve(Path(sys.argv[1]), open_hanging))
