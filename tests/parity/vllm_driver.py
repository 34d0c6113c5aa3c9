"""Runs under the rollout environment's Python: one vLLM engine that answers JSON lines.

    python vllm_driver.py MODEL_DIR READ_FD WRITE_FD

Lines in: {"requests": [...]} or {"reload": dir} or {"digest": true}; lines out: {"completions"|"digest"|"error": ...}.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Sampling, VllmEngine
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Request
from sophia_mcore.generate.opening import open_engine
from sophia_mcore.generate.vllm_cpu import prepare_process
from sophia_mcore.pretrained.chat import Message
from sophia_mcore.pretrained.family import ImageLimits


def as_request(value: dict[str, Any]) -> Request:
    return Request(
        messages=tuple(Message(role, text) for role, text in value["messages"]),
        images=tuple(base64.b64decode(image) for image in value.get("images", [])),
        sampling=Sampling.model_validate(value["sampling"]),
        seed=value["seed"],
    )


def main() -> None:
    model_dir, read_end, write_end = sys.argv[1:]
    prepare_process()
    engine = open_engine(
        VllmEngine(dtype="float32", kv_cache_mib=64, max_sequences=8), Path(model_dir), limits=ImageLimits(max_tiles=5)
    )
    with os.fdopen(int(read_end)) as lines, os.fdopen(int(write_end), "w", buffering=1) as replies:
        replies.write(json.dumps({"ready": True}) + "\n")
        for line in lines:
            command, reply = json.loads(line), {}
            try:
                if "requests" in command:
                    completions = engine.generate([as_request(value) for value in command["requests"]])
                    reply = {"completions": [asdict(completion) for completion in completions]}
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
