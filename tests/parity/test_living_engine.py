"""The engine of the on-policy stage: published versions, token-exact continuations, streams, no image tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sophia_mcore.generate.engine import Request
from tests.parity.conftest import Driver, as_json, make_request
from tests.support.pictures import smooth
from tests.support.tiny_models import SPECIAL
from tests.support.versions import write_version

pytestmark = pytest.mark.vllm
IMAGE = SPECIAL.index("<IMG_CONTEXT>")


def sampled(count: int = 6, **settings: float | int) -> list[Request]:
    values = {"temperature": 1.0, "max_tokens": 24, **settings}
    return [make_request("What is it?", [smooth(28, 28, 1)], seed=seed, **values) for seed in range(count)]


@pytest.fixture
def unchanged(vllm: Driver, tiny_internvl: Path) -> Iterator[Driver]:
    yield vllm
    assert vllm.ask(reload=str(tiny_internvl)) == {"reloaded": True}


def test_a_published_version_is_loaded_and_names_its_digest(
    unchanged: Driver, other_internvl: Path, tmp_path: Path
) -> None:
    folder, digest = write_version(other_internvl, tmp_path, 3)
    before = unchanged.generate(sampled())
    assert unchanged.ask(load=[str(folder), digest]) == {"loaded": True, "sleeps": False}  # a CPU has nothing to free
    assert unchanged.ask(digest=True) == {"digest": digest}
    after = unchanged.generate(sampled())
    assert [c.token_ids for c in after] != [c.token_ids for c in before]
    assert unchanged.ask(reload=str(other_internvl)) == {"reloaded": True}
    assert unchanged.generate(sampled()) == after  # nothing of the first model was left in any cache


def test_a_damaged_version_is_refused_and_changes_nothing(vllm: Driver, other_internvl: Path, tmp_path: Path) -> None:
    folder, digest = write_version(other_internvl, tmp_path, 3)
    before, named = vllm.generate(sampled()), vllm.ask(digest=True)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    reply = vllm.ask(load=[str(folder), digest])
    assert "damaged version (model.safetensors: its bytes are not those that were written)" in reply["error"]
    assert vllm.generate(sampled()) == before and vllm.ask(digest=True) == named


def test_a_continuation_is_exact_to_the_token(vllm: Driver) -> None:
    """Greedy text, cut anywhere and continued, is the same text: the tokens were not decoded and encoded again."""
    request = make_request("Is it 3, 7?", [smooth(97, 41, 2)], max_tokens=20)
    (whole,) = vllm.generate([request])
    for cut in (1, 7, 19):
        rest = replace(
            request,
            continue_ids=whole.token_ids[:cut],
            sampling=request.sampling.model_copy(update={"max_tokens": 20 - cut}),
        )
        (found,) = vllm.generate([rest])
        assert found.token_ids == whole.token_ids[cut:]
        assert found.token_logprobs == pytest.approx(whole.token_logprobs[cut:], abs=1e-4)
        assert found.prompt_text == whole.prompt_text


def test_image_tokens_are_not_sampled(vllm: Driver) -> None:
    hot = sampled(12, temperature=2.0, max_tokens=60)  # nearly uniform over a few hundred tokens
    assert any(IMAGE in completion.token_ids for completion in vllm.generate(hot))
    masked = vllm.generate([replace(request, no_image_tokens=True) for request in hot])
    assert not any(IMAGE in completion.token_ids for completion in masked)


def test_a_stream_refills_its_places(vllm: Driver) -> None:
    asked = [
        make_request("What is it?", [smooth(28, 28, seed % 3)], seed=seed, temperature=1.0,
                     max_tokens=6 + 5 * (seed % 8))
        for seed in range(24)
    ]  # fmt: skip
    reply = vllm.ask(stream=[as_json(request) for request in asked], together=3)
    found = vllm.completions(reply)
    one_by_one = vllm.generate(asked)
    assert found == one_by_one  # to the bit, whatever is sampled beside a request: see generate.vllm_cpu
    assert all(len(f.token_ids) <= r.sampling.max_tokens for f, r in zip(found, asked, strict=True))
    assert reply["places"][0] == 8 and max(reply["places"][1:-1]) < 8  # it never ran empty in between
    tokens = sum(len(completion.token_ids) for completion in found)
    assert reply["steps"] < 0.35 * tokens  # several at a time


def test_what_a_stream_gives_up_never_ends_and_changes_nothing_else(vllm: Driver) -> None:
    asked = sampled(16, max_tokens=40)
    whole = vllm.generate(asked)
    reply = vllm.ask(stream=[as_json(request) for request in asked], together=5, cut_at=7)
    given_up = {int(index): tokens for index, tokens in reply["given_up"].items()}
    assert given_up and all(index % 2 and tokens == 7 for index, tokens in given_up.items())
    assert sorted([*given_up, *reply["ended"]]) == list(range(16))
    found = dict(zip(reply["ended"], vllm.completions(reply), strict=True))
    assert all(found[index].token_ids == whole[index].token_ids for index in found)
    assert vllm.generate(asked) == whole  # nothing is left over


def test_a_failed_stream_leaves_nothing_behind(vllm: Driver) -> None:
    before = vllm.generate(sampled())
    too_long = make_request("7, 3, " * 600, [])
    reply = vllm.ask(stream=[as_json(request) for request in [*sampled(3), too_long]], together=2)
    assert "does not fit into 512" in reply["error"]
    assert vllm.generate(sampled()) == before
