"""A chat template that opens the thought itself (DeepSeek-R1, QwQ): the tag belongs to the answer, everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sophia_mcore.batch.caption_samples import caption_samples
from sophia_mcore.batch.samples import Sample, from_mixture, image_digests, system_prompt
from sophia_mcore.batch.store_samples import StoreReader
from sophia_mcore.batch.tokenize import tokenize
from sophia_mcore.config.schema import Mixture, Reward
from sophia_mcore.errors import UsageError
from sophia_mcore.generate.openai_engine import _text_of
from sophia_mcore.pretrained.chat import Chat, Message
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Caption, Kept, Question, Sampled, Trajectory
from sophia_mcore.score.phase import score_round
from sophia_mcore.score.thoughts import complaint, count_thoughts
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import read_shard, write_shard
from tests.support.batch_world import make_tokenizer
from tests.support.configs import make_config

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}bot: %s{% endif %}"  # noqa: E501
OPENINGS = ["<think>", "<think>\n", "<think>\n\n", "<think>\nOkay, "]


def chat_of(folder: Path, opening: str) -> Chat:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (folder / "chat_template.jinja").write_text(PLAIN.replace("%s", opening))
    return Chat.from_model_dir(folder)


def opened(chat: Chat, *messages: Message) -> str:
    return chat.opened_thought(messages, chat.render(messages))


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize(
    "text", ["Why?", "think", "k", "What is <think>?", "Close </think> it", "<think>a</think>b", "", "<think>"]
)
def test_what_the_template_opens_is_found_whatever_the_question_says(tmp_path: Path, opening: str, text: str) -> None:
    assert opened(chat_of(tmp_path, opening), Message("user", text)) == opening
    said = Message("system", "Think in <think> tags."), Message("user", text or "Why?")
    assert opened(chat_of(tmp_path, opening), *said) == opening


@pytest.mark.parametrize("closed", ["", "<think>\n\n</think>\n\n", "</think>"])
@pytest.mark.parametrize("text", ["Why?", "What is <think>?", "say <think>", "<think>"])
def test_a_tag_of_a_message_is_not_the_templates(tmp_path: Path, closed: str, text: str) -> None:
    chat = chat_of(tmp_path, closed)
    assert opened(chat, Message("user", text)) == ""
    assert opened(chat, Message("system", "Think in <think> tags."), Message("user", text)) == ""


# ---- training


def parts(sample: Sample, chat: Chat) -> tuple[str, str]:
    """Prompt and target of a sample as text."""
    tokenizer = make_tokenizer()
    (done,) = tokenize([sample], tokenizer, chat, lambda _: pytest.fail("no image"), 1000).samples
    ids = done.input_ids.tolist()
    cut = done.prompt_tokens
    assert np.array_equal(np.flatnonzero(done.target_mask), np.arange(cut, len(ids)))
    return tuple(tokenizer.decode(part, skip_special_tokens=False) for part in (ids[:cut], ids[cut:]))


def sample(response: str, **values: object) -> Sample:
    return Sample(id="a", source="kept", images=(), system=None, question="Sum?", response=response, **values)


HEAD = "user: Sum?<|im_end|>bot: "


@pytest.mark.parametrize(
    ("policy", "response", "prompt", "target"),
    [
        ("", "<think>\n2\n</think>5", HEAD, "<think>\n2\n</think>5"),
        ("<think>\n", "<think>\n2\n</think>5", HEAD + "<think>\n", "2\n</think>5"),
        ("<think>", "<think>\n2\n</think>5", HEAD + "<think>", "\n2\n</think>5"),
        ("<think>\n", "<think>2</think>5", HEAD + "<think>\n", "2</think>5"),
        ("<think>\n", "5", HEAD, "5"),
        ("", "5", HEAD, "5"),
    ],
)
def test_a_text_is_trained_whole_and_opened_once(tmp_path, policy, response, prompt, target) -> None:
    assert parts(sample(response), chat_of(tmp_path, policy)) == (prompt, target + "<|im_end|>")


@pytest.mark.parametrize("policy", ["", "<think>\n"])
@pytest.mark.parametrize("reasoner", ["", "<think>\n", "<think>"])
def test_sampled_tokens_follow_what_was_opened_for_them(tmp_path, policy, reasoner) -> None:
    """Recorded log-probs are of the sampled tokens, so the target is these; what was opened stands in the prompt."""
    said = "2\n</think>5" if reasoner else "<think>2</think>5"
    tokenizer = make_tokenizer()
    ids = tuple(tokenizer.encode(said + "<|im_end|>").ids)
    row = trajectory("t", reasoner + said, token_ids=ids, token_logprobs=(-0.5,) * len(ids), opened=reasoner)
    reader = StoreReader({"q0": Question(id="q0", question="Sum?", answer="5")}, "LONG", None)
    made = reader._sample(row, 1.0, sampled_tokens=True)
    assert made.system == "LONG"
    done = parts(replace(made, system=None), chat_of(tmp_path, policy))
    assert done == (HEAD + reasoner, said + "<|im_end|>")


def trajectory(name: str, text: str, **values: object) -> Trajectory:
    given = {
        "id": name, "question_id": "q0", "caption_id": "c.k0", "index": 0, "text": text, "token_ids": (1, 2),
        "token_logprobs": (), "logprob_sum": 0.0, "finish_reason": "stop", "temperature": 1.0, "top_p": 1.0,
        "max_tokens": 9, "seed": 0, "model_digest": "m", "prompt_hash": "p",
    }  # fmt: skip
    return Trajectory(**(given | values))


def test_shards_of_before_have_no_opened_part(tmp_path: Path) -> None:
    """The field has a default, so that a store of an earlier version is read."""
    assert Sampled.__dataclass_fields__["opened"].default == ""
    path = tmp_path / "shard.parquet"
    write_shard(path, [trajectory("t", "<think>\na</think>5", opened="<think>\n")], Trajectory)
    assert read_shard(path, Trajectory)[0].opened == "<think>\n"


def test_captions_of_a_policy_that_opens_a_thought(tmp_path: Path) -> None:
    """The gap to the sampling engine is measured behind the very tokens that the engine saw."""
    run = RunFolder(tmp_path / "run")
    tokenizer = make_tokenizer()
    ids = tuple(tokenizer.encode("hm</think>A dog.<|im_end|>").ids)
    values = trajectory("x", "<think>hm</think>A dog.", token_ids=ids, token_logprobs=(-1.0,) * len(ids))
    shared = {name: getattr(values, name) for name in Sampled.__dataclass_fields__} | {"opened": "<think>"}
    write_shard(run.round(0).captions / "u.parquet", [Caption(id="c.k0", images=(), index=0, **shared)], Caption)
    (made,) = caption_samples(make_config(run.path), run.round(0))
    prompt, target = parts(made, chat_of(tmp_path / "policy", "<think>"))
    assert prompt.endswith("bot: <think>") and target == "hm</think>A dog.<|im_end|>"


# ---- endpoints


class Said:
    def __init__(self, content: str | None, **values: str) -> None:
        self.content = content
        self.__dict__.update(values)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Said("5"), "5"),
        (Said("<think>\na</think>5"), "<think>\na</think>5"),
        (Said("a\n</think>5"), "<think>\na\n</think>5"),
        (Said("\na\n</think>5"), "<think>\na\n</think>5"),
        (Said("a</think>5", reasoning_content=None), "<think>\na</think>5"),
        (Said("a</think>5", reasoning_content=""), "<think>\na</think>5"),
        (Said("5", reasoning_content="a"), "<think>\na\n</think>\n\n5"),
        (Said("5", reasoning="a"), "<think>\na\n</think>\n\n5"),
        (Said("a</think>5", reasoning_content="a"), "<think>\na</think>5"),
        (Said("<think>a</think>5", reasoning_content="a"), "<think>a</think>5"),
        (Said("the tag <think> opens", reasoning_content="a"), "<think>\na\n</think>\n\nthe tag <think> opens"),
        (Said("the tag </think> closes", reasoning_content="a"), "<think>\na\n</think>\n\nthe tag </think> closes"),
        (Said(None), ""),
    ],
)
def test_an_endpoints_thought_is_whole(message: Said, text: str) -> None:
    assert _text_of(message, ended=True) == text


def test_a_thought_that_was_cut_off_stays_open() -> None:
    assert _text_of(Said(None, reasoning_content="a"), ended=False) == "<think>\na"
    assert _text_of(Said("5", reasoning_content="a"), ended=False) == "<think>\na\n</think>\n\n5"


# ---- what is said about thoughts that some trajectories lack


def shard(path: Path, texts: list[str], finish: str = "stop") -> Path:
    rows = [trajectory(f"{path.stem}-{i}", text, finish_reason=finish) for i, text in enumerate(texts)]
    write_shard(path, rows, Trajectory)
    return path


WHOLE = "<think>a\nb</think>5"


@pytest.mark.parametrize(
    ("texts", "counts", "said"),
    [
        ([WHOLE] * 3, {"whole": 3}, ""),
        (["5"] * 2, {"none": 2}, ""),
        ([WHOLE, WHOLE, "5"], {"whole": 2, "none": 1}, "2 of 3 finished"),
        (["a</think>5"] * 2, {"not_opened": 2}, "0 of 2 finished trajectories hold a whole thought"),
        ([WHOLE, "<think>a"], {"whole": 1, "not_closed": 1}, "not closed 1"),
        (["</think><think>", WHOLE, WHOLE], {"whole": 2, "wrong_order": 1}, "wrong order 1"),
        ([], {}, ""),
    ],
)
def test_a_share_that_differs_from_all_or_none_is_told(tmp_path, texts, counts, said) -> None:
    path = shard(tmp_path / "a.parquet", texts)
    found = count_thoughts([path, shard(tmp_path / "cut.parquet", ["<think>a"], "length")])
    assert found == counts
    assert said in complaint(found) and bool(said) == bool(complaint(found))


def test_the_score_phase_counts_and_tells(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    write_shard(run.questions_file, [Question(id="q0", question="?", answer="5", images=("i",))], Question)
    shard(run.round(0).trajectories / "a.parquet", [r"<think>a</think>\boxed{5}", r"\boxed{5}", r"b</think>\boxed{5}"])
    notes: list[str] = []

    class Told(NoProgress):
        def note(self, text: str) -> None:
            notes.append(text)

    config = make_config(run.path, score={"workers": 1, "second_opinions": 0}, reward=Reward(keep=3))
    summary = score_round(Round(config, run, 0), Told())
    assert summary["thoughts"] == {"none": 1, "not_opened": 1, "whole": 1}
    assert json.loads(run.round(0).kept_summary_file.read_text())["thoughts"] == summary["thoughts"]
    assert any("1 of 3 finished trajectories hold a whole thought" in note for note in notes)
    assert len(read_shard(run.round(0).kept_file, Kept)) == 3


def test_a_mixture_that_closes_a_thought_it_never_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    mixture = Mixture(path=path, name="m", share=0.5)
    for response, right in (("a</think>5", False), ("<think>a</think>5", True), ("5", True)):
        path.write_text(json.dumps({"id": "1", "question": "?", "response": response}) + "\n")
        if right:
            (made,) = from_mixture(mixture, image_digests, long_thinking="L", default_system=None)
            assert made.system == system_prompt(response, "L", None)
        else:
            with pytest.raises(UsageError, match="line 1: 'response' has </think> without <think>"):
                from_mixture(mixture, image_digests, long_thinking="L", default_system=None)
