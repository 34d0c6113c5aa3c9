"""What samples text: the types that vLLM in process, an OpenAI-compatible endpoint and plain transformers share.

``LivingEngine`` is what the on-policy stage needs beyond: an engine whose weights change while it lives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from sophia_mcore.config.schema import Sampling
from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.chat import Message
from sophia_mcore.records import FinishReason

UNKNOWN_TOKEN = -1
OnDone = Callable[[int], None]  # called with the number of requests that have just finished
OnStep = Callable[[], object]  # called whenever every running request has got a token; True: there is more to ask
Key = TypeVar("Key")
Cut = Callable[[Callable[[Key], int]], Collection[Key]]  # from the tokens of running requests: those to give up


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One text to sample. ``messages`` hold one `IMAGE_PLACE` per element of ``images`` (encoded files), in order.

    ``continue_ids`` stand behind the prompt, token for token, and the sampled text goes on from them.
    ``no_image_tokens``: the tokens that stand for images cannot be sampled, since a trainer could not read them back.
    """

    messages: tuple[Message, ...]
    images: tuple[bytes, ...] = ()
    sampling: Sampling
    seed: int
    continue_ids: tuple[int, ...] = ()
    no_image_tokens: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What was sampled for one request.

    ``text`` is without the end token, ``token_ids`` with it. Where only their number is known (an endpoint) each is
    ``UNKNOWN_TOKEN``, so that lengths can still be compared. ``token_logprobs`` are natural logs under the distribution
    that was sampled from (after temperature and top-p; for greedy decoding: of the plain softmax), () if unknown.
    ``prompt_text`` is the rendered prompt, images as placeholders. ``opened`` is its end where the chat template begins
    the answer itself ("<think>"): ``text`` begins with it, ``token_ids`` go on behind it. ``Request.continue_ids`` are
    in none of these fields.
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


@runtime_checkable
class Streaming(Protocol):
    """An engine in which requests join while others are running. Not every engine is one."""

    @property
    def across_units(self) -> bool:
        """Whether the units of a phase may be sampled together."""

    @property
    def cuts(self) -> bool:
        """Whether running requests can be given up."""

    def stream(
        self, more: Callable[[int], Sequence[tuple[Key, Request]]], on_step: OnStep, cut: Cut[Key] | None = None
    ) -> Iterator[tuple[Key, Completion | RequestError]]:
        """Sample without ever waiting for the longest text: (key, outcome) of each request as it ends.

        ``more(places)`` gives further requests, each with a key, when ``places`` > 0 of the engine are free; it is
        called again until it gives none. When nothing is running then, the stream ends. What else is sampled at the
        same time can change the last bits of log-probs, and so, now and then, a token. ``cut`` is called after each
        step; what it names is given up and never returned. An engine that cannot do that (``cuts``) never asks.
        The outcome is a RequestError where the engine knows which request it cannot answer; the others go on.
        """


class RequestError(SophiaError):
    """One request cannot be answered."""


class LivingEngine(Engine, Protocol):
    """An engine that lives as long as the on-policy stage and takes one version of the policy after the other."""

    def generate(
        self, requests: Sequence[Request], on_done: OnDone | None = None, on_step: OnStep | None = None
    ) -> list[Completion]:
        """As ``Engine.generate``; raises SophiaError while no whole model is loaded."""

    def stream(
        self, more: Callable[[int], Sequence[tuple[Key, Request]]], on_step: OnStep
    ) -> Iterator[tuple[Key, Completion]]:
        """See ``Streaming.stream``."""

    def load(self, model_dir: Path, digest: str) -> None:
        """Go on with a published version (``rl.versions``), which ``digest`` names; wakes a sleeping engine.

        Raises SophiaError, the old weights still in place, when its bytes are not those that were published.
        """

    def sleep(self) -> bool:
        """Give the device's memory back until the next ``load``. False: there is none to give back, nothing changes."""


def no_op(_: int) -> None:
    """An ``on_done`` that does nothing."""


def no_step() -> None:
    """An ``on_step`` that does nothing."""
