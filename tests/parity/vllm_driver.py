"""Runs under the rollout environment's Python: one vLLM engine that answers JSON lines.

    python vllm_driver.py MODEL_DIR READ_FD WRITE_FD

Lines in: {"requests": [...]}, {"stream": [...], "together": n}, {"reload": dir}, {"load": [dir, digest]} or
{"digest": true}; lines out: {"completions"|"digest"|"error": ...}.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sophia_mcore.config.engines import Sampling
from sophia_mcore.config.engines import VllmEngine as VllmConfig
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Completion, Request
from sophia_mcore.generate.vllm_cpu import prepare_process
from sophia_mcore.generate.vllm_engine import VllmEngine, open_vllm
from sophia_mcore.pretrained.chat import Message
from sophia_mcore.pretrained.family import ImageLimits


def as_request(value: dict[str, Any]) -> Request:
    return Request(
        messages=tuple(Message(role, text) for role, text in value["messages"]),
        images=tuple(base64.b64decode(image) for image in value.get("images", [])),
        sampling=Sampling.model_validate(value["sampling"]),
        seed=value["seed"],
        continue_ids=tuple(value.get("continue_ids", ())),
        no_image_tokens=value.get("no_image_tokens", False),
    )


def streamed(engine: VllmEngine, requests: list[Request], together: int, cut_at: int) -> dict[str, Any]:
    """Completions in the order of the requests, which join ``together`` at a time; how often, and with what places.

    ``cut_at``: requests of an odd number are given up when they have so many tokens; 0: none.
    """
    waiting, places, steps = list(enumerate(requests)), [], 0
    running: set[int] = set()
    given_up: dict[int, int] = {}

    def more(free: int) -> list[tuple[int, Request]]:
        places.append(free)
        given = waiting[: min(free, together)]
        del waiting[: len(given)]
        running.update(index for index, _ in given)
        return given

    def step() -> None:
        nonlocal steps
        steps += 1

    def cut(tokens: Callable[[int], int]) -> list[int]:
        found = {index: tokens(index) for index in running if index % 2} if cut_at else {}
        chosen = {index: count for index, count in found.items() if count >= cut_at}
        given_up.update(chosen)
        running.difference_update(chosen)
        return list(chosen)

    found: dict[int, Completion] = {}
    for index, completion in engine.stream(more, step, cut):
        running.discard(index)
        found[index] = completion
    completions = [asdict(found[index]) for index in sorted(found)]
    return {"completions": completions, "places": places, "steps": steps, "given_up": given_up, "ended": sorted(found)}


def main() -> None:
    model_dir, read_end, write_end = sys.argv[1:]
    prepare_process(threads=1)
    settings = VllmConfig(dtype="float32", threads=1, kv_cache_mib=64, max_sequences=8)
    engine = open_vllm(settings, Path(model_dir), limits=ImageLimits(max_tiles=5))
    with os.fdopen(int(read_end)) as lines, os.fdopen(int(write_end), "w", buffering=1) as replies:
        replies.write(json.dumps({"ready": True}) + "\n")
        for line in lines:
            command, reply = json.loads(line), {}
            try:
                if "requests" in command:
                    completions = engine.generate([as_request(value) for value in command["requests"]])
                    reply = {"completions": [asdict(completion) for completion in completions]}
                elif "stream" in command:
                    asked = [as_request(value) for value in command["stream"]]
                    reply = streamed(engine, asked, command["together"], command.get("cut_at", 0))
                elif "load" in command:
                    engine.load(Path(command["load"][0]), command["load"][1])
                    reply = {"loaded": True, "sleeps": engine.sleep()}
                elif "reload" in command:
                    engine.reload(Path(command["reload"]))
                    reply = {"reloaded": True}
                else:
                    reply = {"digest": engine.model_digest}
            except SophiaError as error:
                reply = {"error": str(error)}
            replies.write(json.dumps(reply) + "\n")
    engine.close()


if __name__ == "__main__":
    main()
