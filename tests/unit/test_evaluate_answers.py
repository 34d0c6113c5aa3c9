"""Evaluation: the same prompt for every model, graded answers, resumable, pass@1 with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sophia_mcore.data.prompts import load_prompt
from sophia_mcore.errors import SophiaError
from sophia_mcore.evaluate.results import results
from sophia_mcore.evaluate.statistics import pass_at_1, wilson
from sophia_mcore.generate.answers import evaluate
from sophia_mcore.generate.engine import Completion, OnDone, Request
from sophia_mcore.pretrained.family import IMAGE_PLACE
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Answer, Question
from sophia_mcore.store.layout import Round
from sophia_mcore.store.shards import read_folder, read_shard
from sophia_mcore.verify.grade import Grader
from sophia_mcore.verify.types import Grade, GradeItem
from tests.support.generate_world import FakeEngine, make_config, make_run

PROTOCOLS = (
    {"name": "paper", "sampling": {"temperature": 1.0, "top_p": 0.8, "max_tokens": 9}, "samples": 2},
    {"name": "greedy", "sampling": {"temperature": 0.0, "max_tokens": 9}},
)


class Clever(FakeEngine):
    """Knows the answers to questions 0 to 2; of two samples only the one with the even seed is right for number 2."""

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        completions = super().generate(requests, on_done)
        return [self._answer(r, c) for r, c in zip(requests, completions, strict=True)]

    def _answer(self, request: Request, completion: Completion) -> Completion:
        number = int(request.messages[-1].text.split("SECRET-")[1].split(":")[0])
        return replace(completion, text=rf"<think>hm</think>It is \boxed{{{number if number < 3 else 99}}}.")


def test_answers_are_asked_graded_and_counted(tmp_path: Path) -> None:
    run, engine = make_run(tmp_path), Clever()
    config = make_config(tmp_path, evaluate={"protocols": PROTOCOLS})
    evaluate(Round(config, run, 0), "base", engine, NoProgress())
    answers = list(read_folder(run.evaluation("base", "paper"), Answer))
    assert len(answers) == 10 and len({a.id for a in answers}) == 10 == len({a.seed for a in answers})
    assert {a.id: a.verdict for a in answers}["q1.n1"] == "correct"
    assert {a.id: a.verdict for a in answers}["q3.n0"] == "wrong"
    assert {(a.temperature, a.top_p) for a in answers} == {(1.0, 0.8)}
    assert {a.temperature for a in read_folder(run.evaluation("base", "greedy"), Answer)} == {0.0}
    for request in engine.requests:
        system, user = request.messages
        assert (system.role, system.text) == ("system", load_prompt("long_thinking"))
        assert user.text.count(IMAGE_PLACE) == len(request.images) > 0

    found = results(run, config, pytest.fail)
    assert found["base"]["pass_at_1"] == pytest.approx(0.6) and found["base"]["n"] == 5
    low, high = found["base"]["ci95"]
    assert 0 < low < 0.6 < high < 1
    details = found["base"]["protocols"]["greedy"]
    assert details["samples"] == 5 and details["verdicts"] == {"correct": 3, "wrong": 2}
    assert details["by_answer_type"]["integer"]["n"] == 5


def test_the_judge_is_told_the_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, str] = {}

    class Listening(Grader):
        def grade_many(self, items: Iterable[GradeItem]) -> Iterator[Grade]:
            for item in (items := list(items)):
                asked[item.id.split(".")[0]] = item.question
            return super().grade_many(items)

    monkeypatch.setattr("sophia_mcore.score.grading.Grader", Listening)
    run = make_run(tmp_path)
    evaluate(Round(make_config(tmp_path), run, 0), "base", Clever(), NoProgress())
    assert asked == {q.id: q.question for q in read_shard(run.evaluation_questions_file, Question)}


def test_models_meet_the_same_random_numbers(tmp_path: Path) -> None:
    run, config = make_run(tmp_path), make_config(tmp_path)
    engines = [Clever(), Clever()]
    for label, engine in zip(["base", "round-0"], engines, strict=True):
        evaluate(Round(config, run, 0), label, engine, NoProgress())
    before, after = ({(r.messages, r.seed) for r in engine.requests} for engine in engines)
    assert before == after
    assert list(results(run, config, pytest.fail)) == ["base", "round-0"]


def test_a_broken_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    run, config = make_run(tmp_path), make_config(tmp_path)
    with pytest.raises(SophiaError, match="the engine died"):
        evaluate(Round(config, run, 0), "base", Clever(fail_at=2), NoProgress())
    assert results(run, config, pytest.fail) == {}  # a part is no result
    engine, again = Clever(), Clever()
    evaluate(Round(config, run, 0), "base", engine, NoProgress())
    evaluate(Round(config, run, 0), "base", again, NoProgress())
    assert engine.calls == 2 and again.calls == 0
    assert results(run, config, pytest.fail)["base"]["n"] == 5


def test_answers_of_another_model_are_not_mixed(tmp_path: Path) -> None:
    run, config = make_run(tmp_path), make_config(tmp_path)
    with pytest.raises(SophiaError, match="the engine died"):
        evaluate(Round(config, run, 0), "base", Clever(fail_at=2), NoProgress())
    other = Clever()
    other.model_digest = "e" * 64
    with pytest.raises(SophiaError, match="another model digest"):
        evaluate(Round(config, run, 0), "base", other, NoProgress())


def test_no_evaluation_questions(tmp_path: Path) -> None:
    run, config = make_run(tmp_path), make_config(tmp_path)
    run.evaluation_questions_file.unlink()
    with pytest.raises(SophiaError, match=r"evaluation/questions.parquet: no such file"):
        evaluate(Round(config, run, 0), "base", FakeEngine(), NoProgress())
    assert results(run, config, pytest.fail) == {}


def test_questions_themselves_are_unchanged(tmp_path: Path) -> None:
    run, engine = make_run(tmp_path), Clever()
    evaluate(Round(make_config(tmp_path), run, 0), "base", engine, NoProgress())
    asked = {request.messages[-1].text for request in engine.requests}
    for question in read_shard(run.evaluation_questions_file, Question):
        assert any(text.endswith(question.question) for text in asked)


def test_pass_at_1_weighs_questions_equally() -> None:
    assert pass_at_1([("a", True)] * 9 + [("a", False)] + [("b", False)]) == (pytest.approx(0.45), 2)
    value, n = pass_at_1([])
    assert math.isnan(value) and n == 0


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),  # published worked examples of the score interval, to four digits
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],
)
def test_wilson_against_known_values(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right / n, n) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(pair: tuple[int, int]) -> None:
    right, n = pair
    low, high = wilson(right / n, n)
    mirrored = wilson(1 - right / n, n)
    assert 0.0 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1.0
    assert mirrored == (pytest.approx(1 - high), pytest.approx(1 - low))
