"""`sophia check --try`: functions at work without a model; one that is not deterministic is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.launch.reward_questions import check_terms_fit, doubtful_steps
from sophia_mcore.launch.trial import Waiting, try_functions

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


HANGS = """
import os, pathlib, time
CALLS = pathlib.Path(__file__).resolve()
def note(name):
    with open(os.path.join(NOTES, name), "a") as file:
        file.write("x")
def sleeps(episode, question):
    note("sleeps")
    time.sleep(3600)
def spins(episode, question):
    note("spins")
    while True: pass
def dies(episode, question):
    note("dies")
    os._exit(3)
def hangs_later(episode, question):
    note("later")
    if os.path.getsize(os.path.join(NOTES, "later")) > 12:
        time.sleep(3600)
    return 1.0
"""


@pytest.mark.parametrize(
    ("name", "why", "most"),
    [
        ("sleeps", r"did not end within 2\.5 seconds \(5 x functions.timeout_seconds\)", 2),
        ("spins", r"took more than 0\.5 CPU-seconds \(functions.timeout_seconds\)", 2),
        ("dies", "its process ended with exit code 3", 4),
        ("hangs_later", "did not end within 2.5 seconds", 16),
    ],
)
def test_a_function_that_hangs_or_dies_is_not_called_again(tmp_path: Path, name: str, why: str, most: int) -> None:
    """The first of its calls that takes a process down ends the trial, and it is not called "not deterministic"."""
    (tmp_path / "hangs.py").write_text(f"NOTES = {str(tmp_path)!r}\n{HANGS}")
    config = config_of(tmp_path, "good")
    config = config.model_copy(
        update={
            "rewards": (config.rewards[1].model_copy(update={"function": f"{tmp_path}/hangs.py:{name}"}),),
            "functions": config.functions.model_copy(update={"timeout_seconds": 0.5}),
            "rl": None,
        }
    )
    said: list[str] = []
    with pytest.raises(SophiaError, match=rf"^rewards.{name}: .*hangs.py:{name}: {why}.*; it was not called again$"):
        list(try_functions(config, 3, Waiting(said.append, seconds=0.0)))
    called = (tmp_path / name.removeprefix("hangs_")).stat().st_size
    assert 0 < called <= most  # one in each process, or twice where it might have been killed by somebody else
    if name in ("sleeps", "spins"):
        assert any(f"hangs.py:{name} (at most 2.5 seconds a call); 0 of 12 calls are done" in line for line in said)


def test_quick_functions_are_not_waited_for(tmp_path: Path) -> None:
    said: list[str] = []
    list(try_functions(config_of(tmp_path, "good"), 2, Waiting(said.append, seconds=3600.0)))
    assert said == []


ENVIRONMENTS = {
    "places": (
        'Step(0, Ask.user("a <image> and <image>", images))',
        "asks with 1 images and 2 places <image> for them",
    ),
    "helper": (
        'Step(0, Ask.user("a", to="raeder"))',
        r"asks 'raeder', which is none of \[helpers\] \(there are policy\)",
    ),
    "over": ("Step(0)", "the episode ended before the policy was asked"),
    "large": (
        'Step("x" * 1_000_000, Ask.user("a"))',
        "start: the state is 1,000,002 characters of JSON, and 1,000,000 are the most: it is passed on with every turn",
    ),
    "deep": ("Step(itself(), Ask.user('a'))", "start: the state is not JSON: it holds itself, or is nested too deeply"),
    "digits": ("Step(10 ** 5000, Ask.user('a'))", "start: the state is not JSON: Exceeds the limit"),
    "half": (r'Step(0, Ask.user("\ud800"))', "start: Ask.messages: the text of a message holds half a character"),
    "later": (
        'Step(0, Ask.user("a", images))',
        r"asks 'raeder', which is none of \[helpers\] \(there are policy\)",
    ),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_why_an_episode_is_broken(tmp_path: Path, name: str) -> None:
    """The reader reads the reason, not what follows from it: that the policy was never asked, or nothing was judged."""
    start, why = ENVIRONMENTS[name]
    (tmp_path / "env.py").write_text(
        "from sophia_mcore.environments import Ask, Step\n"
        "def itself():\n    own = []\n    own.append(own)\n    return own\n"
        f"def start(question, images, seed): return {start}\n"
        'def step(state, reply): return Step(0, Ask.user("a", to="raeder"))\n'
    )
    config = config_of(tmp_path, "good", environment=f"{tmp_path}/env.py", max_turns=2)
    with pytest.raises(SophiaError, match=f"8 of 8 (calls failed|episodes are broken), such as: rl.environment.*{why}"):
        list(try_functions(config, 2))


def test_a_state_of_the_largest_size_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "env.py").write_text(
        "from sophia_mcore.environments import Ask, Step\n"
        'def start(question, images, seed): return Step("x" * 999_998, Ask.user("a", images))\n'
        "def step(state, reply): return Step(len(state), None)\n"
    )
    lines = list(try_functions(config_of(tmp_path, "good", environment=f"{tmp_path}/env.py"), 1))
    assert lines[0].startswith("tried 1 questions")


def test_episodes_that_are_cut_off_say_why(tmp_path: Path) -> None:
    (tmp_path / "env.py").write_text(
        "from sophia_mcore.environments import Ask, Step\n"
        'def start(question, images, seed): return Step(0, Ask.user("a", images))\n'
        'def step(state, reply): return Step(0, Ask.user("and?"))\n'
    )
    lines = list(try_functions(config_of(tmp_path, "good", environment=f"{tmp_path}/env.py", max_turns=2), 1))
    assert lines[-1] == "  4 of 4 episodes were cut off, such as: more than rl.max_turns = 2 turns"


FUNCTIONS = """
from sophia_mcore.environments import Ask, Target
def nothing(episode, question): return None
def sets(episode, question):
    episode.right = True
    return 1.0
def deletes(episode, question):
    del question.answer
    return 1.0
def asks(episode, question): return Ask.user("well?", to="juge")
def returns_function(episode, question): return lambda: 1.0
def raises_object(episode, question): raise ValueError(object())
def yes(episode, question): return [Target(messages=episode.last.messages, pieces=(("x", "yes"),))]
def image(episode, question): return [Target(messages=episode.last.messages, pieces=(("x", True),), images=("a",))]
def half(episode, question): return [Target(messages=episode.last.messages, pieces=(("\\ud800", True),))]
def good(episode, question):
    return [Target(messages=episode.last.messages, pieces=(("x", True),), images=question.images)]
def one(episode, question): return 1.0
"""


def tried(folder: Path, reward: dict[str, Any], **rl: Any) -> list[str]:
    config = config_of(folder, "good", **rl)
    (folder / "own.py").write_text(FUNCTIONS)
    term = {"function": f"{folder}/own.py:{reward.pop('name')}", **reward}
    return list(try_functions(config.model_validate({**config.model_dump(), "rewards": (term,)}), 2))


@pytest.mark.parametrize(
    ("reward", "relabel", "message"),
    [
        ({"name": "sets"}, "", r"AttributeError: Episode.right cannot be changed: what a function .* \(line 5\)"),
        ({"name": "deletes"}, "", r"AttributeError: Question.answer cannot be changed: .* \(line 8\)"),
        ({"name": "one", "ask": "asks"}, "", r"rewards.one.ask: .*asks: asks 'juge', .* \(there is none\)"),
        ({"name": "returns_function"}, "", "must be a number, not <function returns_function.<locals>.<lambda>>$"),
        ({"name": "raises_object"}, "", r"ValueError: <object object> \(line 12\)"),
        ({"name": "one"}, "yes", r"yes: Target.pieces holds \('x', 'yes'\), which is not \(text, True or False\)"),
        ({"name": "one"}, "image", "image: Target.images holds 'a', which is in images of no turn"),
        ({"name": "one"}, "half", "half: the text of a piece holds half a character"),
    ],
)
def test_what_a_function_must_not_do(tmp_path: Path, reward: dict[str, Any], relabel: str, message: str) -> None:
    given = dict(reward)
    if "ask" in given:
        given["ask"] = f"{tmp_path}/own.py:{given['ask']}"
    rl = {"relabel": [{"function": f"{tmp_path}/own.py:{relabel}"}]} if relabel else {}
    with pytest.raises(SophiaError, match=message):
        tried(tmp_path, given, **rl)


def test_what_is_said_about_terms_and_targets(tmp_path: Path) -> None:
    lines = tried(tmp_path, {"name": "nothing"}, relabel=[{"function": f"{tmp_path}/own.py:good"}])
    assert lines[1] == "  nothing (weight 1): no value; judged 0 of 8"
    assert lines[2].startswith("  warning: rewards.nothing has judged nothing: an answer without a value leaves its ")
    assert lines[3].endswith("own.py:good: 8 targets of 8 episodes") and len(lines) == 4


def with_rewards(folder: Path, *rewards: dict[str, Any], **rl: Any) -> Config:
    config = config_of(folder, "good", **rl)
    return config.model_validate({**config.model_dump(), "rewards": rewards})


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (
            {"answer_type": ["intger"]},
            r"rewards.iou: only = ... fits none of the 3 questions \(did you mean 'integer'\? answer types: integer; ",
        ),
        ({"answer_type": "bx"}, r"rewards.iou: only = ... fits none of the 3 questions \(answer types: integer; "),
        ({"source": "qq"}, r"did you mean 'q'\? answer types: integer; sources: 'q'"),
    ],
)
def test_a_term_that_is_for_no_question(tmp_path: Path, only: dict[str, Any], message: str) -> None:
    term = {"function": "iou", "only": only}
    with pytest.raises(UsageError, match=message):
        check_terms_fit(with_rewards(tmp_path, {"function": "correct"}, term))
    with pytest.raises(
        UsageError, match=r"no term is for question 'q0' .answer type integer, source 'q'.*never be judged"
    ):
        check_terms_fit(with_rewards(tmp_path, {"function": "correct", "only": {"source": "x"}}, term))


def test_a_type_far_behind_is_found_and_what_is_not_here_is_left_to_the_run(tmp_path: Path) -> None:
    config = with_rewards(
        tmp_path, {"function": "correct"}, {"function": "iou", "only": {"answer_type": "box", "source": "q"}}
    )
    rows = [{"id": f"q{i}", "question": "?", "answer": "1", "image": "a.png"} for i in range(40)]
    rows.append({"id": "last", "question": "?", "answer": "[0, 0, 1, 1]", "answer_type": "Box", "image": "a.png"})
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = config.model_validate(
        {
            **config.model_dump(),
            "data": {"questions": [{"kind": "jsonl", "path": str(tmp_path / "q.jsonl"), "columns": {
                "question": "question", "answer": "answer", "images": "image", "answer_type": "answer_type", "id": "id"
            }}]},
        }
    )  # fmt: skip
    check_terms_fit(config)
    (tmp_path / "q.jsonl").unlink()
    check_terms_fit(config)


def test_a_step_that_nobody_says(tmp_path: Path) -> None:
    (tmp_path / "env.py").write_text(
        "from sophia_mcore.environments import Ask, Step\n"
        'def start(question, images, seed): return Step(0, Ask.user("a", images))\n'
        'def step(state, reply): return Step(0, None, {"changed": 1.0})\n'
    )
    term = {"function": "step", "options": {"name": "chnged"}}
    config = with_rewards(tmp_path, {"function": "correct"}, term, environment=f"{tmp_path}/env.py")
    (line,) = doubtful_steps(config)
    assert line.endswith("env.py does not mention 'chnged' (did you mean 'changed'?)")
    *_, last = try_functions(config, 1)
    assert last == "  warning: rewards.step: no step has said 'chnged' (did you mean 'changed'?)"
    term["options"] = {"name": "changed"}
    config = with_rewards(tmp_path, {"function": "correct"}, term, environment=f"{tmp_path}/env.py")
    assert not list(doubtful_steps(config)) and "warning" not in "".join(try_functions(config, 1))
    (line,) = doubtful_steps(with_rewards(tmp_path, {"function": "correct"}, term, environment="again"))
    assert line == "rewards.step: the steps of rl.environment = 'again' say nothing of 'changed': it is always 0"
    (line,) = doubtful_steps(config.model_copy(update={"rl": None}))
    assert line.startswith("rewards.step: an answer of a round has no environment")
