"""What samples text: the types that vLLM in process, an OpenAI-compatible endpoint and plain transformers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sophia_mcore.config.schema import Sampling
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
    ``prompt_text`` is the rendered prompt, images as placeholders. ``opened`` is its end where the chat template begins
    the answer itself ("<think>"): ``text`` begins with it, ``token_ids`` go on behind it.
    """

    text: str
    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    prompt_text: str
    opened: str = ""


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


def nothing(_: int) -> None:
    """An ``on_done`` that does nothing."""
