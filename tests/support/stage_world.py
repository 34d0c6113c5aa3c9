"""The on-policy stage in small: a run folder, the real trainer on forked ranks, and an engine of plain transformers.

The engine keeps the contract of the files. An answer is right iff its first token has an even id, which a policy can
learn in a few updates.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from sophia_mcore.config import dump_toml
from sophia_mcore.config.engines import Sampling, TransformersEngine
from sophia_mcore.config.schema import Config
from sophia_mcore.environments.terms import fingerprint
from sophia_mcore.errors import SophiaError
from sophia_mcore.generate.engine import Request
from sophia_mcore.generate.episodes import open_episodes
from sophia_mcore.generate.opening import open_engine
from sophia_mcore.generate.phase import sampled_fields
from sophia_mcore.generate.rendering import Renderer
from sophia_mcore.generate.rollout_unit import Examiner, begun, gone_on
from sophia_mcore.pretrained.chat import Message, user_text
from sophia_mcore.pretrained.family import ImageLimits
from sophia_mcore.progress import NoProgress
from sophia_mcore.records import Question, Rollout, rollout_id
from sophia_mcore.rl.batches import Batch, batch_folders, read_batch
from sophia_mcore.rl.prompts import system_prompt
from sophia_mcore.rl.stream import rollout_seed
from sophia_mcore.rl.versions import (
    DamagedVersionError,
    Version,
    newest_version,
    note_damage,
    read_version,
    verify_version,
)
from sophia_mcore.score.grading import open_grader
from sophia_mcore.store.images import ImageStore
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.shards import shard_files, write_shard
from sophia_mcore.store.units import Unit
from sophia_mcore.store.user_files import keep_user_files
from sophia_mcore.track.metrics import read_metrics
from sophia_mcore.train.on_policy import worker
from tests.support import configs, harness, train_world
from tests.support.pictures import smooth

QUESTIONS = 12
SMALL = {
    "batches": 4, "questions_per_batch": 4, "group": 4, "samples_per_update": 8, "max_tokens": 6,
    "questions_per_unit": 2, "overlong": "graded", "engine": {"kind": "transformers", "dtype": "float32"},
    "train": {"learning_rate": 5e-3, "save_every_batches": 2, "weight_decay": 0.0},
}  # fmt: skip
TIMES = ("time", "step_seconds", "tokens_per_second", "trainer_idle")


def make_stage(folder: Path, policy: Path, rl: dict[str, Any], **sections: dict[str, Any]) -> tuple[Config, RunFolder]:
    """A run with questions and a small [rl]."""
    run = RunFolder(folder)
    digests = ImageStore(run.images).add_many([smooth(28, 28, i) for i in range(QUESTIONS)])
    rows = [
        Question(id=f"q{i}", question=f"What is {i}?", answer=str(i), images=(digest,))
        for i, digest in enumerate(digests)
    ]
    write_shard(run.questions_file, rows, Question)
    (folder / "prompt.txt").write_text("Think.")
    values = configs.merged({"rl": configs.merged(SMALL, rl)}, sections)
    config = train_world.make_config(folder, policy, **values)
    run.config_file.write_text(dump_toml(config))
    keep_user_files(config, run)
    return config, run


class FakeEngine:
    """Samples units of open batches with the newest version's weights, until it is killed."""

    def __init__(self, config: Config, run: RunFolder, *, episodes: bool = False) -> None:
        torch.set_num_threads(1)
        self.config, self.run, self.rl = config, run, config.on_policy
        self.questions = {q.id: q for q in read_questions(run)}
        self.images = ImageStore(run.images)
        self.loaded: Version | None = None
        self.engine: Any = None
        self._opened = ExitStack()
        self._examiner: Examiner | None = None
        if episodes:
            grader = self._opened.enter_context(open_grader(config.score))
            played = open_episodes(config, run, self.questions, grader, self._opened)
            system = system_prompt(config)
            self._examiner = Examiner(config, self.questions, system, self.images, grader, played)

    def work(self, give_up: Sequence[str] = ()) -> None:
        """``give_up``: questions whose units fail always."""
        while True:
            if not any(self._turn(folder, give_up) for folder in batch_folders(self.run.rl.rollouts)):
                time.sleep(0.02)

    def _turn(self, folder: Path, give_up: Sequence[str]) -> bool:
        batch, version = read_batch(folder), newest_version(self.run.rl.versions)
        if batch is None or version is None or version.version < batch.minimum_version:
            return False
        queue = batch.queue(self.config.cluster.unit_attempts)
        claim = queue.claim()
        if claim is None:
            return False
        if set(claim.unit.items) & set(give_up):
            claim.fail(SophiaError("it never works"))
            return True
        if not self._load(version):
            claim.release()
            return False
        rewards = {} if self.config.verdict_alone else {"rewards": fingerprint(self.config.reward_terms)}
        claim.finish(self.answers(batch, claim.unit, version), Rollout, rewards)
        return True

    def _load(self, version: Version) -> bool:
        """False: it is damaged, which the trainer is told."""
        if self.loaded is None or self.loaded.digest != version.digest:
            folder = version.path(self.run.rl.versions)
            try:
                verify_version(folder, version.digest)
            except DamagedVersionError as error:
                note_damage(self.run.rl.versions, version, str(error))
                return False
            self.engine = open_engine(TransformersEngine(kind="transformers", dtype="float32"), folder)
        self.loaded = version
        return True

    def answers(self, batch: Batch, unit: Unit, version: Version) -> list[Rollout]:
        if self._examiner is not None:
            renderer = Renderer.from_model_dir(version.path(self.run.rl.versions), ImageLimits(max_tiles=1))
            waves = self._examiner.waves(unit, batch.batch, version, renderer)
            requests, rollouts = begun(waves)
            while requests:
                requests, rollouts = gone_on(waves, self.engine.generate(requests))
            return rollouts
        wanted = [(self.questions[item], index) for item in unit.items for index in range(self.rl.group)]
        requests = [self._request(batch.batch, question, index) for question, index in wanted]
        completions = self.engine.generate(requests)
        return [
            Rollout(
                id=rollout_id(question.id, batch.batch, index),
                question_id=question.id,
                index=index,
                batch=batch.batch,
                version=version.version,
                verdict="correct" if completion.token_ids[0] % 2 == 0 else "wrong",
                extracted="",
                **sampled_fields(request, completion, version.digest),
            )
            for (question, index), request, completion in zip(wanted, requests, completions, strict=True)
        ]

    def _request(self, batch: int, question: Question, index: int) -> Request:
        return Request(
            messages=(
                Message("system", system_prompt(self.config)),
                Message("user", user_text(question.question, len(question.images))),
            ),
            images=tuple(self.images.get(digest) for digest in question.images),
            sampling=Sampling(max_tokens=self.rl.max_tokens),
            seed=rollout_seed(self.config.run.seed, batch, question.id, index),
        )


def read_questions(run: RunFolder) -> list[Question]:
    from sophia_mcore.store.shards import read_shard

    return read_shard(run.questions_file, Question)


@contextmanager
def engine(config: Config, run: RunFolder, **options: Any) -> Iterator[multiprocessing.process.BaseProcess]:
    """A fake engine in a process of its own, killed in the end."""
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(config, run, options), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _serve(config: Config, run: RunFolder, options: dict[str, Any]) -> None:
    episodes = options.pop("episodes", False)
    FakeEngine(config, run, episodes=episodes).work(**options)


def train(config: Config, run: RunFolder, ranks: int = 1, *, kill: str = "", replay: bool = False) -> list[bool]:
    """The trainer on ``ranks`` forked ranks. ``kill``: "MODULE.FUNCTION:N", where rank 0 is killed at its N-th call,
    or "...:N+" after it."""
    return harness.run(train_here, ranks, config, run, kill, replay, timeout_seconds=240.0)


def train_here(config: Config, run: RunFolder, kill: str, replay: bool = False) -> bool:
    """The trainer on this rank."""
    if kill and torch.distributed.get_rank() == 0:
        _arm(kill)
    return worker.train_stage(config, run, NoProgress(), replay=replay)


def _arm(kill: str) -> None:
    import importlib

    place, _, number = kill.partition(":")
    *path, name = place.split(".")
    owner: Any = importlib.import_module(f"sophia_mcore.train.on_policy.{path[0]}")
    for part in path[1:]:
        owner = getattr(owner, part)
    plain: Callable[..., Any] = getattr(owner, name)
    calls = [0]

    def killed(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        now = calls[0] == int(number.rstrip("+"))
        if now and not number.endswith("+"):
            os.kill(os.getpid(), signal.SIGKILL)
        result = plain(*args, **options)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, killed)  # this process is a forked rank: nobody else sees it


def left_behind(run: RunFolder) -> dict[str, Any]:
    """What two stages must agree about, byte for byte: versions, rollouts, metrics without times, the model."""
    versions = [read_version(run.rl.versions, int(path.stem)) for path in sorted(run.rl.versions.glob("*.json"))]
    shards = [path for folder in batch_folders(run.rl.rollouts) for path in shard_files(folder)]
    lines = read_metrics(run.rl.train / "metrics.jsonl")
    timeless = [{k: v for k, v in line.items() if k not in TIMES and not k.startswith("seconds")} for line in lines]
    summary = json.loads(run.rl.summary_file.read_text())
    return {
        "versions": {one.version: one.digest for one in versions if one is not None},
        "rollouts": {str(path.relative_to(run.path)): path.read_bytes() for path in shards},
        "opened": {str(p.relative_to(run.path)): p.read_text() for p in run.rl.rollouts.glob("*/units.json")},
        "metrics": timeless,
        "model": {path.name: path.read_bytes() for path in run.rl.model.iterdir()},
        "summary": {k: v for k, v in summary.items() if not k.startswith("seconds")},
    }
