"""Tiny models and one vLLM engine for the whole session."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from sophia_mcore.config.schema import Sampling
from sophia_mcore.generate.engine import Completion, Request
from sophia_mcore.pretrained.chat import Message
from sophia_mcore.pretrained.family import IMAGE_PLACE
from tests.support import tiny_models

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tiny_internvl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_internvl(tmp_path_factory.mktemp("models") / "internvl", seed=1)


@pytest.fixture(scope="session")
def other_internvl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Same architecture and tokenizer, other weights everywhere."""
    return tiny_models.save_internvl(tmp_path_factory.mktemp("models") / "other", seed=2)


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_qwen2(tmp_path_factory.mktemp("models") / "qwen2", seed=3)


@pytest.fixture(scope="session")
def rollout_python() -> Path:
    """The Python of the rollout environment."""
    python = ROOT / ".venv-vllm" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} is missing: `make env` makes the rollout environment")
    return python


@pytest.fixture(scope="session", autouse=True)
def cold_vllm_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """vLLM remembers in the home folder what it found out about models: a test must not live on an earlier find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CACHE_ROOT", str(tmp_path_factory.mktemp("vllm-cache")))
        yield


def rollout_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@dataclass
class Driver:
    """A vLLM engine in another process."""

    process: subprocess.Popen[bytes]
    commands: IO[str]
    replies: IO[str]
    log: Path

    def ask(self, **command: Any) -> dict[str, Any]:
        self.commands.write(json.dumps(command) + "\n")
        return self.read()

    def read(self) -> dict[str, Any]:
        line = self.replies.readline()
        assert line, f"vLLM ended:\n{self.log.read_text()[-4000:]}"
        return json.loads(line)

    def generate(self, requests: list[Request]) -> list[Completion]:
        return self.completions(self.ask(requests=[as_json(request) for request in requests]))

    def completions(self, reply: dict[str, Any]) -> list[Completion]:
        assert "completions" in reply, reply
        rows = reply["completions"]
        for row in rows:
            row["token_ids"], row["token_logprobs"] = tuple(row["token_ids"]), tuple(row["token_logprobs"])
        return [Completion(**row) for row in rows]


def as_json(request: Request) -> dict[str, Any]:
    return {
        "messages": [[message.role, message.text] for message in request.messages],
        "images": [base64.b64encode(image).decode() for image in request.images],
        "sampling": request.sampling.model_dump(),
        "seed": request.seed,
        "continue_ids": list(request.continue_ids),
        "no_image_tokens": request.no_image_tokens,
    }


@pytest.fixture(scope="session")
def vllm(rollout_python: Path, tiny_internvl: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """The one vLLM engine of the session, on ``tiny_internvl``."""
    with running_vllm(rollout_python, tiny_internvl, tmp_path_factory.mktemp("vllm") / "log") as driver:
        yield driver


@contextmanager
def running_vllm(rollout_python: Path, model: Path, log: Path) -> Iterator[Driver]:
    """A vLLM engine on a model, in a process of its own."""
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [
                str(rollout_python), str(Path(__file__).with_name("vllm_driver.py")), str(model),
                str(their_in), str(their_out),
            ],
            stdout=file, stderr=file, stdin=subprocess.DEVNULL, pass_fds=(their_in, their_out),
            env=rollout_environment(),
        )  # fmt: skip
    os.close(their_in)
    os.close(their_out)
    with os.fdopen(our_out, "w", buffering=1) as commands, os.fdopen(our_in) as replies:
        driver = Driver(process, commands, replies, log)
        try:
            assert driver.read() == {"ready": True}
            yield driver
        finally:
            process.terminate()
            process.wait(30)


def make_request(text: str, images: list[bytes], *, seed: int = 0, **sampling: Any) -> Request:
    """A user turn with its images in front."""
    settings = {"temperature": 0.0, "max_tokens": 16, **sampling}
    return Request(
        messages=(Message("user", f"{IMAGE_PLACE}\n" * len(images) + text),),
        images=tuple(images),
        sampling=Sampling.model_validate(settings),
        seed=seed,
    )
