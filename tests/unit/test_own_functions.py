"""Functions of four kinds: found and checked unexecuted, called in processes that may hang, die or lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config.functions import Functions
from sophia_mcore.config.schema import Config
from sophia_mcore.environments import codec, pool
from sophia_mcore.environments.pool import FunctionPool, Outcome, Spec
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.records import Question
from sophia_mcore.store.user_files import check_user_files, named_functions
from tests.support.episodes import episode

QUESTION = Question(id="q", question="2 + 2?", answer="4")
FILE = """
import os, sys, time
from sophia_mcore.environments import Ask, Message, Step, Target, Weight
print("noise")

def good(episode, question, *, scale=1.0):
    print("more noise", flush=True)
    return scale * len(episode.text)
def text(episode, question): return "1.0"
def nan(episode, question): return float("nan")
def none(episode, question): return None
def per_turn(episode, question): return (1.0, 2.0)
def raises(episode, question): raise KeyError("absent")
def exits(episode, question): sys.exit(3)
def dies(episode, question): os._exit(4)
def spins(episode, question):
    while True: pass
def sleeps(episode, question): time.sleep(3600)
def eats(episode, question): return len(bytearray(1 << 40))
def short(group, question): return [1.0]
def whole(group, question): return [float(one.index) for one in group]
def start(question, images, seed): return Step({"n": 1}, Ask.user(question.question, images))
def a_set(state, reply): return Step({1, 2})
def no_text_keys(state, reply): return Step({1: 2})
def no_step(state, reply): return {"state": 1}
def no_image(state, reply): return Step(None, Ask.user("look", (b"not an image",)))
def no_message(state, reply): return Step(None, Ask(messages=()))
def a_book(state, reply): return Step(None, Ask.user("look", prefill="x" * (257 << 20)))
def ask_text(state, reply): return Step(None, "again?")
def nan_reward(state, reply): return Step(None, None, {"gain": float("inf")})
def weigh(group): return [[Weight(1.0, 0.1)] for _ in group]
def too_many(group): return [[Weight(1.0), Weight(1.0)] for _ in group]
def targets(episode, question): yield Target(messages=(Message("user", "x"),), pieces=(("a", True), ("b", False)))
def nothing_learned(episode, question): return [Target(messages=(Message("user", "x"),), pieces=(("b", False),))]
"""
LIMITS = Functions(workers=2, timeout_seconds=0.4, memory_limit_mib=1024)
EPISODE = codec.episode_json(episode("four"))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    return tmp_path / "mine.py"


def call(path: Path, kind: str, names: Sequence[str], limits: Functions = LIMITS, **values: Any) -> list[Outcome]:
    specs = [Spec(key=name, path=str(path), name=name, reference=f"mine.py:{name}") for name in names]
    question = codec.question_json(QUESTION)
    with FunctionPool(specs, limits) as opened:
        return opened.run(
            [{"key": name, "kind": kind, "options": {}, "question": question, **values} for name in names]
        )


def test_every_failure_is_one_line_and_harms_no_other_call(mine: Path) -> None:
    wanted = {
        "good": (4.0, ""),
        "none": (None, ""),
        "text": (None, "what it returned must be a number, not '1.0'"),
        "nan": (None, "what it returned is nan"),
        "per_turn": (None, "returned 2 numbers for 1 turns of the policy"),
        "raises": (None, "KeyError: 'absent' (line 13)"),
        "exits": (None, "called exit(3) (line 14)"),
        "dies": (None, "its process ended with exit code 4 (memory is limited by functions.memory_limit_mib)"),
        "spins": (None, "took more than 0.4 CPU-seconds (functions.timeout_seconds)"),
        "sleeps": (None, "did not end within 2 seconds (5 x functions.timeout_seconds)"),
        "eats": (None, "ran out of memory (functions.memory_limit_mib) (line 19)"),
    }
    names = [*wanted, "good"]
    found = call(mine, "reward", names, episode=EPISODE)
    assert dict(zip(names, map(tuple, found), strict=True)) == wanted and found[-1] == (4.0, "")


def test_groups_steps_weights_and_targets(mine: Path) -> None:
    group = [codec.episode_json(episode("a", index=index)) for index in (0, 1)]
    found = call(mine, "group", ["whole", "short"], group=group)
    assert found == [([0.0, 1.0], ""), (None, "returned 1 numbers for 2 episodes")]
    found = call(mine, "weigh", ["weigh", "too_many"], group=group)
    assert found == [([[[1.0, 0.1]], [[1.0, 0.1]]], ""), (None, "returned 2 weights for 1 turns of the policy")]
    first, second = call(mine, "relabel", ["targets", "nothing_learned"], episode=EPISODE)
    assert first.value[0]["pieces"] == [["a", True], ["b", False]]
    assert second.error == "a Target has nothing that is learned"
    (first,) = call(mine, "start", ["start"], images=[], seed=1)
    assert first.value["state"] == {"n": 1} and codec.ask_of(first.value["ask"]).messages[0].text == "2 + 2?"
    wanted = {
        "a_set": "the state is not JSON: it holds a set ({1, 2})",
        "no_text_keys": "the state is not JSON: the key 1 is no text",
        "no_step": "must return a Step(state, ask, rewards), not {'state': 1}",
        "no_image": "image 0 of what it asks is not an image (UnidentifiedImageError)",
        "no_message": "Ask.messages: there is no message",
        "ask_text": "asks with 'again?', which is not an Ask",
        "nan_reward": "reward 'gain' is inf",
    }
    found = call(mine, "step", list(wanted), state=None, reply={"text": "", "finish_reason": "stop"})
    assert dict(zip(wanted, [one.error for one in found], strict=True)) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; sys.exit(3)", r"mine.py:f: cannot be imported: called exit\(3\) \(line 1\)"),
        ("import os; os._exit(0)", "mine.py:f: cannot be imported: its process ended with exit code 0"),
        ("raise RuntimeError('no')", r"mine.py:f: cannot be imported: RuntimeError: no \(line 1\)"),
        ("import absent_module", "cannot be imported: ModuleNotFoundError: No module named 'absent_module'"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(f"{text}\ndef f(episode, question): return 1.0")
    with pytest.raises(SophiaError, match=message):
        call(tmp_path / "mine.py", "reward", ["f"], episode=EPISODE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("while True: pass", r"took more than 0.5 CPU-seconds \(the most for an import\)"),
        ("import time; time.sleep(3600)", "it did not end within 5 seconds"),
    ],
)
def test_an_import_that_hangs(tmp_path: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "IMPORT_SECONDS", 0.5)
    monkeypatch.setattr(pool, "IMPORT_WALL_SECONDS", 5.0)
    (tmp_path / "mine.py").write_text(f"{text}\ndef f(episode, question): return 1.0")
    with pytest.raises(SophiaError, match=f"^mine.py:f: cannot be imported: {message}$"):
        call(tmp_path / "mine.py", "reward", ["f"], episode=EPISODE)


def test_an_answer_that_is_too_large(mine: Path) -> None:
    limits = Functions(workers=1, timeout_seconds=60.0, memory_limit_mib=4096)
    reply = {"text": "", "finish_reason": "stop"}
    (found,) = call(mine, "step", ["a_book"], limits, state=None, reply=reply)
    assert found == (None, "gave 257 MiB as JSON, and 256 are the most")


def config_of(rewards: Sequence[Any] = (), **rl: Any) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "t", "folder": "run"},
            "models": {"policy": "p", "reasoner": "r"},
            "data": {"questions": [{"kind": "jsonl", "path": "q"}]},
            "rewards": tuple(rewards),
            "helpers": {"reader": {"model": "r"}},
            "rl": {"samples_per_update": 512, **rl},
        }
    )


def test_by_name_and_by_file(mine: Path) -> None:
    rewards = [
        {"function": "correct"},
        {"function": f"{mine}:good", "weight": 0.5, "options": {"scale": 2}},
        {"function": f"{mine}:whole", "only": {"answer_type": "box"}},
        {"function": "format", "options": {"pattern": "a+"}},
        {"function": "consistent"},
    ]
    (mine.parent / "env.py").write_text(
        "def start(question, images, seed, *, size=3): ...\ndef step(state, reply, images, *, name='x'): ..."
    )
    environment = {"function": f"{mine.parent}/env.py", "options": {"size": 4, "name": "y"}}
    config = config_of(
        rewards, environment=environment, weigh=f"{mine}:weigh", relabel=[{"function": f"{mine}:targets"}]
    )
    check_user_files(config)
    keys = [one.key for one in named_functions(config)]
    assert keys == [
        "rewards.correct", "rewards.good", "rewards.whole", "rewards.format", "rewards.consistent",
        "rl.environment.start", "rl.environment.step", "rl.weigh", "rl.relabel.0",
    ]  # fmt: skip
    check_user_files(config_of(environment={"function": "again", "options": {"prompt": "Sure?"}}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"rewards": [{"function": "mine.py:god"}]},
            r"rewards.god: .*mine.py: no function 'god' \(did you mean 'good'",
        ),
        ({"rewards": [{"function": "mine.py:start"}]}, r"start must take \(episode, question\) or \(group, question\)"),
        ({"rewards": [{"function": "mine.py:good", "options": {"scle": 1}}]}, "no option 'scle' .did you mean 'scale'"),
        ({"rewards": [{"function": "iou", "options": {"at_most": 1.0}}]}, "rewards.iou: iou has no option 'at_most'"),
        ({"rewards": [{"function": "step"}]}, "rewards.step: step: option 'name' has no default and is not given"),
        ({"environment": "mine.py"}, r"rl.environment.step: .*mine.py: no function 'step'"),
        ({"environment": {"function": "again", "options": {"promt": "x"}}}, "no option 'promt' .did you mean 'prompt'"),
        ({"weigh": "mine.py:whole"}, r"rl.weigh: .*whole must take \(group\)"),
        ({"relabel": [{"function": "absent.py:f"}]}, "rl.relabel.0: absent.py: cannot be read"),
    ],
)
def test_mistakes_are_named(mine: Path, given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.parent)
    with pytest.raises(UsageError, match=message):
        check_user_files(config_of(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rewards": [{"function": "corect"}]}, r"unknown reward 'corect' .did you mean 'correct'"),
        ({"environment": "agian"}, "unknown environment 'agian' .did you mean 'again'"),
        ({"weigh": "turns"}, "unknown weigh 'turns' .did you mean 'turn'"),
        ({"weigh": {"function": "turn", "options": {"a": 1}}}, "'turn' has no options"),
        ({"rewards": [{"function": "correct"}, {"function": "correct"}]}, "two terms are called 'correct'"),
        ({"rewards": [{"function": "judge"}]}, r"judge asks the helper 'judge', but there is no \[helpers.judge\]"),
        ({"rewards": [{"function": "correct", "weight": 0.0}]}, "all weights are 0"),
        ({"environment": "again", "rethink": {"share": 0.5}}, "rethink.share needs environment = 'single'"),
    ],
)
def test_impossible_settings(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**given)
