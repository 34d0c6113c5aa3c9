"""The endpoint engine against a local server: order, retries, time-outs, bounded concurrency, clear errors."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import Any

import pytest

from sophia_mcore.config.schema import OpenAIEngine as OpenAIConfig
from sophia_mcore.config.schema import Sampling
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import UNKNOWN_TOKEN, Request, RequestError
from sophia_mcore.generate.openai_engine import OpenAIEngine
from sophia_mcore.pretrained.chat import Message
from sophia_mcore.pretrained.family import IMAGE_PLACE
from tests.support.generate_world import png

Reply = tuple[int, dict[str, Any]]


class Stub:
    """A chat-completions server; ``answer`` maps (number of the call, body) to status and JSON."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.running = self.most = 0
        lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(stub.bodies)
                    stub.bodies.append(body)
                    stub.keys.append(self.headers["Authorization"])
                    stub.running += 1
                    stub.most = max(stub.most, stub.running)
                try:
                    status, value = answer(number, body)
                finally:
                    with lock:
                        stub.running -= 1
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("retry-after-ms", "5")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[int, dict[str, Any]], Reply]], Stub]]:
    stubs: list[Stub] = []

    def start(answer: Callable[[int, dict[str, Any]], Reply]) -> Stub:
        stubs.append(Stub(answer))
        return stubs[-1]

    yield start
    for stub in stubs:
        stub.server.shutdown()
        stub.server.server_close()


def good(body: dict[str, Any], text: str | None = None, **message: Any) -> Reply:
    content = text if text is not None else f"seed {body['seed']}"
    logprobs = {"content": [{"token": "x", "logprob": -0.5, "bytes": None, "top_logprobs": []}] * 2}
    choice = {
        "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **message},
        "logprobs": logprobs if body.get("logprobs") else None,
    }  # fmt: skip
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return 200, {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def failure(status: int, text: str) -> Reply:
    return status, {"error": {"message": text, "type": "t", "code": "c"}}


def engine(url: str, **settings: Any) -> OpenAIEngine:
    return OpenAIEngine(OpenAIConfig(kind="openai", base_url=url, model_name="thinker", **settings))


def requests(count: int) -> list[Request]:
    sampling = Sampling(temperature=0.6, top_p=0.95, max_tokens=17)
    return [Request(messages=(Message("user", "Why?"),), sampling=sampling, seed=seed) for seed in range(count)]


def test_answers_come_in_order_with_their_settings(serve: Callable[..., Stub]) -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        time.sleep(0.02 * (5 - body["seed"]))  # the first request is answered last
        return good(body)

    stub, done = serve(answer), []
    completions = engine(stub.url).generate(requests(5), done.append)
    assert [c.text for c in completions] == [f"seed {i}" for i in range(5)]
    assert sum(done) == 5
    assert completions[0].token_ids == (UNKNOWN_TOKEN,) * 2 and completions[0].token_logprobs == (-0.5, -0.5)
    body = next(body for body in stub.bodies if body["seed"] == 3)
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["model"]) == (0.6, 0.95, 17, "thinker")


def test_a_stream_refills_as_answers_end_and_names_the_one_that_fails(serve: Callable[..., Stub]) -> None:
    everybody_asked = threading.Event()

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if body["seed"] == 13:
            return failure(400, "no such answer")
        if body["seed"] == 0 and not everybody_asked.wait(60):  # the first one is the longest
            return failure(400, "the others waited for it")
        if number == 11:
            everybody_asked.set()
        return good(body)

    def asked(seeds: Iterator[int]) -> Callable[[int], list[tuple[int, Request]]]:
        everything = requests(20)
        return lambda places: [(seed, everything[seed]) for seed in islice(seeds, places)]

    stub = serve(answer)
    found = dict(engine(stub.url, concurrency=3).stream(asked(iter(range(12))), lambda: None))
    assert {seed: completion.text for seed, completion in found.items()} == {i: f"seed {i}" for i in range(12)}
    assert stub.most <= 3
    found = dict(engine(stub.url, concurrency=3).stream(asked(iter([1, 13, 2])), lambda: None))
    assert isinstance(found.pop(13), RequestError) and sorted(found) == [1, 2]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_transient_failures_are_retried(serve: Callable[..., Stub], status: int) -> None:
    stub = serve(lambda number, body: failure(status, "busy") if number < 3 else good(body))
    assert [c.text for c in engine(stub.url, concurrency=1).generate(requests(2))] == ["seed 0", "seed 1"]
    assert len(stub.bodies) == 5


def test_retries_end(serve: Callable[..., Stub]) -> None:
    stub = serve(lambda number, body: failure(500, "broken inside"))
    with pytest.raises(SophiaError, match=r"broken inside.*after 2 retries"):
        engine(stub.url, max_retries=2).generate(requests(1))
    assert len(stub.bodies) == 3


def test_concurrency_is_bounded(serve: Callable[..., Stub]) -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        time.sleep(0.02)
        return good(body)

    stub = serve(answer)
    engine(stub.url, concurrency=3).generate(requests(12))
    assert stub.most == 3


def test_a_silent_endpoint_times_out(serve: Callable[..., Stub]) -> None:
    release = threading.Event()

    def answer(number: int, body: dict[str, Any]) -> Reply:
        release.wait(30)
        return good(body)

    stub = serve(answer)
    try:
        with pytest.raises(SophiaError, match=r"no answer within 0.2 s, after 1 retries"):
            engine(stub.url, timeout_seconds=0.2, max_retries=1).generate(requests(1))
    finally:
        release.set()


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "MY_KEY holds a key it does not accept"), (403, "MY_KEY"), (404, "does not know model 'thinker'")],
)
def test_lasting_failures_are_one_clear_line(
    serve: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch, status: int, message: str
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    stub = serve(lambda number, body: failure(status, "no: sk-very-secret"))
    with pytest.raises(SophiaError, match=message) as caught:
        engine(stub.url, api_key_variable="MY_KEY", concurrency=1).generate(requests(20))
    assert "very-secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert stub.keys[0] == "Bearer sk-very-secret"
    assert len(stub.bodies) < 20  # the rest is not sent


def test_an_error_text_never_shows_the_key(serve: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    stub = serve(lambda number, body: failure(400, "bad request from sk-very-secret"))
    with pytest.raises(SophiaError, match=r"bad request from \*\*\*"):
        engine(stub.url, api_key_variable="MY_KEY").generate(requests(1))


def test_a_missing_key_is_named(serve: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    stub = serve(lambda number, body: failure(401, "who are you"))
    with pytest.raises(SophiaError, match="MY_KEY is not set"):
        engine(stub.url, api_key_variable="MY_KEY").generate(requests(1))


def test_nobody_listens() -> None:
    with pytest.raises(SophiaError, match=r"127.0.0.1:9/v1 cannot be reached"):
        engine("http://127.0.0.1:9/v1", max_retries=0).generate(requests(1))


def test_an_endpoint_without_logprobs(serve: Callable[..., Stub]) -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        return failure(400, "logprobs is not supported") if "logprobs" in body else good(body)

    stub = serve(answer)
    completions = engine(stub.url, concurrency=2).generate(requests(6))
    assert [c.token_logprobs for c in completions] == [()] * 6
    assert [len(c.token_ids) for c in completions] == [2] * 6
    assert len(stub.bodies) <= 8  # it is asked for at most once per thread


def test_reasoning_reported_apart_is_put_in_front(serve: Callable[..., Stub]) -> None:
    stub = serve(lambda number, body: good(body, r"\boxed{2}", reasoning_content="1+1"))
    (completion,) = engine(stub.url).generate(requests(1))
    assert completion.text == "<think>\n1+1\n</think>\n\n\\boxed{2}"


def test_an_answer_that_was_cut_off(serve: Callable[..., Stub]) -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        status, value = good(body)
        value["choices"][0]["finish_reason"] = ["length", "content_filter"][number]
        return status, value

    completions = engine(serve(answer).url, concurrency=1).generate(requests(2))
    assert [c.finish_reason for c in completions] == ["length", "length"]


def test_images_travel_as_data_urls(serve: Callable[..., Stub]) -> None:
    stub, images = serve(lambda number, body: good(body)), (png(1), png(2))
    message = Message("user", f"Image-1: {IMAGE_PLACE}\nImage-2: {IMAGE_PLACE}\nSame?")
    request = Request(messages=(message,), images=images, sampling=Sampling(), seed=0)
    engine(stub.url).generate([request])
    parts = stub.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text", "image_url", "text"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert [base64.b64decode(url.removeprefix("data:image/png;base64,")) for url in urls] == list(images)
    assert [part.get("text") for part in parts[::2]] == ["Image-1: ", "\nImage-2: ", "\nSame?"]
    with pytest.raises(SophiaError, match="2 image placeholders for 1 images"):
        engine(stub.url).generate([Request(messages=(message,), images=images[:1], sampling=Sampling(), seed=0)])
