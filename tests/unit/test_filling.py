"""Engines are kept full across work units; what is stored does not depend on it, and a kill loses nothing but time."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config.engines import Sampling
from sophia_mcore.config.load import load_config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.generate.captions import generate_captions
from sophia_mcore.generate.engine import Completion, Cut, Key, OnStep, Request, RequestError
from sophia_mcore.generate.phase import Asked
from sophia_mcore.generate.reasoning import generate_trajectories
from sophia_mcore.generate.sampling import run_phase
from sophia_mcore.launch.phases import REASONING
from sophia_mcore.pretrained.chat import Message
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Kept, Trajectory
from sophia_mcore.score.phase import score_round
from sophia_mcore.store.failures import read_failures
from sophia_mcore.store.layout import Round
from sophia_mcore.store.shards import read_folder, read_shard
from sophia_mcore.store.units import Unit, UnitQueue, units_of
from tests.support.generate_world import FakeEngine, make_config, make_run
from tests.support.streaming_engine import StreamingEngine

MANY = {"per_caption": 8, "questions_per_unit": 1}


def begun(folder: Path, **reasoning: Any) -> Round:
    """A round whose captions are there: 5 questions of 2 captions each."""
    run = make_run(folder)
    config = make_config(
        folder, reasoning={**MANY, **reasoning}, reward={"alpha": 0.7}, score={"workers": 1, "second_opinions": 0}
    )
    round = Round(config, run, 0)
    generate_captions(round, FakeEngine(), NoProgress())
    return round


def shards(round: Round) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(round.folder.trajectories.glob("*.parquet"))}


@pytest.mark.parametrize("waves", [None, [1], [3, 5]])
def test_shards_are_the_same_however_the_engine_is_fed(tmp_path: Path, waves: list[int] | None) -> None:
    found, engines = [], []
    for name, engine in (
        ("together", StreamingEngine()),
        ("in turn", StreamingEngine(across_units=False)),
        ("wide", StreamingEngine(places=500)),
    ):
        round = begun(tmp_path / name, waves=waves)
        assert generate_trajectories(round, engine, NoProgress()) == 5
        found.append(shards(round))
        engines.append(engine)
    assert len(found[0]) == 5 and all(one == found[0] for one in found)
    assert engines[0].calls == 0
    if waves is None:
        assert engines[1].calls == 5  # one unit after the other, each in one call
        together = engines[0].together
        assert together[0] == 6 and together == sorted(together, reverse=True)  # full until nothing waits any more


def test_a_kill_in_the_middle_of_units_changes_nothing(tmp_path: Path) -> None:
    for waves in (None, [2]):
        whole = begun(tmp_path / f"whole {waves}", waves=waves)
        generate_trajectories(whole, StreamingEngine(), NoProgress())
        killed = begun(tmp_path / f"killed {waves}", waves=waves)
        for steps in (3, 17, 40):
            with pytest.raises(KeyboardInterrupt):
                generate_trajectories(killed, StreamingEngine(dies_after=steps), NoProgress())
            claims = list((killed.folder.trajectories / "claims").glob("0*"))
            assert {path.read_text() for path in claims} == {"free"}  # anybody may go on at once
        generate_trajectories(killed, StreamingEngine(), NoProgress())
        assert shards(killed) == shards(whole)


def test_a_request_that_cannot_be_asked_costs_its_own_unit_only(tmp_path: Path) -> None:
    whole = begun(tmp_path / "whole")
    generate_trajectories(whole, StreamingEngine(), NoProgress())
    victim = next(iter(read_folder(whole.folder.trajectories, Trajectory)))
    round = replace(begun(tmp_path / "one is bad"), unit_attempts=3)  # as a task of a job has it
    with pytest.raises(SophiaError, match=r"1 of 5 work units failed, .* after 3 attempts.*this prompt does not fit"):
        generate_trajectories(round, StreamingEngine(bad_seed=victim.seed), NoProgress())
    assert len(read_failures(round.folder.trajectories)) == 1
    wanted = {name: data for name, data in shards(whole).items() if name in shards(round)}
    assert len(wanted) == 4 and shards(round) == wanted


def test_units_do_not_pile_up_before_slow_verdicts(tmp_path: Path) -> None:
    begun_units = graded = most = 0

    def ask(unit: Unit) -> list[Asked[Trajectory]]:
        nonlocal begun_units, most
        begun_units += 1
        most = max(most, begun_units - graded)
        return [asked_for(unit.id, begun_units)]

    def grade(records: Sequence[Trajectory]) -> Sequence[Trajectory]:
        nonlocal graded
        time.sleep(0.01)
        graded += 1
        return records

    queue = UnitQueue(tmp_path, units_of([str(number) for number in range(60)], 1))
    engine = StreamingEngine(places=2)
    assert run_phase("slow", queue, Trajectory, engine, NoProgress(), ask=ask, grade=grade, settings={}) == 60
    assert most <= 2 + (4 + 2) + 1


def test_nothing_of_a_failed_unit_is_asked_again_when_the_stream_ends(tmp_path: Path) -> None:
    def ask(unit: Unit) -> list[Asked[Trajectory]]:
        return [asked_for(f"{unit.id}-{number}", number) for number in range(3)]

    queue, engine = UnitQueue(tmp_path, units_of(["a", "b", "c"], 1), attempts=3), FallingEngine()
    assert run_phase("three", queue, Trajectory, engine, NoProgress(), ask=ask, settings={}) == 3
    # the first and the third have failed and are begun anew; what was running of the second is asked again
    assert list(Counter(name.partition(".")[0] for name, _ in engine.keys).values()) == [3 + 3] * 3


def test_a_unit_that_waits_for_its_verdicts_is_written_when_another_fails(tmp_path: Path) -> None:
    seeds = count(1)

    def ask(unit: Unit) -> list[Asked[Trajectory]]:
        return [asked_for(unit.id, next(seeds))]

    def grade(records: Sequence[Trajectory]) -> Sequence[Trajectory]:
        time.sleep(0.5)
        return records

    queue, engine = UnitQueue(tmp_path, units_of(["a", "b", "c"], 1), attempts=1), StreamingEngine(places=1, bad_seed=2)
    with pytest.raises(SophiaError, match="this prompt does not fit"):
        run_phase("slow", queue, Trajectory, engine, NoProgress(), ask=ask, grade=grade, settings={})
    assert len(list(tmp_path.glob("*.parquet"))) == 1


class FallingEngine(StreamingEngine):
    """Cannot answer the first request that it is given, then falls down once. ``keys``: all that were asked."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[tuple[str, int]] = []

    def stream(
        self, more: Callable[[int], Sequence[tuple[Key, Request]]], on_step: OnStep, cut: Cut[Key] | None = None
    ) -> Iterator[tuple[Key, Completion | RequestError]]:
        falls = not self.keys

        def noting(places: int) -> Sequence[tuple[Key, Request]]:
            further = more(places)
            self.keys += [key for key, _ in further]
            return further

        if falls:
            asked = list(iter(lambda: noting(100), []))
            yield asked[0][0][0], RequestError("not this one")
            raise SophiaError("fell down")
        yield from super().stream(noting, on_step, cut)


class RefusingEngine(StreamingEngine):
    """Cannot answer the first request that it is given, as an endpoint whose context is too short."""

    def stream(
        self, more: Callable[[int], Sequence[tuple[Key, Request]]], on_step: OnStep, cut: Cut[Key] | None = None
    ) -> Iterator[tuple[Key, Completion | RequestError]]:
        ((key, _),) = more(1)
        yield key, RequestError("too long")
        yield from super().stream(more, on_step, cut)


def test_what_was_asked_is_named_where_it_cannot_be_answered(tmp_path: Path) -> None:
    queue = UnitQueue(tmp_path, units_of(["a", "b", "c"], 1), attempts=1)
    with pytest.raises(SophiaError, match=r"too long \(asked was: 'What is the name of \w+-\w+\?'\)"):
        run_phase("refused", queue, Trajectory, RefusingEngine(), NoProgress(), settings={},
                  ask=lambda unit: [asked_for(f"What is the name of {unit.id}?", 1)])  # fmt: skip


def asked_for(name: str, seed: int) -> Asked[Trajectory]:
    request = Request(messages=(Message("user", name),), sampling=Sampling(), seed=seed)
    return Asked(request, partial(Trajectory, id=name, question_id="q", caption_id="k", index=0, source="reasoner"))


def test_what_cannot_be_written_ends_the_work_and_blames_no_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    round = replace(begun(tmp_path), unit_attempts=3)
    with monkeypatch.context() as patch:
        patch.setattr("sophia_mcore.store.shards.write_shard", full_disk)
        with pytest.raises(SophiaError, match="no space left"):
            generate_trajectories(round, StreamingEngine(), NoProgress())
    assert not read_failures(round.folder.trajectories)
    assert generate_trajectories(round, StreamingEngine(), NoProgress()) == 5


def full_disk(*_: object) -> None:
    raise SophiaError("no space left on device")


def test_the_early_stop_keeps_the_same_and_says_what_it_saved(tmp_path: Path) -> None:
    kept, tokens = [], []
    for number, (waves, cuts) in enumerate(((None, True), ([1], True), ([4], True), ([8], True), ([1], False))):
        engine = StreamingEngine(right=0.6, places=1000, cuts=cuts, step_seconds=0.002)
        round = begun(tmp_path / str(number), waves=waves)
        generate_trajectories(round, engine, NoProgress())
        summary = score_round(round, NoProgress())
        kept.append(round.folder.kept_file.read_bytes())
        tokens.append(engine.tokens)
        if waves is None:
            assert "early_stop" not in summary and REASONING.state_of(round).note == ""
            continue
        stopped = summary["early_stop"]
        assert stopped["trajectories_left_out"] == 5 * 2 * 8 - summary["trajectories"] > 0
        assert 0 <= stopped["trajectories_given_up"] <= stopped["trajectories_left_out"] and stopped["waves"] == waves
        assert (stopped["tokens_saved"] > 0) == (waves != [8])  # one wave of all: each was begun
        assert stopped["tokens_saved"] <= stopped["tokens_saved_at_most"] > 0
        assert stopped["trajectories_given_up"] == 0 or cuts
        assert stopped["tokens_sampled"] <= engine.tokens
        assert stopped["tokens_sampled"] == engine.tokens or engine.given_up  # of these only the least is known
        assert json.loads(round.folder.kept_summary_file.read_bytes())["early_stop"] == stopped
        assert "trajectories left out" in REASONING.state_of(round).note
    assert all(one == kept[0] for one in kept[1:]) and read_shard(round.folder.kept_file, Kept)
    assert max(tokens[1:]) < tokens[0]


def test_scoring_refuses_what_was_stopped_under_another_reward(tmp_path: Path) -> None:
    round = begun(tmp_path, waves=[1])
    generate_trajectories(round, StreamingEngine(), NoProgress())
    other = make_config(tmp_path, reasoning={**MANY, "waves": [1]}, reward={"alpha": 0.05})
    with pytest.raises(SophiaError, match=r"captions have too few trajectories, such as .*\(reasoning.waves\)"):
        score_round(Round(other, round.run, 0), NoProgress())
    for path in list(round.folder.trajectories.glob("*.parquet"))[:1]:
        path.unlink()
    with pytest.raises(SophiaError, match="was made with another waves"):
        generate_trajectories(Round(other, round.run, 0), StreamingEngine(), NoProgress())


def test_the_early_stop_is_refused_where_all_trajectories_are_learned_from(tmp_path: Path) -> None:
    for objective in ({"loss": {"name": "grpo"}}, {"trajectories": "all"}):
        with pytest.raises(ValueError, match=r"reasoning.waves leaves out .*learns from all K x N"):
            make_config(tmp_path, reasoning={"waves": [1]}, objective=objective)
    make_config(tmp_path, reasoning={"waves": [1]}, objective={"loss": {"name": "grpo"}, "trajectories": "kept"})
    with pytest.raises(ValueError, match=r"reasoning\.waves\n.*at least 1 item"):
        make_config(tmp_path, reasoning={"waves": []})
    text = '[run]\nname = "x"\nfolder = "x"\n[models]\npolicy = "p"\nreasoner = "r"\n'
    (tmp_path / "run.toml").write_text(
        f'{text}[reasoning]\nwaves = [1, 0]\n[[data.questions]]\nkind = "jsonl"\npath = "x"\n'
    )
    with pytest.raises(UsageError, match=r"reasoning.waves"):
        load_config(tmp_path / "run.toml")
