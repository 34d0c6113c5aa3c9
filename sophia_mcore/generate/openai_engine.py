"""Any OpenAI-compatible endpoint as an engine, such as a hosted reasoner.

Retries, time-outs and error messages are those of `endpoint`; this module bounds concurrency and keeps order.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import OpenAIEngine as OpenAIConfig
from sophia_mcore.endpoint import Endpoint, RequestRefusedError
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import (
    UNKNOWN_TOKEN,
    Completion,
    Cut,
    Key,
    OnDone,
    OnStep,
    Request,
    RequestError,
    no_op,
)
from sophia_mcore.pretrained.chat import IMAGE_PLACE, Message
from sophia_mcore.records import END_OF_THOUGHT, THOUGHT, with_thought

_ASK_SECONDS = 0.2  # a stream with free places asks for further requests so often, and whenever one has ended
_SIGNATURES = ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"), (b"BM", "bmp"))


class OpenAIEngine:
    """Implements ``engine.Engine`` and ``engine.Streaming``.

    Token ids are unknown; token counts are the endpoint's own.
    """

    def __init__(self, config: OpenAIConfig) -> None:
        self._config = config
        self._endpoint = Endpoint(
            base_url=config.base_url,
            model_name=config.model_name,
            api_key_variable=config.api_key_variable,
            timeout_seconds=config.timeout_seconds,
            max_retries=config.max_retries,
        )
        self._logprobs = True  # until the endpoint refuses them

    @property
    def model_digest(self) -> str:
        """sha256 over address and model name: all that is known of a hosted model."""
        return hashlib.sha256(f"{self._config.base_url}\n{self._config.model_name}".encode()).hexdigest()

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """See ``Engine.generate``; seeds are passed on, but few endpoints repeat themselves exactly.

        The first request that fails for good ends the call: those not sent yet are dropped.
        """
        self._refuse_continuations(requests)
        report = on_done or no_op
        with ThreadPoolExecutor(min(self._config.concurrency, max(1, len(requests)))) as pool:
            futures = [pool.submit(self._one, request) for request in requests]
            pending = set(futures)
            try:
                while pending:
                    done, pending = wait(pending, timeout=1.0, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    if done:
                        report(len(done))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    @property
    def across_units(self) -> bool:
        return self._config.across_units

    @property
    def cuts(self) -> bool:
        return False

    def stream(
        self, more: Callable[[int], Sequence[tuple[Key, Request]]], on_step: OnStep, cut: Cut[Key] | None = None
    ) -> Iterator[tuple[Key, Completion | RequestError]]:
        """See ``Streaming.stream``. What the endpoint has so far is not known, so nothing is cut."""
        running: dict[Future[Completion], Key] = {}
        with ThreadPoolExecutor(self._config.concurrency) as pool:
            try:
                while True:
                    while (places := self._config.concurrency - len(running)) > 0 and (further := more(places)):
                        self._refuse_continuations([request for _, request in further])
                        running |= {pool.submit(self._one, request): key for key, request in further}
                    if not running:
                        return
                    done, _ = wait(running, timeout=_ASK_SECONDS, return_when=FIRST_COMPLETED)
                    on_step()
                    for future in done:
                        key = running.pop(future)
                        try:
                            outcome: Completion | RequestError = future.result()
                        except SophiaError as error:
                            outcome = RequestError(str(error))
                        yield key, outcome
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def reload(self, model_dir: Path) -> None:
        """Not possible: raises SophiaError."""
        raise SophiaError(f"the endpoint {self._config.base_url} serves its own model; it cannot load {model_dir}")

    def close(self) -> None:
        """Close the connections."""
        self._endpoint.close()

    def _refuse_continuations(self, requests: Sequence[Request]) -> None:
        if any(request.continue_ids for request in requests):
            raise SophiaError(f"the endpoint {self._config.base_url} takes text, no tokens to continue from")

    def _one(self, request: Request) -> Completion:
        messages = as_openai(request.messages, request.images)
        with_logprobs = self._logprobs
        try:
            return self._ask(request, messages, with_logprobs)
        except RequestRefusedError as error:
            if not (with_logprobs and "logprob" in str(error).lower()):
                raise
        self._logprobs = False
        return self._one(request)

    def _ask(self, request: Request, messages: list[dict[str, Any]], with_logprobs: bool) -> Completion:
        body: dict[str, Any] = {
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            "max_tokens": request.sampling.max_tokens,
            "seed": request.seed,
        }
        if with_logprobs:
            body["logprobs"] = True
        reply = self._endpoint.complete(messages, **body)
        choice = reply.choices[0]
        logprobs = getattr(getattr(choice, "logprobs", None), "content", None) or []
        count = reply.usage.completion_tokens if reply.usage else len(logprobs)
        # anything but a natural end (a content filter, say) left the answer unfinished
        ended = choice.finish_reason == "stop"
        return Completion(
            text=_text_of(choice.message, ended),
            token_ids=(UNKNOWN_TOKEN,) * count,
            token_logprobs=tuple(entry.logprob for entry in logprobs),
            finish_reason="stop" if ended else "length",
            prompt_text=_prompt_text(request),
        )


def as_openai(messages: Sequence[Message], images: Sequence[bytes]) -> list[dict[str, Any]]:
    """Messages in the endpoint's format: images as data URLs, where their placeholders stand.

    Raises SophiaError when placeholders and images differ in number.
    """
    placeholders = sum(message.text.count(IMAGE_PLACE) for message in messages)
    if placeholders != len(images):
        raise SophiaError(f"{placeholders} image placeholders for {len(images)} images")
    left = iter(images)
    result: list[dict[str, Any]] = []
    for message in messages:
        first, *others = message.text.split(IMAGE_PLACE)
        if not others:
            result.append({"role": message.role, "content": first})
            continue
        parts: list[dict[str, Any]] = [{"type": "text", "text": first}] if first else []
        for text in others:
            parts.append({"type": "image_url", "image_url": {"url": _data_url(next(left))}})
            if text:
                parts.append({"type": "text", "text": text})
        result.append({"role": message.role, "content": parts})
    return result


def _data_url(image: bytes) -> str:
    kind = next((name for start, name in _SIGNATURES if image.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _text_of(message: Any, ended: bool) -> str:
    """The answer with its thought in <think> tags, whatever the endpoint makes of a thought.

    One with a reasoning parser reports it apart, so that it goes in front. One without a parser reports what was
    sampled: where the chat template opens the thought, that is a text which closes it alone.
    """
    content = message.content or ""
    apart = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    thought = apart.strip() if isinstance(apart, str) else ""
    before, closed, _ = content.partition(END_OF_THOUGHT)
    if content.lstrip().startswith(THOUGHT) or (THOUGHT in before and closed):
        return content
    if closed and (not thought or thought == before.strip()):
        return (THOUGHT if content.startswith("\n") else f"{THOUGHT}\n") + content
    if not thought:
        return content
    if not content and not ended:  # cut off within the thought
        return f"{THOUGHT}\n{thought}"
    return with_thought(thought, content)


def _prompt_text(request: Request) -> str:
    """What the prompt hash is taken of: the messages, and which images they hold."""
    images = [hashlib.sha256(image).hexdigest() for image in request.images]
    return json.dumps([[message.role, message.text] for message in request.messages] + [images], ensure_ascii=False)
