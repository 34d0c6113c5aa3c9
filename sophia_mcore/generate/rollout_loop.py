"""What an engine of the on-policy stage does, turn after turn, until the stage has ended.

Before a unit, the newest version of the policy is loaded. With ``rl.lag`` 0 a unit is sampled alone, so its bytes
depend on nothing but the unit; with a lag, units join while others are still running (``generate.rollout_stream``).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sophia_mcore.config.schema import Config
from sophia_mcore.environments.terms import fingerprint
from sophia_mcore.errors import HelperDownError, SophiaError
from sophia_mcore.generate.answers import Exam
from sophia_mcore.generate.board import Board, SignOfLife, Task, Validation
from sophia_mcore.generate.engine import Completion, LivingEngine, Request
from sophia_mcore.generate.episode_exam import EpisodeExam
from sophia_mcore.generate.rendering import Renderer
from sophia_mcore.generate.rollout_unit import Examiner, begun, gone_on
from sophia_mcore.generate.watchdog import Watchdog
from sophia_mcore.pretrained.families import image_limits
from sophia_mcore.records import Answer, Rollout
from sophia_mcore.rl.copies import NodeCopies
from sophia_mcore.rl.devices import DeviceLock
from sophia_mcore.rl.pauses import pauses
from sophia_mcore.rl.prompts import system_prompt
from sophia_mcore.rl.versions import DamagedVersionError, Version, damage_file, newest_version, note_damage
from sophia_mcore.store.claims import Claim
from sophia_mcore.store.layout import RunFolder
from sophia_mcore.store.lineage import prompt_hash
from sophia_mcore.store.units import Unit
from sophia_mcore.verify.grade import Grader

_DAMAGED_SECONDS = 5.0  # until a damaged version is looked at again

Open = Callable[[Version], LivingEngine]


class Rollouts:
    """One engine's part of a stage. ``name``: of this process, for its log; ``copies``: in its node's memory."""

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        examiner: Examiner,
        grader: Grader,
        watchdog: Watchdog,
        open_engine: Open,
        *,
        name: str,
        lease_seconds: float,
        copies: NodeCopies | None = None,
    ) -> None:
        self.config, self.run_folder, self.examiner, self.watchdog = config, run, examiner, watchdog
        self.rl = config.on_policy
        self.board = Board(run.rl.rollouts, config.cluster.unit_attempts, lease_seconds)
        self._validation = Validation(config, run, grader)
        self._open_engine = open_engine
        self._engine: LivingEngine | None = None
        self._renderer: Renderer | None = None
        self.loaded: Version | None = None  # None: nothing is loaded, or the engine sleeps
        self._lock = DeviceLock.of(run) if self.rl.placement == "colocated" else None
        self._copies = copies
        self._copied = False  # whether the loaded version came from there
        self._alive = SignOfLife(run.rl.alive_file)
        self._log = run.rl.engines / f"{name}.jsonl"
        self._in_a_row: set[str] = set()  # units that failed since one was done
        self._prompt = prompt_hash(system_prompt(config))
        self._loading_seconds = 0.0

    @property
    def engine(self) -> LivingEngine:
        """The engine, which ``ready`` has opened."""
        assert self._engine is not None
        return self._engine

    @property
    def renderer(self) -> Renderer:
        """The prompt side of the policy; all versions share it."""
        assert self._renderer is not None
        return self._renderer

    def run(self) -> bool:
        """Work until the stage has ended. False: the trainer has given no sign of life for ``rl.patience_seconds``."""
        wait = pauses()
        while True:
            if self._turn():
                wait = pauses()
                continue
            self._rest()
            if self.run_folder.rl.summary_file.is_file():
                return True
            if self._alive.silent_seconds() > self.rl.patience_seconds:
                return False
            time.sleep(next(wait))

    def close(self) -> None:
        """Give the devices back."""
        self.board.close()
        self._validation.close()
        if self._engine is not None:
            self._engine.close()
        if self._lock is not None:
            self._lock.release()

    def _turn(self) -> bool:
        """Do one thing, if there is one to do."""
        newest = self.newest()
        if newest is None:
            return False
        if self.loaded is not None and self.loaded.version != newest.version and self._validate(self.loaded):
            return True  # before its weights are replaced
        task = self.board.claim(newest.version)
        if task is not None:
            return self._work(task, newest)
        return any(self._validate(version) for version in self._validation.open_versions(newest))

    def newest(self) -> Version | None:
        """The newest version; the loaded one as long as a newer one is on its way into the node's memory."""
        newest, loaded = newest_version(self.run_folder.rl.versions), self.loaded
        if newest is None or loaded is None or self._copies is None or newest.version <= loaded.version:
            return newest
        return loaded if newest.digest != loaded.digest and self._copies.awaited(newest) else newest

    def _work(self, task: Task, newest: Version) -> bool:
        with self.holding(task.claim):
            if not self._ready(newest):
                task.claim.release()
                self._rest()  # the trainer may need the devices to write it again
                time.sleep(_DAMAGED_SECONDS)
                return False
        if self.rl.lag:
            from sophia_mcore.generate.rollout_stream import stream_units

            stream_units(self, task)
        else:
            self._unit(task)
        return True

    def _unit(self, task: Task) -> None:
        """One unit by itself: its waves one after another, verdicts, shard."""
        version = self.loaded
        assert version is not None
        began = time.monotonic()
        with self.holding(task.claim):
            rollouts: list[Rollout] = []
            with self.failing([task]):
                waves = self.examiner.waves(task.claim.unit, task.batch.batch, version, self.renderer)
                requests, rollouts = begun(waves)
                while requests:
                    requests, rollouts = gone_on(waves, self._sample(requests))
            if rollouts:
                self.finish(task, rollouts, version, seconds=time.monotonic() - began)

    def _sample(self, requests: Sequence[Request]) -> list[Completion]:
        with self.watchdog.sampling():
            return self.engine.generate(requests, on_step=self.watchdog.moved)

    def _validate(self, version: Version) -> bool:
        """Answer one unit of validation questions with ``version``. False: nothing is due or free."""
        found = self._validation.claim(version)
        if found is None:
            return False
        claim, exam = found
        with self.holding(claim):
            if not self._ready(version):
                claim.release()
                return False
            try:
                claim.finish(self._answers(exam, claim.unit, version), Answer, {"model_digest": version.digest})
            except HelperDownError:
                claim.release()
                raise
            except Exception as error:
                claim.fail(error)
                if not isinstance(error, SophiaError):
                    raise
        return True

    def _answers(self, exam: Exam, unit: Unit, version: Version) -> list[Answer]:
        """To validation questions, in the stage's environment where it has one of several turns."""
        episodes = self.examiner.episodes
        if episodes is not None and not self.rl.one_turn:
            played = replace(episodes, questions=self._validation.questions)
            in_turns = EpisodeExam(played, exam.sampling, exam.samples, exam.seed_of)
            return in_turns.answers(unit, self._sample, version.digest, self.renderer)
        asked = exam.ask(unit)
        completions = self._sample([one.request for one in asked])
        records = [one.record(c, version.digest) for one, c in zip(asked, completions, strict=True)]
        return exam.grade(records)

    def _ready(self, version: Version) -> bool:
        """Load a version, once the devices are free. False: it is damaged, which the trainer is told."""
        if self._lock is not None:
            self._lock.acquire(shared=True, waiting=lambda: None)
        if self.loaded is not None and self.loaded.digest == version.digest:
            self.loaded = version
            return True
        began = time.monotonic()
        pointers = self.run_folder.rl.versions
        try:
            self._copied = self._load_copy(version)
            if not self._copied:
                self._load(version)
        except DamagedVersionError as error:
            note_damage(pointers, version, str(error))
            print(f"error: {error}; waiting for the trainer to write it again", flush=True)
            return False
        damage_file(pointers, version.version).unlink(missing_ok=True)
        self.loaded = version
        self._loading_seconds += time.monotonic() - began
        return True

    def _load_copy(self, version: Version) -> bool:
        """Load a version from the node's memory. False: it is not there, or damaged there."""
        if self._copies is None:
            return False
        with self._copies.reading(version) as copy:
            if copy is None:
                return False
            try:
                self._load(replace(version, folder=str(copy.absolute())))
                return True
            except DamagedVersionError as error:
                print(f"warning: {error}; it is loaded from the run folder", file=sys.stderr, flush=True)
        self._copies.remove_damaged(version)
        return False

    def _load(self, version: Version) -> None:
        """Raises DamagedVersionError for other bytes than those that were published, before anything is changed."""
        folder = version.path(self.run_folder.rl.versions)
        if self._engine is None:
            self._engine = self._open_engine(version)
            self._renderer = Renderer.from_model_dir(folder, image_limits(self.config.batch))
        else:
            self._engine.load(folder, version.digest)

    def _rest(self) -> None:
        """Nothing to do: let the trainer have the devices."""
        if self._lock is None:
            return
        if self._engine is not None and self._engine.sleep():
            self.loaded = None
        self._lock.release()

    @contextmanager
    def holding(self, claim: Claim) -> Iterator[None]:
        """Renew the lease of ``claim``; it is given back when something else than a failure ends the body."""
        self.watchdog.hold(claim)
        try:
            yield
        except Exception:
            raise
        except BaseException:
            claim.release()
            raise
        finally:
            self.watchdog.drop(claim)

    @contextmanager
    def failing(self, tasks: Sequence[Task]) -> Iterator[None]:
        """A failure in the body is one of these units, which are tried again later, here or elsewhere.

        It goes on when it is no fault of theirs: something unforeseen, as many different units failed in a row, or a
        helper is down, which is not counted.
        """
        try:
            yield
        except HelperDownError:
            for task in tasks:
                task.claim.release()
            raise
        except Exception as error:
            for task in tasks:
                task.claim.fail(error)
            self._in_a_row |= {task.claim.unit.id for task in tasks}
            too_often = len(self._in_a_row) >= self.config.cluster.unit_attempts
            if too_often or not tasks or not isinstance(error, SophiaError):
                raise
            print(f"error: unit {tasks[0].claim.unit.id} of batch {tasks[0].batch.batch}: {error}", flush=True)

    def finish(self, task: Task, rollouts: Sequence[Rollout], version: Version, **seconds: float) -> None:
        """Write the unit's shard, and a line about it. What cannot be written ends this process: so would the next."""
        by_verdict = self.config.verdict_alone and self.rl.one_turn
        metadata = {
            "model_digest": version.digest,
            "version": str(version.version),
            "batch": str(task.batch.batch),
            "prompt_template": self._prompt,
            **({} if by_verdict else {"rewards": fingerprint(self.config.reward_terms)}),
        }
        task.claim.finish(rollouts, Rollout, metadata)
        self._in_a_row.clear()
        line: dict[str, Any] = {
            "time": round(time.time(), 3),
            "batch": task.batch.batch,
            "unit": task.claim.unit.id,
            "version": version.version,
            "rollouts": len(rollouts),
            "tokens": sum(len(one.token_logprobs) for one in rollouts),
            "seconds_loading": round(self._loading_seconds, 3),
            **({} if self._copies is None else {"copied": self._copied}),
            **{name: round(value, 3) for name, value in seconds.items()},
        }
        self._loading_seconds = 0.0
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "a") as file:
            file.write(json.dumps(line) + "\n")
