"""An engine's part of the on-policy stage, with an engine that has no model: what is sampled when, by which version."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Completion, Request
from sophia_mcore.generate.phase import read_questions
from sophia_mcore.generate.rendering import Renderer
from sophia_mcore.generate.rollout_loop import Rollouts
from sophia_mcore.generate.rollout_unit import Examiner
from sophia_mcore.generate.rollouts import _work
from sophia_mcore.generate.watchdog import Watchdog
from sophia_mcore.pretrained.family import ImageLimits
from sophia_mcore.records import Answer, Rollout
from sophia_mcore.rl.prompts import system_prompt
from sophia_mcore.rl.stream import rollout_seed
from sophia_mcore.rl.validation import accuracy
from sophia_mcore.rl.versions import Version, damage_file, read_version
from sophia_mcore.score.grading import open_grader
from sophia_mcore.store.failures import read_failures
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import read_folder
from tests.support import tiny_models
from tests.support.living_engine import FakeLivingEngine
from tests.support.rl_world import StubTrainer, make_rl_run, rollouts_of


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [tiny_models.save_internvl(folder / str(seed), seed=seed) for seed in (1, 2)]


class Stage:
    """A stub trainer in a thread, and an engine's loop in this one."""

    def __init__(self, config: Config, run: RunFolder, models: list[Path], **engine: Any) -> None:
        self.config, self.run, self.trainer = config, run, StubTrainer(config, run, models)
        self.engine_settings = engine
        self.engines: list[FakeLivingEngine] = []
        self.spoil: Callable[[Examiner], None] = lambda examiner: None

    def engine(self, version: Version) -> FakeLivingEngine:
        folder = version.path(self.run.rl.versions)
        self.engines.append(FakeLivingEngine(folder, version.digest, **self.engine_settings))
        return self.engines[-1]

    def loop(self, *, train: bool = True, training: Callable[[int], None] = lambda batch: None) -> bool:
        thread = threading.Thread(target=self.trainer.train, args=(training,), daemon=True)
        questions = {q.id: q for q in read_questions(self.run.questions_file, with_images=True)}
        if train:
            thread.start()
        with (
            open_grader(self.config.score) as grader,
            Watchdog(self.run.rl.engines / "test.alive", self.config.on_policy.stall_seconds, 120.0) as watchdog,
        ):
            images = ImageStore(self.run.images)
            examiner = Examiner(self.config, questions, system_prompt(self.config), images, grader)
            self.spoil(examiner)
            loop = Rollouts(
                self.config, self.run, examiner, grader, watchdog, self.engine, name="test", lease_seconds=120.0
            )
            try:
                return loop.run()
            finally:
                loop.close()
                self.trainer.stopped = True
                if train:
                    thread.join()


def expected_ids(stage: Stage) -> set[str]:
    from sophia_mcore.rl.batches import batch_folders, read_batch

    batches = [read_batch(folder) for folder in batch_folders(stage.run.rl.rollouts)]
    return {
        f"{item}.b{batch.batch}.n{index}"
        for batch in batches
        if batch is not None
        for unit in batch.units
        for item in unit.items
        for index in range(stage.config.on_policy.group)
    }


def test_a_synchronous_stage(models: list[Path], tmp_path: Path) -> None:
    stage = Stage(*make_rl_run(tmp_path, models[0]), models)
    assert stage.loop()
    rollouts = rollouts_of(stage.run)
    assert {one.id for one in rollouts} == expected_ids(stage) and len(rollouts) == 3 * 4 * 3
    pointers = {v: read_version(stage.run.rl.versions, v) for v in range(4)}
    for one in rollouts:
        assert one.version == one.batch and one.model_digest == pointers[one.version].digest
        assert one.seed == rollout_seed(7, one.batch, one.question_id, one.index)
        assert (one.temperature, one.top_p, one.max_tokens, one.parent, one.given) == (1.0, 1.0, 16, "", 0)
        assert len(one.token_ids) == len(one.token_logprobs)
    (engine,) = stage.engines
    assert engine.loads == [pointers[v].digest for v in range(3)]
    assert all(request.no_image_tokens and request.images for request in engine.requests)
    assert {request.messages[0].text for request in engine.requests} == {"Think."}
    again = Stage(stage.config, stage.run, models)
    assert again.loop() and not again.engines  # nothing is left to do, so no model is loaded


def test_a_batch_may_be_sampled_ahead_but_no_further_than_the_lag(models: list[Path], tmp_path: Path) -> None:
    settings = {"lag": 2, "batches": 8, "placement": "separate", "objective": {"correction": "tis"}}
    stage = Stage(*make_rl_run(tmp_path, models[0], **settings), models, step_seconds=0.002)
    assert stage.loop(training=lambda batch: time.sleep(0.03))
    rollouts = rollouts_of(stage.run)
    assert {one.id for one in rollouts} == expected_ids(stage) and len(rollouts) == 8 * 4 * 3
    assert {one.batch - one.version for one in rollouts} <= {0, 1, 2}
    assert max(one.batch - one.version for one in rollouts) > 0
    for one in rollouts:
        assert one.model_digest == read_version(stage.run.rl.versions, one.version).digest
    together = stage.engines[0].together
    assert max(together) > 6  # requests of more than one unit at a time


def test_a_damaged_version_is_never_sampled_with(models: list[Path], tmp_path: Path) -> None:
    """The engine says so in a file, and goes on when the trainer has written the version again."""
    stage = Stage(*make_rl_run(tmp_path, models[0]), models)
    seen: list[bool] = []

    def training(batch: int) -> None:
        if batch != 0:
            return
        stage.trainer.publish(1)  # as the trainer is about to do; its folder is then damaged
        folder = read_version(stage.run.rl.versions, 1).path(stage.run.rl.versions)
        config = folder / "generation_config.json"
        text = config.read_text()
        config.write_text(text + " ")
        stage.trainer.open(1)
        assert stage.trainer.lock is not None
        stage.trainer.lock.release()
        note = damage_file(stage.run.rl.versions, 1)
        while not note.exists():
            time.sleep(0.01)
        seen.append(not any(one.batch == 1 for one in rollouts_of(stage.run)))
        assert "generation_config.json" in note.read_text()
        config.write_text(text)

    assert stage.loop(training=training)
    assert seen == [True] and not damage_file(stage.run.rl.versions, 1).exists()
    assert {one.id for one in rollouts_of(stage.run)} == expected_ids(stage)


def test_an_engine_leaves_a_trainer_that_gives_no_sign_of_life(models: list[Path], tmp_path: Path) -> None:
    stage = Stage(*make_rl_run(tmp_path, models[0], patience_seconds=0.3), models)
    stage.trainer.publish(0)
    stage.trainer.open(0)
    assert not stage.loop(train=False)
    assert len(rollouts_of(stage.run)) == 12  # what was open it has done before


def test_versions_that_are_due_answer_the_validation_questions(models: list[Path], tmp_path: Path) -> None:
    config, run = make_rl_run(tmp_path, models[0], validation=3)
    stage = Stage(config, run, models)
    assert stage.loop()
    for version in range(4):
        folder = run.rl.validation(version, "greedy")
        answers = list(read_folder(folder, Answer)) if folder.is_dir() else []
        assert {answer.question_id for answer in answers} == ({"q0", "q1", "q2"} if version in (0, 2, 3) else set())
        assert {a.model_digest for a in answers} <= {read_version(run.rl.versions, version).digest}
    assert accuracy(config, run, 1) is None
    rights = [answer.verdict == "correct" for answer in read_folder(run.rl.validation(2, "greedy"), Answer)]
    assert accuracy(config, run, 2) == sum(rights) / 3


def test_forced_rethinking_goes_on_from_the_answers_own_tokens(models: list[Path], tmp_path: Path) -> None:
    rethink = {"share": 1.0, "cut_share": 0.0, "least_tokens": 1, "most_tokens": 8}
    stage = Stage(*make_rl_run(tmp_path, models[0], batches=1, rethink=rethink), models)
    assert stage.loop()
    rollouts = {one.id: one for one in rollouts_of(stage.run)}
    firsts = [one for one in rollouts.values() if not one.parent]
    assert len(firsts) == 12 and len(rollouts) == 24
    renderer = Renderer.from_model_dir(models[0], ImageLimits())
    for first in firsts:
        second: Rollout = rollouts[f"{first.id}.r"]
        text = getattr(stage.config.on_policy.rethink, second.trigger)
        trigger = tuple(renderer.tokenizer.encode(text, add_special_tokens=False).ids)
        own = first.token_ids[:-1] if first.token_ids[-1] in renderer.stop_ids else first.token_ids
        assert second.parent == first.id and second.given == len(own) + len(trigger)
        assert second.token_ids[: second.given] == own + trigger
        assert len(second.token_logprobs) == len(second.token_ids) - second.given > 0
        assert second.text == renderer.decode(second.token_ids)
        assert (second.temperature, second.max_tokens, second.version) == (0.9, 8, first.version)
        wanted = {"questioning", "verification" if first.verdict == "correct" else "correction"}
        assert second.trigger in wanted
    kinds = {one.trigger for one in rollouts.values()}
    assert {"questioning", ""} < kinds


def test_questions_of_text_alone_reach_the_engine(models: list[Path], tmp_path: Path) -> None:
    config, run = make_rl_run(tmp_path, models[0], pictured=False)
    trainer = StubTrainer(config, run, models)
    trainer.publish(0)
    trainer.open(0)

    class Asked(Exception):
        """Ends the work once questions are asked."""

    class Engine(FakeLivingEngine):
        def generate(self, requests: Sequence[Request], *_: Any, **__: Any) -> list[Completion]:
            assert requests and not any(request.images for request in requests)
            raise Asked

    with pytest.raises(Asked):
        _work(run.config_file, lambda _, run, one: Engine(one.path(run.rl.versions), one.digest), 120.0)


def test_rethinking_in_a_stream(models: list[Path], tmp_path: Path) -> None:
    rethink = {"share": 0.5, "cut_share": 0.0, "least_tokens": 1, "most_tokens": 8}
    settings = {"lag": 1, "placement": "separate", "objective": {"correction": "tis"}, "rethink": rethink}
    stage = Stage(*make_rl_run(tmp_path, models[0], **settings), models)
    assert stage.loop()
    rollouts = rollouts_of(stage.run)
    assert {one.id for one in rollouts if not one.parent} == expected_ids(stage)
    assert 6 < sum(bool(one.parent) for one in rollouts) < 30
    by_id = {one.id: one for one in rollouts}
    assert all(by_id[one.parent].version == one.version for one in rollouts if one.parent)


@pytest.mark.parametrize("lag", [0, 1])
def test_a_unit_that_fails_is_given_up_and_the_others_go_on(models: list[Path], tmp_path: Path, lag: int) -> None:
    settings = {"lag": lag, "placement": "separate", "objective": {"correction": "tis"}, "batches": 1}
    config, run = make_rl_run(tmp_path, models[0], patience_seconds=1.0, **settings)
    stage = Stage(config, run, models)

    def spoil(examiner: Examiner) -> None:
        first = examiner.first

        def broken(unit: Any, batch: int) -> Any:
            if "q0" in unit.items:
                raise SophiaError("a prompt that does not fit")
            return first(unit, batch)

        examiner.first = broken  # type: ignore[method-assign]

    stage.spoil = spoil
    stage.trainer.publish(0)
    stage.trainer.open(0)
    assert not stage.loop(train=False)
    (failure,) = read_failures(run.rl.batch(0)).values()
    assert (failure.attempts, failure.error) == (3, "a prompt that does not fit")
    assert len(rollouts_of(run)) == 6


def test_engine_and_trainer_take_turns(models: list[Path], tmp_path: Path) -> None:
    """While the trainer has the devices the engine sleeps; its weights are gone then and are loaded again."""
    stage = Stage(*make_rl_run(tmp_path, models[0]), models, sleeps=True, step_seconds=0.01)
    awake: list[bool] = []

    def training(batch: int) -> None:
        for _ in range(20):
            awake.append(bool(stage.engines[0].model_digest))
            time.sleep(0.002)

    assert stage.loop(training=training)
    assert len(awake) == 60 and not any(awake)
    assert stage.engines[0].naps >= 3 and len(stage.engines[0].loads) >= 3
    assert {one.id for one in rollouts_of(stage.run)} == expected_ids(stage)
