"""The on-policy stage on one rank: wait for a batch, weigh it, update, publish, open the next. It fits on a screen.

Batch b is sampled by version b - rl.lag or later and trained with U updates, so a checkpoint after step s continues at
(b, u) = divmod(s, U). Everything else that a resumed stage needs lies in the stored rollouts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch.distributed as dist

from sophia_mcore.progress import Progress
from sophia_mcore.rl.versions import read_version
from sophia_mcore.store.atomic import write_json
from sophia_mcore.train.checkpoint import on_rank_zero
from sophia_mcore.train.loop import check_finite
from sophia_mcore.train.on_policy.batch import Plan
from sophia_mcore.train.on_policy.job import StageJob, move_in, move_out
from sophia_mcore.train.on_policy.log import StageLog, note_stop, summary
from sophia_mcore.train.on_policy.logprobs import bring, measure_batch
from sophia_mcore.train.on_policy.open import draw_again, is_sampled, open_once, take_and_learn
from sophia_mcore.train.on_policy.publish import (
    best_version,
    finish_model,
    is_damaged,
    leave_memory,
    mend,
    offer,
    settle,
    waits_for_validation,
)
from sophia_mcore.train.on_policy.wait import sign_of_life, take_devices, wait_together
from sophia_mcore.train.step import train_step

StopAsked = Callable[[], bool]


class _StoppedError(Exception):
    """A signal asked the stage to put its work down."""


def run_stage(job: StageJob, progress: Progress, stop_asked: StopAsked, *, replay: bool = False) -> bool:
    """Train to the last batch, or until ``stop_asked`` on any rank; returns whether the stage is finished.

    ``replay``: from the stored rollouts alone, without an engine.
    Raises SophiaError: too many groups lost, an engine with other weights, a version that comes out differently, a loss
    that is not finite, a full disk; run again it continues from the newest checkpoint.
    """
    with sign_of_life(job.folder.alive_file if dist.get_rank() == 0 else None):
        return _Stage(job, progress, stop_asked, replay).run()


@dataclass
class _Stage:
    job: StageJob
    progress: Progress
    stop_asked: StopAsked
    replay: bool
    step: int = 0  # updates done
    saved: int = 0
    trained: bool = False  # whether the optimizer has a state
    differently: int = 0  # versions that have come out differently than before

    def run(self) -> bool:
        job, per_batch = self.job, self.job.rl.updates_per_batch
        try:
            self._take_devices()
            if on_rank_zero(lambda: read_version(job.folder.versions, 0) is None, "cannot read version 0"):
                offer(job, 0)
            self.step = self.saved = job.checkpoints.load_newest(job.chunks, job.optimizer)
            self.trained = self.step > 0
            log = StageLog(job, self.step)
            first, done = divmod(self.step, per_batch)
            self.progress.start("on-policy batches", job.rl.batches, first)
            for number in range(first, job.rl.batches):
                self._batch(number, done, log)
                self.progress.advance()
                done = 0
            self._publish(job.rl.batches)
            self._save()
            self._finish()
        except _StoppedError:
            self._save()
            job.checkpoints.finish()
            note_stop(job, self.step)
            return False
        finally:
            if job.lock is not None:
                job.lock.release()
        return True

    def _batch(self, number: int, done: int, log: StageLog) -> None:
        """Train on one batch. Its first ``done`` updates are done already."""
        job, began = self.job, time.perf_counter()
        published: Mapping[str, float] = {}
        if not done:
            published = self._publish(number)
        for index in range(number, min(number + job.rl.lag + 1, job.rl.batches)):
            on_rank_zero(partial(open_once, job, index, replay=self.replay), f"cannot open batch {index}")
        if not done and self.step % job.config.train.save_every_steps == 0:
            self._save()
        ready = time.perf_counter()
        self._wait(number, published=not done)
        on_rank_zero(partial(take_and_learn, job, number), f"cannot note the units of batch {number}")
        waited = time.perf_counter()
        plan = job.planner.plan(number)
        gap = measure_batch(job, plan)
        log.gap(number, gap)
        for index in range(done, job.rl.updates_per_batch):
            self._update(plan, index, log)
        trained = time.perf_counter()
        seconds = {
            "seconds_publishing": ready - began,
            "seconds_waiting": waited - ready,
            "seconds_training": trained - waited,
            "trainer_idle": (waited - ready) / (trained - began),
            "tokens_per_second": plan.values["tokens_sampled"] / (trained - began),
        }
        rounded = {name: round(value, 6) for name, value in seconds.items()}
        log.batch(number + 1, {**plan.values, **gap, **published, **rounded})

    def _update(self, plan: Plan, index: int, log: StageLog) -> None:
        job, update, began = self.job, plan.updates[index], time.perf_counter()
        ages = [plan.number - plan.answers[one.id].batch for one in update.samples[update.fresh :]]
        values: dict[str, float] = {
            "batch": plan.number,
            "samples_replayed": len(ages),
            "replay_age_mean": sum(ages) / len(ages) if ages else 0.0,
            "samples_auxiliary": len(update.auxiliary),
            "buffer": update.buffer,
            "skipped": int(update.empty),
        }
        if update.empty:  # no group with right and wrong answers: every rank knows it from the same rollouts
            self.step += 1
            log.update(self.step, values)
            return
        bring(job, plan, [one.id for one in update.samples])
        report = train_step(job, job.batches(plan, update), self.step, self.stop_asked())
        names = [one.id for one in update.samples] + list(update.auxiliary)
        check_finite(job, report, self.step, lambda: names)
        self.step, self.trained = self.step + 1, True
        log.update(self.step, {**report.values(time.perf_counter() - began), **values})
        self.progress.note(f"loss {report.loss:.3f}")
        if not report.writing:
            job.checkpoints.finish()
        if report.stop:
            raise _StoppedError

    def _publish(self, number: int) -> dict[str, float]:
        version, differs = offer(self.job, number)
        return {"bytes_published": version.bytes, "replayed_differently": int(differs)}

    def _wait(self, number: int, *, published: bool) -> None:
        """Until the batch is sampled, with as many further draws as it needs; then the devices are the trainer's.

        ``published``: the present weights are those of version ``number``, which can be written again if need be.
        """
        job = self.job

        def sampled() -> bool:
            complete, words = is_sampled(job, number, replay=self.replay)
            if not complete:
                self.progress.note(words)
            return complete

        self._release_devices()
        self._until(sampled, number if published else None)
        while on_rank_zero(partial(draw_again, job, number), f"cannot draw again for batch {number}"):
            self._until(sampled, number if published else None)
        self._take_devices()

    def _until(self, is_ready: Callable[[], bool], version: int | None) -> None:
        """Wait until rank 0 finds it ready.

        ``version``: that of the present weights, written again if engines find it damaged; None: not published.
        """
        while True:
            damaged = False

            def ready() -> bool:
                nonlocal damaged
                if dist.get_rank() != 0:
                    return True
                damaged = version is not None and not self.replay and is_damaged(self.job, version)
                return damaged or is_ready()

            if not wait_together(ready, self.stop_asked):
                raise _StoppedError
            if version is None or not on_rank_zero(lambda: damaged, "cannot read the versions"):  # noqa: B023
                return
            self._take_devices()
            mend(self.job, version)
            self._release_devices()

    def _take_devices(self) -> None:
        """On a node that engines share, wait until they sleep; then the model may be on the devices."""
        if self.job.rl.placement == "colocated":
            if not take_devices(self.job.lock, self.stop_asked):
                raise _StoppedError
            move_in(self.job)

    def _release_devices(self) -> None:
        if self.job.rl.placement == "colocated":
            move_out(self.job)
            dist.barrier()  # every rank of the node has left its device
            if self.job.lock is not None:
                self.job.lock.release()

    def _save(self) -> None:
        """Save what is not saved. Before the first real update there is nothing that could not be done again."""
        if self.step > self.saved and self.trained:
            settle(self.job)
            self.job.checkpoints.save(self.step, self.job.chunks, self.job.optimizer)
            self.saved = self.step

    def _finish(self) -> None:
        """Choose the version that stays, and say that the stage has ended."""
        job, last = self.job, self.job.rl.batches
        job.checkpoints.finish()
        self._release_devices()
        if not self.replay:
            self._until(lambda: not waits_for_validation(job, last), last)

        def write() -> tuple[int, str, tuple[int, float] | None]:
            best = best_version(job)
            model = best[0] if best and job.rl.keep == "best" else last
            finish_model(job, model)
            version = read_version(job.folder.versions, model)
            return model, version.digest if version else "", best

        model, digest, best = on_rank_zero(write, f"cannot write {job.folder.model}")
        if job.reports and job.groups.data_rank == 0:
            write_json(job.folder.summary_file, summary(job, model, digest, best))
        dist.barrier()
        on_rank_zero(partial(leave_memory, job), "cannot remove the versions")
