"""`sophia check --try`: functions at work without a model; one that is not deterministic is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.launch.trial import try_functions

MINE = """
import random
SEEN = []
from sophia_mcore.environments import Ask, Step, Weight

def start(question, images, seed):
    return Step({"n": 0}, Ask.user(question.question, images))
def step(state, reply, images):
    return Step({"n": 1}, None if state["n"] else Ask.user("again", images))
def good(episode, question): return len(episode.text) / 10
def chance(episode, question): return random.random()
def counts(episode, question):
    SEEN.append(1)
    return float(len(SEEN))
def by_set(episode, question): return "".join(sorted({"a", "b", "c"}, key=hash)) == "abc"
def weigh(group): return [[Weight(random.random()) for _ in one.policy_turns] for one in group]
def fails(episode, question): return 1 / 0
"""


def config_of(folder: Path, reward: str, **rl: Any) -> Config:
    (folder / "mine.py").write_text(MINE)
    Image.new("RGB", (28, 28)).save(folder / "a.png")
    rows = [{"id": f"q{i}", "question": f"{i}?", "answer": str(i), "image": "a.png"} for i in range(3)]
    (folder / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return Config.model_validate(
        {
            "run": {"name": "t", "folder": folder / "run"},
            "models": {"policy": "p", "reasoner": "r"},
            "data": {"questions": [{"kind": "jsonl", "path": str(folder / "q.jsonl")}]},
            "rewards": [{"function": "correct"}, {"function": f"{folder}/mine.py:{reward}", "weight": 0.5}],
            "functions": {"timeout_seconds": 20.0},
            "rl": rl,
        }
    )


def test_what_came_out(tmp_path: Path) -> None:
    config = config_of(tmp_path, "good", environment=f"{tmp_path}/mine.py")
    lines = list(try_functions(config, 2))
    assert lines[0].startswith("tried 2 questions x 4 episodes twice, 16 turns of a stand-in for the policy")
    assert lines[1] == "  correct (weight 1): mean 0.500, from 0 to 1; judged 8 of 8"
    assert lines[2].startswith("  good (weight 0.5): mean ") and not (tmp_path / "run").exists()


def test_the_stages_own_questions_are_played(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    row = {"id": "o", "question": "a longer one?", "answer": "12345", "image": "a.png"}
    own.write_text(json.dumps(row))
    config = config_of(tmp_path, "good", questions=[{"kind": "jsonl", "path": str(own)}])
    assert next(iter(try_functions(config, 2))).startswith("tried 1 questions x 4 episodes")
    own.write_text(json.dumps(row | {"answer": ""}))
    with pytest.raises(SophiaError, match=r"the sources of rl\.questions have no good row"):
        list(try_functions(config, 2))


@pytest.mark.parametrize(
    ("reward", "rl", "message"),
    [
        ("chance", {}, r"rewards.chance: .*mine.py:chance is not deterministic: called twice .* it gave 0\."),
        ("counts", {}, "rewards.counts: .*mine.py:counts is not deterministic"),
        ("good", {"weigh": "mine.py:weigh"}, "rl.weigh: .*mine.py:weigh is not deterministic"),
        ("fails", {}, r"of .* calls failed, such as: rewards.fails: .*ZeroDivisionError"),
    ],
)
def test_a_function_that_differs_is_named(
    tmp_path: Path, reward: str, rl: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SophiaError, match=message):
        list(try_functions(config_of(tmp_path, reward, **rl), 3))
