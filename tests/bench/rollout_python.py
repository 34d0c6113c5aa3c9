"""Runs a part of a benchmark under the rollout environment's Python, where vLLM is."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sophia_mcore.generate.engine import Completion, Cut, Key, OnDone, OnStep, Request
from sophia_mcore.generate.vllm_engine import VllmEngine

ROOT = Path(__file__).resolve().parents[2]


def inside(module: str, *arguments: str) -> dict[str, Any]:
    """The JSON of the last line that ``python -m module ARGUMENTS`` prints. One thread: others share the machine."""
    python = ROOT / ".venv-vllm" / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"{python} is missing: `make env` makes the rollout environment")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), "-m", module, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{module}: {done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Counted:
    """A vLLM engine whose steps and tokens are counted, those of texts that were given up included."""

    cuts = True

    def __init__(self, engine: VllmEngine, places: int, *, across_units: bool = True) -> None:
        self._engine, self._places, self.across_units = engine, places, across_units
        self.steps = self.tokens = self.texts = 0
        self._wall, self._cpu = time.monotonic(), time.process_time()

    @property
    def model_digest(self) -> str:
        return self._engine.model_digest

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        found = self._engine.generate(requests, on_done, self._step)
        self.tokens += sum(len(completion.token_ids) for completion in found)
        self.texts += len(found)
        return found

    def stream(
        self, more: Callable[[int], Sequence[tuple[Key, Request]]], on_step: OnStep, cut: Cut[Key] | None = None
    ) -> Iterator[tuple[Key, Completion]]:
        def step() -> object:
            self._step()
            return on_step()

        def counting(tokens: Callable[[Key], int]) -> list[Key]:
            given_up = list(cut(tokens)) if cut is not None else []
            self.tokens += sum(tokens(key) for key in given_up)
            self.texts += len(given_up)
            return given_up

        for key, completion in self._engine.stream(more, step, counting):
            self.tokens += len(completion.token_ids)
            self.texts += 1
            yield key, completion

    def reload(self, model_dir: Path) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError

    def _step(self) -> None:
        self.steps += 1

    def figures(self) -> dict[str, float]:
        """Since this object was made. ``occupancy``: the share of places that got a token, averaged over the steps."""
        wall, cpu = time.monotonic() - self._wall, time.process_time() - self._cpu
        return {
            "tokens": self.tokens,
            "texts": self.texts,
            "steps": self.steps,
            "occupancy": round(self.tokens / self.steps / self._places, 3),
            "seconds": round(wall, 2),
            "cpu_seconds": round(cpu, 2),
            "tokens_per_second": round(self.tokens / wall, 1),
            "tokens_per_cpu_second": round(self.tokens / cpu, 1),
        }
