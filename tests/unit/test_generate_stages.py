"""Captions and trajectories: who sees what, lineage, resuming."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from sophia_mcore.data.prompts import load_prompt
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.generate.answers import generate_fresh
from sophia_mcore.generate.captions import generate_captions
from sophia_mcore.generate.engine import Completion, Request
from sophia_mcore.generate.reasoning import generate_trajectories
from sophia_mcore.launch.phases import CAPTIONS
from sophia_mcore.pretrained.family import IMAGE_PLACE
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Answer, Caption, Question, Trajectory, image_set_id
from sophia_mcore.store.layout import Round
from sophia_mcore.store.lineage import prompt_hash
from sophia_mcore.store.shards import read_folder, read_shard
from tests.support.generate_world import FakeEngine, make_config, make_run


def captions_of(folder: Path) -> list[Caption]:
    return list(read_folder(folder / "round-0" / "captions", Caption))


def trajectories_of(folder: Path) -> list[Trajectory]:
    return list(read_folder(folder / "round-0" / "trajectories", Trajectory))


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_captioner_never_sees_a_question(tmp_path: Path, system: str | None) -> None:
    run, engine = make_run(tmp_path), FakeEngine()
    config = make_config(tmp_path, batch={"default_system_prompt": system})
    generate_captions(Round(config, run, 0), engine, NoProgress())
    assert engine.requests
    seen = "".join(message.text for request in engine.requests for message in request.messages)
    for question in read_shard(run.questions_file, Question):
        assert question.question not in seen and "SECRET" not in seen
    prompts = {tuple(message.text for message in request.messages) for request in engine.requests}
    assert len(prompts) == 2  # one for a single image, one for two: nothing else in them varies


def test_a_describe_prompt_with_a_question_is_refused(tmp_path: Path) -> None:
    (tmp_path / "describe.txt").write_text("Answer {question}")
    run, engine = make_run(tmp_path), FakeEngine()
    config = make_config(tmp_path, captions={"prompt_file": tmp_path / "describe.txt"})
    with pytest.raises(UsageError, match=r"describe.txt.*must not contain \{question\}"):
        generate_captions(Round(config, run, 0), engine, NoProgress())
    assert not engine.requests


def test_captions_are_per_image_set(tmp_path: Path) -> None:
    run, engine = make_run(tmp_path), FakeEngine()
    generate_captions(Round(make_config(tmp_path), run, 0), engine, NoProgress())
    captions = captions_of(tmp_path)
    sets = {question.images for question in read_shard(run.questions_file, Question)}
    assert len(sets) == 4 and len(captions) == 8 == len({caption.id for caption in captions})
    assert {(caption.images, caption.index) for caption in captions} == {(s, k) for s in sets for k in range(2)}
    assert all(caption.id == f"{image_set_id(caption.images)[:16]}.k{caption.index}" for caption in captions)
    assert len({caption.seed for caption in captions}) == 8
    for request in engine.requests:
        assert sum(message.text.count(IMAGE_PLACE) for message in request.messages) == len(request.images)


def test_lineage_is_stored(tmp_path: Path) -> None:
    run, engine = make_run(tmp_path), FakeEngine()
    config = make_config(tmp_path, captions={"sampling": {"temperature": 0.7, "top_p": 0.9, "max_tokens": 11}})
    generate_captions(Round(config, run, 0), engine, NoProgress())
    for caption in captions_of(tmp_path):
        assert (caption.temperature, caption.top_p, caption.max_tokens) == (0.7, 0.9, 11)
        assert caption.model_digest == engine.model_digest
        assert caption.logprob_sum == pytest.approx(sum(caption.token_logprobs))
        assert caption.prompt_hash in {
            prompt_hash("\n".join(f"{m.role}: {m.text}" for m in request.messages)) for request in engine.requests
        }


def test_trajectories_per_question_and_caption(tmp_path: Path) -> None:
    run, config, engine = make_run(tmp_path), make_config(tmp_path), FakeEngine()
    generate_captions(Round(config, run, 0), FakeEngine(reply="A {{caption}} {{question}} {seed}"), NoProgress())
    generate_trajectories(Round(config, run, 0), engine, NoProgress())
    captions = {caption.id: caption for caption in captions_of(tmp_path)}
    questions = {question.id: question for question in read_shard(run.questions_file, Question)}
    trajectories = trajectories_of(tmp_path)
    expected = {
        (question.id, caption.id, n)
        for question in questions.values()
        for caption in captions.values()
        if caption.images == question.images
        for n in range(3)
    }
    assert {(t.question_id, t.caption_id, t.index) for t in trajectories} == expected
    assert len({t.id for t in trajectories}) == len(expected) == len({t.seed for t in trajectories})
    by_seed = {request.seed: request for request in engine.requests}
    for trajectory in trajectories:
        request = by_seed[trajectory.seed]
        (message,) = request.messages
        assert not request.images and message.role == "user"
        assert questions[trajectory.question_id].question in message.text  # braces unharmed
        assert captions[trajectory.caption_id].text in message.text


def test_reasoning_needs_all_captions(tmp_path: Path) -> None:
    run, config = make_run(tmp_path), make_config(tmp_path)
    with pytest.raises(SophiaError, match="2 units of captions are not done"):
        generate_trajectories(Round(config, run, 0), FakeEngine(), NoProgress())
    with pytest.raises(SophiaError, match="the engine died"):
        generate_captions(Round(config, run, 0), FakeEngine(fail_at=2), NoProgress())
    with pytest.raises(SophiaError, match="1 units of captions are not done"):
        generate_trajectories(Round(config, run, 0), FakeEngine(), NoProgress())


def test_a_run_that_failed_half_way_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run = make_run(whole)
    generate_captions(Round(make_config(whole), run, 0), FakeEngine(), NoProgress())
    generate_trajectories(Round(make_config(whole), run, 0), FakeEngine(), NoProgress())

    run, config = make_run(broken), make_config(broken)
    for stage in (generate_captions, generate_trajectories):
        with pytest.raises(SophiaError, match="the engine died"):
            stage(Round(config, run, 0), FakeEngine(fail_at=2), NoProgress())
        engine = FakeEngine()
        stage(Round(config, run, 0), engine, NoProgress())
        again = FakeEngine()
        stage(Round(config, run, 0), again, NoProgress())
        assert engine.calls > 0 and again.calls == 0  # nothing is done twice
    assert captions_of(broken) == captions_of(whole)
    assert trajectories_of(broken) == trajectories_of(whole)
    for stage in ("captions", "trajectories"):
        names = [sorted(p.name for p in (folder / "round-0" / stage).glob("*.parquet")) for folder in (whole, broken)]
        assert names[0] == names[1]


def test_another_model_does_not_continue_a_round(tmp_path: Path) -> None:
    run, config = make_run(tmp_path), make_config(tmp_path)
    with pytest.raises(SophiaError, match="the engine died"):
        generate_captions(Round(config, run, 0), FakeEngine(fail_at=2), NoProgress())
    other = FakeEngine()
    other.model_digest = "e" * 64
    with pytest.raises(SophiaError, match="another model digest"):
        generate_captions(Round(config, run, 0), other, NoProgress())


def test_rounds_differ_and_use_the_last_export(tmp_path: Path) -> None:
    run, config = make_run(tmp_path), make_config(tmp_path)
    first, second = FakeEngine(), FakeEngine()
    generate_captions(Round(config, run, 0), first, NoProgress())
    generate_captions(Round(config, run, 1), second, NoProgress())
    assert not {r.seed for r in first.requests} & {r.seed for r in second.requests}
    assert run.starting_policy(0, config.models.policy) == config.models.policy
    assert run.starting_policy(2, config.models.policy) == run.round(1).model


def test_unknown_logprobs_are_nan(tmp_path: Path) -> None:
    class Silent(FakeEngine):
        def _complete(self, request: Request) -> Completion:
            return replace(super()._complete(request), token_logprobs=())

    run, config = make_run(tmp_path), make_config(tmp_path)
    generate_captions(Round(config, run, 0), Silent(), NoProgress())
    assert all(math.isnan(caption.logprob_sum) for caption in captions_of(tmp_path))


def test_image_placeholders_in_data_ask_for_no_image(tmp_path: Path) -> None:
    run, config, engine = make_run(tmp_path), make_config(tmp_path), FakeEngine()
    seen = f"I see {IMAGE_PLACE} <IMG_CONTEXT> <|image_pad|> {{seed}}"
    generate_captions(Round(config, run, 0), FakeEngine(reply=seen), NoProgress())
    generate_trajectories(Round(config, run, 0), engine, NoProgress())
    texts = [message.text for request in engine.requests for message in request.messages]
    assert texts and not any(mark in text for text in texts for mark in (IMAGE_PLACE, "<IMG_CONTEXT>", "<|image_pad|>"))


def test_the_policys_own_answers_are_sampled_beside_the_captions(tmp_path: Path) -> None:
    """Image, question and long-thinking prompt, at temperature 1; its units count for the phase's state."""
    run = make_run(tmp_path)
    config = make_config(
        tmp_path, objective={"fresh_share": 0.5}, fresh={"per_question": 3, "questions_per_unit": 2, "max_tokens": 9}
    )
    generate_captions(Round(config, run, 0), FakeEngine(), NoProgress())
    assert not CAPTIONS.state_of(Round(config, run, 0)).finished
    with pytest.raises(SophiaError, match="the engine died"):
        generate_fresh(Round(config, run, 0), FakeEngine(fail_at=2), NoProgress())
    engine = FakeEngine(reply=r"<think>{seed}</think>\boxed{{1}}")
    assert generate_fresh(Round(config, run, 0), engine, NoProgress()) == 2  # the third was done
    answers = sorted(read_folder(run.round(0).fresh, Answer), key=lambda row: row.id)
    assert [row.id for row in answers] == [f"q{q}.n{n}" for q in range(5) for n in range(3)]
    assert {(row.temperature, row.top_p, row.max_tokens) for row in answers} == {(1.0, 1.0, 9)}
    assert {row.id: row.verdict for row in answers}["q2.n0"] == "wrong"
    for request in engine.requests:
        system, user = request.messages
        assert system.text == load_prompt("long_thinking") and "SECRET" in user.text and request.images
    assert CAPTIONS.state_of(Round(config, run, 0)).finished


def test_progress_counts_items_and_a_record_belongs_to_its_request(tmp_path: Path) -> None:
    """Requests end one by one, six for an item: an item counts when its share of them has ended."""
    steps: list[int] = []

    class Counted(NoProgress):
        def start(self, task: str, total: int, completed: int = 0) -> None:
            steps.append(-total)

        def advance(self, count: int = 1) -> None:
            steps.append(count)

    run, engine = make_run(tmp_path), FakeEngine()
    config = make_config(tmp_path)
    generate_captions(Round(config, run, 0), FakeEngine(), NoProgress())
    generate_trajectories(Round(config, run, 0), engine, Counted())
    assert steps == [-5, 1, 1, 1, 1, 1]
    sampled = {request.seed: engine._complete(request) for request in engine.requests}
    for trajectory in trajectories_of(tmp_path):
        assert (trajectory.source, trajectory.caption_id[-3:-1]) == ("reasoner", ".k")
        assert trajectory.text == f"reply {trajectory.seed}"
        assert trajectory.token_ids == sampled[trajectory.seed].token_ids
