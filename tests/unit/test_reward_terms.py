"""Rewards of a round: terms by function, stored per answer; the verdict alone is what it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config.schema import Config
from sophia_mcore.environments.helpers import HelperReply
from sophia_mcore.environments.terms import applies, from_json, per_turn, require_terms, types_of, weighted
from sophia_mcore.environments.types import Ask
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.local import claim_folder
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Kept, Question, Terms
from sophia_mcore.score import terms
from sophia_mcore.score.candidates import choose
from sophia_mcore.score.phase import score_round
from sophia_mcore.store.layout import Round, RunFolder
from sophia_mcore.store.shards import read_folder, read_shard, write_shard
from tests.unit.test_score_phase import QUESTIONS, config_for, make_run, trajectories, trajectory

MINE = """
def short(episode, question):
    return 1.0 / len(episode.text)
def sometimes(episode, question):
    return None if episode.index == 0 else 1.0
def fails_on_zero(episode, question):
    return 1 / episode.index
def rank(group, question, *, first=1.0):
    order = sorted(group, key=lambda one: one.tokens)
    return [first if one is order[0] else 0.0 for one in group]
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "mine.py").write_text(MINE)
    return make_run(tmp_path / "run", [t for q in range(QUESTIONS) for t in trajectories(q)])


def scored(run: RunFolder, rewards: Sequence[dict[str, Any]], asked: Any = None, **sections: Any) -> dict[str, Any]:
    config = config_for(run.path, rewards=tuple(rewards), functions={"max_broken_share": 1.0}, **sections)
    claim_folder(config, run, new_settings=True)
    return score_round(Round(config, run, 0), NoProgress(), asked)


def test_the_verdict_alone_gives_the_same_bytes(run: RunFolder, tmp_path: Path) -> None:
    scored(run, [])
    folder = run.round(0)
    before = {path.name: path.read_bytes() for path in (folder.kept_file, folder.kept_summary_file)}
    scored(run, [{"function": "correct"}])
    assert {path.name: path.read_bytes() for path in (folder.kept_file, folder.kept_summary_file)} == before
    assert not folder.terms.exists()
    rows = read_shard(folder.kept_file, Kept)
    scored(run, [{"function": "correct"}, {"function": "format", "weight": 0.0}])  # the same by the other way
    assert rows and read_shard(folder.kept_file, Kept) == rows
    kept = json.loads(folder.kept_summary_file.read_text())
    for name, value in json.loads(before["kept.json"]).items():
        if name == "dropped":
            value = {"caption_reward": 36, "not_shortest": 36, "reward": 60}  # what "wrong" is called
        assert kept[name] == value or name == "reward", name


def test_terms_are_stored_and_weighed_anew_without_a_call(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{run.path.parent}/mine.py"
    rewards = [
        {"function": "correct", "weight": 0.9},
        {"function": "format", "weight": 0.1},
        {"function": f"{path}:rank", "weight": 0.0, "options": {"first": 2}},
    ]
    summary = scored(run, rewards)
    rows = {row.trajectory_id: from_json(row.values) for row in read_folder(run.round(0).terms, Terms)}
    assert len(rows) == 144 and rows["q1.image1.k0.n3"]["correct"] == 1.0 and rows["q1.image1.k2.n3"]["correct"] == 0.0
    assert {value["format"] for value in rows.values()} == {1.0}
    assert sum(value["rank"] for value in rows.values()) > 0 and {v["rank"] for v in rows.values()} == {0.0, 2.0}
    assert summary["rewards"]["terms"]["correct"]["mean"] == pytest.approx(84 / 144)
    assert summary["rewards"]["total"]["mean"] == pytest.approx(0.1 + 0.9 * 84 / 144)
    kept = read_shard(run.round(0).kept_file, Kept)
    assert {row.outcome for row in kept} == {1.0} and len(kept) == QUESTIONS
    assert {row.caption_reward for row in kept} == {1.0}
    monkeypatch.setattr(terms, "Library", None)  # no function can be called
    rewards[0]["weight"], rewards[1]["weight"] = 0.5, 0.0
    summary = scored(run, rewards, reward={"at_least": 0.5, "alpha": 0.4})
    assert summary["rewards"]["total"]["mean"] == pytest.approx(0.5 * 84 / 144)
    assert {row.outcome for row in read_shard(run.round(0).kept_file, Kept)} == {0.5}


def test_not_judged_is_never_zero(run: RunFolder) -> None:
    """The caption's reward is the mean over what was judged; what was not judged is not trained on."""
    path = f"{run.path.parent}/mine.py"
    summary = scored(run, [{"function": "correct"}, {"function": f"{path}:sometimes", "weight": 0.0}])
    assert summary["rewards"]["terms"]["sometimes"] == {"weight": 0.0, "judged": 108, "not_judged": 36, "mean": 1.0}
    assert summary["dropped"]["not_judged"] == 36
    # caption 1 is right in n = 1, 2, 3 and not judged in n = 0: its reward is 1, not 3/4
    assert summary["caption_pairs_passed"] == 2 * QUESTIONS
    config = config_for(
        run.path,
        rewards=({"function": "correct"}, {"function": f"{path}:sometimes", "weight": 0.0}),
        objective={"loss": {"name": "grpo"}},
    )
    chosen = choose(config, run.round(0), [f"q{q}" for q in range(QUESTIONS)])
    assert chosen.dropped["not_judged"] == 36 and not any(name.endswith("n0") for name in chosen.stored)


def test_a_failing_function(run: RunFolder) -> None:
    path = f"{run.path.parent}/mine.py"
    rewards = [{"function": "correct"}, {"function": f"{path}:fails_on_zero", "weight": 0.0}]
    summary = scored(run, rewards)
    (reason,) = summary["rewards"]["broken"]["reasons"]
    assert reason == f"rewards.fails_on_zero: {path}:fails_on_zero: ZeroDivisionError: division by zero (line 7)"
    config = config_for(run.path, rewards=tuple(rewards))
    with pytest.raises(SophiaError, match=r"36 of 144 answers are not judged .*max_broken_share = 0.05; .*Zero"):
        score_round(Round(config, run, 0), NoProgress())


class Reader:
    """Answers 7 whatever it is asked."""

    def __init__(self) -> None:
        self.asked: list[Ask] = []

    def ask(self, name: str, asks: Sequence[Ask]) -> list[HelperReply]:
        assert name == "reader"
        self.asked += asks
        return [HelperReply(r"\boxed{7}", "stop") for _ in asks]


def test_a_reader_is_asked_about_right_answers_only(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [t for q in (0, 1) for t in trajectories(q)], shards=1)
    reader = Reader()
    helpers = {"reader": {"engine": {"kind": "openai", "model_name": "m"}}}
    summary = scored(run, [{"function": "consistent"}], reader, helpers=helpers)
    assert len(reader.asked) == 14 and "so so" in reader.asked[-1].messages[0].text
    assert reader.asked[0].images == ()
    assert summary["rewards"]["terms"]["consistent"] == {"weight": 1.0, "judged": 24, "not_judged": 0, "mean": 7 / 24}
    assert {row.question_id for row in read_shard(run.round(0).kept_file, Kept)} == {"q0"}


def test_dispatch_by_answer_type(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [trajectory(q, 0, n, "7") for q in (0, 1) for n in range(4)], shards=1)
    questions = [
        Question(id="q0", question="?", answer="7", images=("image0",)),
        Question(id="q1", question="?", answer="[0, 0, 2, 2]", answer_type="Box", images=("image1",)),
    ]
    run.questions_file.unlink()
    write_shard(run.questions_file, questions, Question)
    rewards = [
        {"function": "correct", "only": {"answer_type": "integer"}},
        {"function": "iou", "only": {"answer_type": ["box"]}},
    ]
    scored(run, rewards)
    values = {row.question_id: row.values for row in read_folder(run.round(0).terms, Terms)}
    assert values == {"q0": '{"correct": 1.0}', "q1": '{"iou": 0.0}'}
    with pytest.raises(UsageError, match=r"no term is for question 'q1' \(answer type box, source ''\)"):
        scored(run, rewards[:1])
    wrong = [{"function": "equal"}, {"function": "iou", "only": {"answer_type": "boxes"}}]
    with pytest.raises(UsageError, match=r"rewards.iou: only = ... fits none of the 2 questions .*box, integer"):
        scored(run, wrong)


def test_totals() -> None:
    config = Config.model_validate(
        {
            "run": {"name": "t", "folder": "run"},
            "models": {"policy": "p", "reasoner": "r"},
            "data": {"questions": [{"kind": "jsonl", "path": "q"}]},
            "rewards": [
                {"function": "correct", "weight": 0.9},
                {"function": "format", "weight": -0.5},
                {"function": "equal", "only": {"source": "other"}},
            ],
        }
    )
    found = config.reward_terms
    assert weighted({"correct": 1.0, "format": 1.0}, found) == pytest.approx(0.4)
    assert weighted({"correct": 1.0, "format": None}, found) is None
    assert weighted({}, found) is None and weighted({"gone": 1.0}, found) is None
    assert per_turn({"correct": 1.0, "format": [1.0, 2.0]}, found, 2) == pytest.approx([-0.5, -0.1])
    question = Question(id="q", question="?", answer="B", options=("x", "y"), source="mine")
    assert types_of(question) == {"choice"} and not applies(found[2].only, question)
    with pytest.raises(UsageError, match=r"rewards.equal: only = ... fits none of the 1 questions"):
        require_terms(found, [question])
