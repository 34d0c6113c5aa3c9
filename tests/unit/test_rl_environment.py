"""Episodes in an engine without a model: turns, images, helpers, limits, and what is stored of them."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.environments import terms
from sophia_mcore.environments.rows import episode_of
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Request
from sophia_mcore.generate.episodes import open_episodes
from sophia_mcore.generate.phase import read_questions
from sophia_mcore.generate.rendering import Renderer
from sophia_mcore.generate.rollout_unit import Examiner, begun, gone_on
from sophia_mcore.launch.local import claim_folder
from sophia_mcore.pretrained.family import IMAGE_PLACE, ImageLimits
from sophia_mcore.records import Rollout
from sophia_mcore.rl.prompts import system_prompt
from sophia_mcore.rl.stream import rollout_seed
from sophia_mcore.rl.versions import Version
from sophia_mcore.score.grading import open_grader
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.units import Unit
from tests.support import tiny_models
from tests.support.living_engine import FakeLivingEngine
from tests.support.rl_world import make_rl_run, rollouts_of

MINE = """
import io, os
from PIL import Image
from sophia_mcore.environments import Ask, Message, Step

def start(question, images, seed, *, turns=2):
    return Step({"left": turns, "question": question.question}, Ask.user(question.question, images))

def step(state, reply, images, *, mode="draw"):
    rewards = {"length": float(len(reply.text))}
    if state["left"] == 1:
        return Step(state, None, rewards)
    if mode == "never":
        return Step(state, Ask.user("again", images), rewards)
    if mode == "helper":
        return Step(state, Ask.user("who?", to="raeder"), rewards)
    if mode == "crash" and "1" in reply.text:
        raise ValueError("one")
    if mode == "places":
        return Step(state, Ask.user("<image> and <image>", images), rewards)
    if mode == "long":
        return Step(state, Ask.user("word " * 40000, images), rewards)
    with Image.open(io.BytesIO(images[0])) as picture:
        small = io.BytesIO()
        picture.convert("RGB").crop((0, 0, 14, 14)).save(small, "PNG")
    asked = (Message("user", state["question"]), Message("assistant", reply.text), Message("user", "Look: <image>"))
    ask = Ask(messages=(Message("system", "Zoom."), *asked), images=(small.getvalue(),), prefill="so")
    return Step({**state, "left": state["left"] - 1}, ask, rewards)

def share(episode, question):
    return tuple(len(turn.text) / 100 for turn in episode.policy_turns)

def rank(group, question):
    return [float(one.index) for one in group]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_internvl(tmp_path_factory.mktemp("models") / "m", seed=1)


def played(
    folder: Path, model: Path, rewards: Any = (), items: tuple[str, ...] = ("q0", "q1"), **rl: Any
) -> tuple[list[Rollout], list[Request], Any]:
    """The rows of one unit, what was asked, and the run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(MINE)
    config, run = make_rl_run(folder / "run", model, **rl)
    config = config.model_validate({**config.model_dump(), "rewards": rewards, "functions": {"timeout_seconds": 20.0}})
    claim_folder(config, run, new_settings=True)
    questions = {question.id: question for question in read_questions(run.questions_file, with_images=True)}
    from tests.support.versions import publish

    publish(model, run.rl.versions, 0)
    from sophia_mcore.rl.versions import read_version

    version = read_version(run.rl.versions, 0)
    assert isinstance(version, Version)
    engine = FakeLivingEngine(version.path(run.rl.versions), version.digest)
    with ExitStack() as opened:
        grader = opened.enter_context(open_grader(config.score))
        episodes = open_episodes(config, run, questions, grader, opened)
        examiner = Examiner(config, questions, system_prompt(config), ImageStore(run.images), grader, episodes)
        waves = examiner.waves(Unit("u", items), 0, version, Renderer.from_model_dir(model, ImageLimits()))
        requests, rollouts = begun(waves)
        while requests:
            requests, rollouts = gone_on(waves, engine.generate(requests))
    return rollouts, engine.requests, run


def env(folder: Path, **options: Any) -> dict[str, Any]:
    return {"function": f"{folder}/mine.py", "options": options}


def test_two_turns_with_a_drawn_image(tmp_path: Path, model: Path) -> None:
    rewards = [
        {"function": "correct", "weight": 0.5},
        {"function": f"{tmp_path}/mine.py:share"},
        {"function": f"{tmp_path}/mine.py:rank", "name": "place"},
        {"function": "step", "name": "length", "options": {"name": "length"}},
    ]
    rows, requests, run = played(tmp_path, model, rewards, environment=env(tmp_path, turns=2))
    assert [one.id for one in rows[:4]] == ["q0.b0.n0", "q0.b0.n0.t1", "q0.b0.n1", "q0.b0.n1.t1"] and len(rows) == 12
    assert [one.seed for one in rows[:1]] == [rollout_seed(7, 0, "q0", 0)] and len({one.seed for one in rows}) == 12
    first, second = rows[:2]
    asked = json.loads(second.prompt)
    roles = [role for role, _ in asked["messages"]]
    assert roles == ["system", "user", "assistant", "user"] and asked["messages"][0][1] == "Zoom."
    assert asked["messages"][2][1] == first.text and IMAGE_PLACE in asked["messages"][3][1]
    assert json.loads(first.prompt)["messages"][0] == ["system", "Think."]
    assert len(ImageStore(run.images).get(asked["images"][0])) > 50  # the crop is kept
    assert second.given > 0 and second.token_ids[: second.given] == requests[-1].continue_ids
    assert len(second.token_logprobs) == len(second.token_ids) - second.given
    one, two = terms.from_json(first.scores), terms.from_json(second.scores)
    assert one.keys() == {"share", "length"} and two.keys() == {"correct", "share", "place", "length"}
    assert one["length"] == len(first.text) and one["share"] == len(first.text) / 100
    assert [terms.from_json(row.scores)["place"] for row in rows if row.turn == 1] == [0.0, 1.0, 2.0] * 2
    seen = episode_of(rows[:2], read_questions(run.questions_file, with_images=True)[0])
    assert len(seen.policy_turns) == 2 and seen.scores["place"] == 0.0 and seen.turns[1].images == (asked["images"][0],)
    again, _, _ = played(tmp_path / "again", model, json.loads(json.dumps(rewards)), environment=env(tmp_path, turns=2))
    assert again == rows


def test_the_built_in_second_attempt(tmp_path: Path, model: Path) -> None:
    rows, requests, _ = played(tmp_path, model, environment="again")
    assert len(rows) == 12 and {one.turn for one in rows} == {0, 1}
    second = requests[6]
    assert [message.role for message in second.messages] == ["system", "user", "assistant", "user"]
    assert second.messages[1] == requests[0].messages[1] and second.images == requests[0].images
    assert all(terms.from_json(one.scores) == {} for one in rows if one.turn == 0)
    rights = {one.index: float(one.verdict == "correct") for one in rows if one.turn == 1 and one.question_id == "q0"}
    scores = [terms.from_json(one.scores)["correct"] for one in rows if one.turn == 1 and one.question_id == "q0"]
    assert scores == list(rights.values())


@pytest.mark.parametrize(
    ("mode", "status", "why"),
    [
        ("never", "cut_off", "more than rl.max_turns = 3 turns"),
        ("long", "cut_off", "a prompt of .* tokens, where .* are the most"),
        ("helper", "broken", r"rl.environment: asks 'raeder', which is none of \[helpers\] .there are policy"),
        ("places", "broken", "asks with 1 images and 2 places <image> for them"),
    ],
)
def test_episodes_that_end_otherwise(tmp_path: Path, model: Path, mode: str, status: str, why: str) -> None:
    import re

    rows, _, _ = played(tmp_path, model, environment=env(tmp_path, mode=mode), max_turns=3, items=("q0",))
    assert {one.status for one in rows} == {status} and re.search(why, rows[0].why), rows[0].why
    assert len(rows) == (9 if mode == "never" else 3)
    judged = [bool(one.scores) for one in rows]
    assert sum(judged) == (0 if status == "broken" else 3)


def test_a_function_that_fails_breaks_its_episode_alone(tmp_path: Path, model: Path) -> None:
    rows, _, _ = played(tmp_path, model, environment=env(tmp_path, mode="crash"))
    broken = {(one.question_id, one.index) for one in rows if one.status == "broken"}
    firsts = [one for one in rows if one.turn == 0]
    assert broken == {(one.question_id, one.index) for one in firsts if "1" in one.text} and 0 < len(broken) < 6
    (why,) = {one.why for one in rows if one.status == "broken"}
    line = next(n for n, text in enumerate(MINE.splitlines(), 1) if 'ValueError("one")' in text)
    assert why.endswith(f"mine.py:step: ValueError: one (line {line})")


def test_no_helper_answers(tmp_path: Path, model: Path) -> None:
    """An endpoint that is down stops the unit with its name; no episode is worse for it."""
    rewards = [{"function": "judge"}]
    engine = {"kind": "openai", "model_name": "m", "base_url": "http://127.0.0.1:9/v1", "max_retries": 0}
    (tmp_path / "mine.py").write_text(MINE)
    config, run = make_rl_run(tmp_path / "run", model)
    config = config.model_validate(
        {
            **config.model_dump(),
            "rewards": rewards,
            "helpers": {"judge": {"engine": {**engine, "timeout_seconds": 5.0}}},
        }
    )
    from sophia_mcore.environments.types import Ask
    from sophia_mcore.generate.helpers import open_helpers

    with open_helpers(config, run) as helpers, pytest.raises(SophiaError, match=r"^helper judge: .*127.0.0.1:9"):
        helpers.ask("judge", [Ask.user("How good?", to="judge")])


def test_a_helper_that_dies_in_the_middle(tmp_path: Path, model: Path) -> None:
    """The stage stops with its name, and goes on with the same values once it answers again; no ask is made twice."""
    from sophia_mcore.store.failures import forget_failures
    from tests.unit.test_generate_openai import Stub, failure, good
    from tests.unit.test_rollouts import Stage

    answers = [7]  # so many asks are answered: those of one unit, and one more

    def answer(number: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if number >= answers[0]:
            return failure(503, "the judge is away")
        return good(body, f"Score: {len(json.dumps(body['messages'])) % 10}")

    server = Stub(answer)
    engine = {"kind": "openai", "model_name": "m", "base_url": server.url, "max_retries": 0, "concurrency": 1}

    def stage_of(name: str) -> tuple[Any, Any, Any]:
        config, run = make_rl_run(tmp_path / name, model, batches=1)
        judged = {"rewards": ({"function": "judge"},), "helpers": {"judge": {"engine": engine}}}
        config = config.model_validate(
            {**config.model_dump(), **judged, "functions": {"timeout_seconds": 20.0}, "cluster": {"unit_attempts": 1}}
        )
        claim_folder(config, run, new_settings=True)
        return config, run, Stage(config, run, [model, model])

    def played(config: Any, run: Any, stage: Any) -> list[Rollout]:
        with ExitStack() as opened:
            grader = opened.enter_context(open_grader(config.score))
            questions = {q.id: q for q in read_questions(run.questions_file, with_images=True)}
            episodes = open_episodes(config, run, questions, grader, opened)
            stage.spoil = lambda examiner: setattr(examiner, "episodes", episodes)
            assert stage.loop()
        return rollouts_of(run)

    config, run, stage = stage_of("broken")
    with pytest.raises(SophiaError, match=r"^helper judge: .*the judge is away"):
        played(config, run, stage)
    first = rollouts_of(run)
    assert len({one.question_id for one in first}) == 2 and {one.status for one in first} == {"done"}
    answers[0], asked = 10_000, len(server.bodies)
    for folder in run.rl.rollouts.iterdir():
        forget_failures(folder)  # as when the stage is begun again
    rows = played(config, run, Stage(config, run, [model, model]))
    kept = {json.loads(one.prompt)["messages"][0][1] for one in first if one.asked == "judge"}
    assert kept and not kept & {body["messages"][0]["content"] for body in server.bodies[asked:]}
    scores = {one.id: one.scores for one in rows}
    assert scores == {one.id: one.scores for one in played(*stage_of("whole"))}
    assert sum("judge" in one for one in scores.values()) == 12
    server.server.shutdown()
    server.server.server_close()


def test_validation_is_played_in_the_environment(tmp_path: Path, model: Path) -> None:
    """The last turn is the answer; a function that fails makes it an error, never a wrong answer."""
    from sophia_mcore.records import Answer
    from sophia_mcore.store.shards import read_folder
    from tests.unit.test_rollouts import Stage

    (tmp_path / "mine.py").write_text(MINE)
    config, run = make_rl_run(
        tmp_path / "run", model, validation=3, batches=1, environment=env(tmp_path, mode="crash"), max_turns=3
    )
    config = config.model_validate({**config.model_dump(), "functions": {"timeout_seconds": 20.0, "workers": 1}})
    claim_folder(config, run, new_settings=True)

    class WithEpisodes(Stage):
        def loop(self, **options: Any) -> bool:
            with ExitStack() as opened:
                grader = opened.enter_context(open_grader(config.score))
                questions = {q.id: q for q in read_questions(run.questions_file, with_images=True)}
                played = open_episodes(config, run, questions, grader, opened)
                self.spoil = lambda examiner: setattr(examiner, "episodes", played)
                return super().loop(**options)

    stage = WithEpisodes(config, run, [model, model])
    assert stage.loop()
    answers = list(read_folder(run.rl.validation(1, "greedy"), Answer))
    assert len(answers) == 3
    errors = [one for one in answers if one.verdict == "error"]
    assert errors == [one for one in answers if "ValueError: one" in one.text] and 0 < len(errors) < 3
    asked = [request for request in stage.engines[0].requests if request.sampling.temperature == 0.0]
    assert len({len(request.images) for request in asked}) == 1 and len(asked) > 6  # second turns too


def test_units_of_episodes_in_a_stream(tmp_path: Path, model: Path) -> None:
    """With a lag, waves of several units join the running ones; every turn of every episode is there once."""
    from tests.unit.test_rollouts import Stage, expected_ids

    settings = {"lag": 1, "placement": "separate", "objective": {"correction": "tis"}, "batches": 2}
    (tmp_path / "mine.py").write_text(MINE)
    config, run = make_rl_run(tmp_path / "run", model, environment="again", **settings)
    rewards = ({"function": f"{tmp_path}/mine.py:share"},)
    config = config.model_validate({**config.model_dump(), "rewards": rewards, "functions": {"timeout_seconds": 20.0}})
    claim_folder(config, run, new_settings=True)
    stage = Stage(config, run, [model, model])
    with ExitStack() as opened:
        grader = opened.enter_context(open_grader(config.score))
        questions = {q.id: q for q in read_questions(run.questions_file, with_images=True)}
        played = open_episodes(config, run, questions, grader, opened)
        stage.spoil = lambda examiner: setattr(examiner, "episodes", played)
        assert stage.loop()

    rows = rollouts_of(run)
    assert {one.id for one in rows if one.turn == 0} == expected_ids(stage) and len(rows) == 2 * 2 * 12
    by_id = {one.id: one for one in rows}
    for one in rows:
        if one.turn:  # the second turn shows what its own first turn has said
            assert json.loads(one.prompt)["messages"][2][1] == by_id[one.id.removesuffix(".t1")].text
    assert all(json.loads(one.scores)["share"] == len(one.text) / 100 for one in rows)


def test_a_file_that_changes_under_way_is_refused(tmp_path: Path, model: Path) -> None:
    from sophia_mcore.config import dump_toml
    from sophia_mcore.errors import UsageError
    from sophia_mcore.launch.stage_settings import refuse_changed_settings
    from tests.support.versions import publish

    (tmp_path / "mine.py").write_text(MINE)
    config, run = make_rl_run(tmp_path / "run", model, environment=env(tmp_path))
    config = config.model_validate({**config.model_dump(), "rewards": ({"function": f"{tmp_path}/mine.py:share"},)})
    claim_folder(config, run, new_settings=True)
    publish(model, run.rl.versions, 0)
    refuse_changed_settings(config, run)
    weights = ({"function": f"{tmp_path}/mine.py:share", "weight": 0.5},)
    with pytest.raises(UsageError, match=r"started with other settings \(rewards\)"):
        refuse_changed_settings(config.model_validate({**config.model_dump(), "rewards": weights}), run)
    (tmp_path / "mine.py").write_text(f"{MINE}\n# changed\n")
    with pytest.raises(UsageError, match=r"other settings \(the content of .*mine.py.*--new-settings"):
        refuse_changed_settings(config, run)
    assert run.config_file.read_text() == dump_toml(config)
