"""Pre-selection of questions, and leases that are renewed only while there is progress."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sophia_mcore.config.sources import Source
from sophia_mcore.errors import EXIT_LOST, SophiaError, UsageError
from sophia_mcore.generate.rl_select import select_questions
from sophia_mcore.generate.watchdog import Watchdog
from sophia_mcore.launch.readers import rl_select_units
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Answer, Question
from sophia_mcore.rl.questions import asked_questions
from sophia_mcore.rl.select import Tally, histogram, is_chosen, tallies
from sophia_mcore.store.failures import read_failures
from sophia_mcore.store.layout import Round
from sophia_mcore.store.shards import read_folder, read_shard, write_shard
from sophia_mcore.store.units import UnitQueue, units_of
from tests.support.generate_world import FakeEngine
from tests.support.rl_world import make_rl_run


def test_sixteen_answers_and_the_papers_bounds_mean_seven_to_nine_right() -> None:
    assert [k for k in range(17) if is_chosen(Tally(k, 16), 16, 0.4, 0.6)] == [7, 8, 9]
    assert [k for k in range(9) if is_chosen(Tally(k, 8), 8, 0.001, 1.0)] == [1, 2, 3, 4, 5, 6, 7, 8]  # VL-Rethinker
    assert is_chosen(Tally(2, 5), 10, 0.4, 0.6) and not is_chosen(Tally(2, 4), 10, 0.4, 0.6)  # half must be judged
    assert not is_chosen(Tally(0, 0), 0, 0.0, 1.0)


def test_broken_verdicts_are_no_answers() -> None:
    rows = [("a", "correct"), ("a", "timeout"), ("a", "wrong"), ("b", "error"), ("b", "no_answer")]
    assert tallies(rows) == {"a": Tally(1, 2), "b": Tally(0, 1)}  # type: ignore[arg-type]
    counts = histogram({"a": Tally(1, 2), "b": Tally(0, 1), "c": Tally(1, 2)}, {"a": "x", "b": "x", "c": ""})
    assert counts == {"all": {"0": 1, "1": 2}, "untyped": {"1": 1}, "x": {"0": 1, "1": 1}}


def test_the_questions_of_middling_accuracy_stay(tmp_path: Path) -> None:
    settings = {"questions_per_batch": 1, "group": 2, "samples_per_update": 2}
    select = {"samples": 8, "minimum": 0.1, "maximum": 0.9, "questions_per_unit": 4}
    config, run = make_rl_run(tmp_path, tmp_path, select=select, **settings)

    class Guesser(FakeEngine):
        def _complete(self, request):  # type: ignore[no-untyped-def]
            number = request.messages[1].text.rpartition("is ")[2][0]  # "What is 3?": right or not by the seed
            right = {"0": True, "1": False}.get(number, request.seed % 2 == 0)
            return replace(super()._complete(request), text=rf"\boxed{{{int(number) % 4 if right else 9}}}")

    engine = Guesser()
    assert select_questions(Round(config, run, 0), engine, NoProgress()) == 2
    answers = list(read_folder(run.rl.select, Answer))
    assert len(answers) == 6 * 8 and {answer.max_tokens for answer in answers} == {16}
    assert len({answer.seed for answer in answers}) == 48
    right = {q: sum(a.verdict == "correct" for a in answers if a.question_id == q) for q in (f"q{i}" for i in range(6))}
    assert right["q0"] == 8 and right["q1"] == 0
    stay = [question.id for question in read_shard(run.rl.questions_file, Question)]
    assert stay == [q for q, number in right.items() if 0.1 <= number / 8 <= 0.9]
    counts = json.loads(run.rl.select_file.read_text())
    assert (counts["questions"], counts["chosen"]) == (6, len(stay))
    assert sum(counts["right_answers"]["all"].values()) == 6
    calls = engine.calls
    assert select_questions(Round(config, run, 0), engine, NoProgress()) == 0 and engine.calls == calls


def test_questions_of_text_alone_are_selected(tmp_path: Path) -> None:
    settings = {"questions_per_batch": 1, "group": 2, "samples_per_update": 2}
    select = {"samples": 2, "minimum": 0.0, "maximum": 1.0}
    config, run = make_rl_run(tmp_path, tmp_path, pictured=False, select=select, **settings)
    select_questions(Round(config, run, 0), FakeEngine(), NoProgress())
    assert len(read_shard(run.rl.questions_file, Question)) == 6


def test_the_choice_is_made_among_the_questions_of_the_stage(tmp_path: Path) -> None:
    """Where [[rl.questions]] names some, the run's own questions are not asked."""
    select = {"samples": 1, "minimum": 0.0, "maximum": 1.0}
    config, run = make_rl_run(tmp_path, tmp_path, select=select, questions_per_batch=1)
    own = (Source(kind="jsonl", path="more.jsonl"),)
    config = config.model_copy(update={"rl": config.on_policy.model_copy(update={"questions": own})})
    with pytest.raises(SophiaError, match=r"own_questions.parquet: no such file"):
        asked_questions(config, run)
    rows = read_shard(run.questions_file, Question)
    write_shard(run.rl.own_questions_file, [replace(one, id=f"own-{one.id}") for one in rows[:2]], Question)
    assert asked_questions(config, run) == run.rl.own_questions_file
    assert [unit.items for unit in rl_select_units(Round(config, run, 0))[0].units.values()] == [("own-q0", "own-q1")]
    select_questions(Round(config, run, 0), FakeEngine(), NoProgress())
    assert [one.id for one in read_shard(run.rl.questions_file, Question)] == ["own-q0", "own-q1"]
    assert asked_questions(config, run) == run.rl.questions_file


def test_too_few_questions_stay(tmp_path: Path) -> None:
    config, run = make_rl_run(tmp_path, tmp_path, select={"samples": 2, "minimum": 1.0, "maximum": 1.0})
    with pytest.raises(UsageError, match=r"rl.select keeps 0 of 6 questions, fewer than rl.questions_per_batch = 4"):
        select_questions(Round(config, run, 0), FakeEngine(), NoProgress())


def test_a_lease_is_renewed_only_while_there_is_progress(tmp_path: Path) -> None:
    queue = UnitQueue(tmp_path / "units", units_of(["a", "b"], 1), lease_seconds=0.4, attempts=3)
    claim = queue.claim()
    assert claim is not None
    touched = lambda: queue._owner_file.stat().st_mtime_ns  # noqa: E731
    with Watchdog(tmp_path / "alive", 60.0, 0.4) as watchdog:
        watchdog.hold(claim)
        before = touched()
        time.sleep(0.5)
        assert touched() > before  # nothing is being sampled: a model is loaded, verdicts are made
        with watchdog.sampling():
            time.sleep(0.3)
            before = touched()
            time.sleep(0.5)
            assert touched() == before
            watchdog.moved()
            time.sleep(0.3)
            assert touched() > before
        assert (tmp_path / "alive").exists()
    assert not (tmp_path / "alive").exists()


def test_a_process_that_hangs_gives_its_units_back(tmp_path: Path) -> None:
    queue = UnitQueue(tmp_path / "units", units_of(["a"], 1), attempts=3)
    claim = queue.claim()
    assert claim is not None
    codes: list[int] = []
    ended = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    with Watchdog(tmp_path / "alive", 0.3, 120.0, end=end) as watchdog:
        watchdog.hold(claim)
        with watchdog.sampling():
            assert ended.wait(10)
    assert codes == [EXIT_LOST]
    (failure,) = read_failures(tmp_path / "units").values()
    assert failure.attempts == 1 and "the engine hangs: no token" in failure.error
    assert UnitQueue(tmp_path / "units", units_of(["a"], 1), attempts=3).claim() is not None
