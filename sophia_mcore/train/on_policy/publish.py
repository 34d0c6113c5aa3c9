"""New weights for the engines: a version's folder and its pointer, and which folders may go."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch

from sophia_mcore import __version__
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.rl.copies import copies_versions
from sophia_mcore.rl.devices import MEMORY, node_folder
from sophia_mcore.rl.validation import accuracy, due_versions
from sophia_mcore.rl.versions import (
    MANIFEST,
    DamagedVersionError,
    Version,
    announce,
    damage_file,
    newest_version,
    note_damage,
    pointer_file,
    prune,
    read_version,
    verify_version,
)
from sophia_mcore.rl.versions import settle as settle_versions
from sophia_mcore.store.atomic import sync_files
from sophia_mcore.train.checkpoint import on_rank_zero
from sophia_mcore.train.on_policy.job import StageJob
from sophia_mcore.train.on_policy.logprobs import forget
from sophia_mcore.train.optim import require_current_parameters
from sophia_mcore.weights.publish import FILE_BYTES, FILES, publish, together

_KEPT = 2  # versions: the newest, and the one that an engine may still be loading


def offer(job: StageJob, number: int) -> tuple[Version, bool]:
    """Write the present weights as version ``number`` and announce it; whether it differs from what was announced.

    A version that a resumed stage has trained again with the same layout and code must have the digest that
    its pointer names: on a CPU anything else is an error. With others, and on GPUs (whose sums may come out in another
    order), it is announced anew.
    """
    pointers, parent = job.folder.versions, weights_parent(job)
    known, last = on_rank_zero(
        lambda: (read_version(pointers, number), _latest_folder(pointers)), f"cannot read {pointers}"
    )
    if last is None and parent != pointers:
        on_rank_zero(lambda: require_room(parent, job.start), f"cannot use {parent}")
    began = time.monotonic()
    require_current_parameters(job.chunks)
    modules = [chunk.module for chunk in job.chunks]
    folder, digest, written = publish(modules, job.spec, job.groups, job.start, parent, number, previous=last)
    version = Version(
        version=number,
        folder=folder.name if parent == pointers else str(folder),
        digest=digest,
        bytes=written,
        step=number * job.rl.updates_per_batch,
        seconds=round(time.monotonic() - began, 3),
        made_with=_made_with(job.config),
    )
    differs = known is not None and known.digest != digest
    if known is not None and differs and job.backend.kind == "cpu" and known.made_with in ("", version.made_with):
        raise SophiaError(
            f"version {number}: trained again from the same answers it has the digest {digest[:8]}, but "
            f"{pointer_file(pointers, number)} names {known.digest[:8]}: its checkpoint or rollouts have changed"
        )

    def tell() -> None:
        if differs:
            print(f"warning: version {number} has come out differently than before", file=sys.stderr, flush=True)
            forget(job, number)
        damage_file(pointers, number).unlink(missing_ok=True)  # what it says is mended, and must not be so twice
        if known is None or differs or known.folder != version.folder:  # rl.versions or the machine is another one
            announce(pointers, version)
        prune(parent, _needed(job, number))

    on_rank_zero(tell, f"cannot announce version {number}")
    return (version if known is None or differs else known), differs


def _made_with(config: Config) -> str:
    """A digest of layout and code: what may change between two starts of a stage and make other bytes of the same."""
    sections = config.model_dump(mode="json", include={"parallel", "train"})
    code = (__version__, metadata.version("megatron-core"), torch.__version__, FILE_BYTES, FILES)
    return hashlib.sha256(json.dumps([sections, code], sort_keys=True).encode()).hexdigest()[:16]


def settle(job: StageJob) -> None:
    """Bring versions and metrics to the disk: before a checkpoint, behind which no resumed stage writes them again.

    All ranks call it together. Engines load the versions meanwhile.
    """

    def sync() -> None:
        settle_versions(weights_parent(job))
        if job.reports and job.groups.data_rank == 0:  # the rank that writes them
            sync_files(job.folder.metrics_file.parent)

    together(sync)


def weights_parent(job: StageJob) -> Path:
    """Under which folder the versions' weights lie: their pointers are always in the run folder.

    With several nodes the weights are there too: each node has its own memory, and copies them (``rl.copies``).
    """
    if job.rl.versions == "run" or copies_versions(job.config):
        return job.folder.versions
    return node_folder(job.run) / "versions"


def require_room(parent: Path, model: Path) -> None:
    """Raises SophiaError unless this machine's memory has room for the versions that are there at once.

    They are those that are kept, and the one that is being written.
    """
    if not parent.is_relative_to(MEMORY):
        raise SophiaError("rl.versions = 'memory': this machine has no /dev/shm that can be written; use 'run'")
    needed = (_KEPT + 1) * sum(path.stat().st_size for path in model.glob("*.safetensors"))
    free = shutil.disk_usage(MEMORY).free
    if free < needed:
        raise SophiaError(
            f"rl.versions = 'memory': {MEMORY} has {free / 2**30:.1f} GiB free, {_KEPT + 1} versions need "
            f"{needed / 2**30:.1f} GiB; use 'run'"
        )


def leave_memory(job: StageJob) -> None:
    """The stage has ended and its model lies in the run folder: give the machine its memory back. Rank 0 calls it."""
    shutil.rmtree(node_folder(job.run) / "versions", ignore_errors=True)  # also of a stage that has moved since


def is_damaged(job: StageJob, number: int) -> bool:
    """Whether an engine has found the bytes of version ``number`` changed."""
    return damage_file(job.folder.versions, number).is_file()


def mend(job: StageJob, number: int) -> None:
    """Write version ``number``, whose weights the trainer still has, again in place of the damaged folder."""
    pointers = job.folder.versions

    def remove() -> None:
        version = read_version(pointers, number)
        if version is not None:
            shutil.rmtree(version.path(pointers), ignore_errors=True)
        damage_file(pointers, number).unlink(missing_ok=True)
        print(f"warning: version {number} is damaged: it is written again", file=sys.stderr, flush=True)

    on_rank_zero(remove, f"cannot remove version {number}")
    offer(job, number)


def finish_model(job: StageJob, number: int) -> None:
    """Make version ``number`` the stage's model, RUN/rl/model, by hard links where possible. Rank 0 calls it.

    Raises DamagedVersionError if its bytes are not those that were written. Run again, the stage writes the last
    version again; the weights of an earlier one are lost.
    """
    pointers, model = job.folder.versions, job.folder.model
    version = read_version(pointers, number)
    if version is None or not version.path(pointers).is_dir():
        raise SophiaError(f"{pointers}: the weights of version {number} are gone")
    try:
        verify_version(version.path(pointers), version.digest)
    except DamagedVersionError as error:
        note_damage(pointers, version, str(error))
        raise
    partial = model.with_name(f".tmp-{model.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in sorted(version.path(pointers).iterdir()):
        if path.name != MANIFEST:
            try:
                os.link(path, partial / path.name)
            except OSError:
                shutil.copyfile(path, partial / path.name)
    sync_files(partial)
    shutil.rmtree(model, ignore_errors=True)
    partial.rename(model)


def best_version(job: StageJob) -> tuple[int, float] | None:
    """The validated version with most right answers, the earliest of equals, and its accuracy.

    Those up to rl.keep_after_batches do not count, unless there is no other.
    """
    newest = newest_version(job.folder.versions)
    if newest is None:
        return None
    found = [(accuracy(job.config, job.run, number), number) for number in due_versions(job.rl, newest.version)]
    known = [(value, number) for value, number in found if value is not None]
    late = [(value, number) for value, number in known if number > job.rl.keep_after_batches]
    value, number = max(late or known, key=lambda one: (one[0], -one[1]), default=(0.0, None))
    return None if number is None else (number, value)


def waits_for_validation(job: StageJob, newest: int) -> list[int]:
    """The versions whose validation questions are not all answered and whose weights are still there.

    One that is damaged is not awaited: nobody has its weights any more, but those of the newest.
    """
    if not job.folder.validation_questions_file.is_file():
        return []
    open_ones = (n for n in due_versions(job.rl, newest) if accuracy(job.config, job.run, n) is None)
    whole = (number for number in open_ones if number == newest or not is_damaged(job, number))
    return [number for number in whole if _folders(job.folder.versions, [number])]


def _needed(job: StageJob, number: int) -> list[Path]:
    pointers = job.folder.versions
    newest = newest_version(pointers)
    last = number if newest is None else max(number, newest.version)
    wanted = {number, number - 1, *range(last + 1 - _KEPT, last + 1), *waits_for_validation(job, last)}
    best = best_version(job) if job.rl.keep == "best" else None
    return _folders(pointers, {*wanted, *([best[0]] if best else [])})


def _folders(pointers: Path, numbers: Iterable[int]) -> list[Path]:
    versions = [read_version(pointers, number) for number in numbers if number >= 0]
    return [path for one in versions if one is not None and (path := one.path(pointers)).is_dir()]


def _latest_folder(pointers: Path) -> Path | None:
    """A version's folder whose frozen files can be linked."""
    newest = newest_version(pointers)
    numbers = range(newest.version, -1, -1) if newest is not None else ()
    return next((folder for number in numbers for folder in _folders(pointers, [number])), None)
