"""Copies of versions in the memory of a node, where a stage with ``rl.versions`` = "memory" runs on several nodes.

The trainer publishes into the run folder. On each node that samples one process, the supervisor, copies a new version
while the node's engines still sample with the one before; then they load the copy. What cannot be copied, and what
nobody copies, they load from the run folder. Either way it is the same version with the same digest.

    FOLDER/lock                     held by the copier: the newest version is here or will be soon
    FOLDER/00000013-1f6a09c2/       a whole copy; an engine that reads it holds a lock on the folder itself
    FOLDER/.tmp-00000014-5be81d07/  a copy on its way, or left by a copier that was killed

A file whose digest is that of a file of the copy before is linked, not copied: frozen weights are copied once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError
from sophia_mcore.rl.devices import MEMORY, folder_name
from sophia_mcore.rl.pauses import pauses
from sophia_mcore.rl.versions import (
    MANIFEST,
    DamagedVersionError,
    Manifest,
    Version,
    newest_version,
    read_manifest,
    version_folder,
    version_folders,
)
from sophia_mcore.store.atomic import TEMPORARY_PREFIX, write_failed, write_json
from sophia_mcore.store.digests import file_digest, new_digest
from sophia_mcore.store.layout import RunFolder

_CHUNK_BYTES = 4 << 20
_FILES_AT_ONCE = 4
_LAST_CHUNK_SECONDS = 10.0  # for the copier to notice that it is to end


def copies_versions(config: Config) -> bool:
    """Whether versions lie in the run folder and the nodes that sample copy them into their memory."""
    parallel = config.parallel
    return config.on_policy.copies_versions(parallel.world_size, parallel.processes_per_node)


def node_copies(config: Config, run: RunFolder, folder: Path | None = None) -> NodeCopies | None:
    """This node's copies of the run's versions; None where the stage makes none.

    ``folder``: where they lie; None: this node's /dev/shm.
    """
    if not copies_versions(config):
        return None
    return NodeCopies(folder or MEMORY / folder_name(run) / "copies", run.rl.versions)


class NodeCopies:
    """The copies as engines of the node see them. ``pointers``: RUN/rl/versions."""

    def __init__(self, folder: Path, pointers: Path) -> None:
        self.folder, self.pointers = folder, pointers

    def path(self, version: Version) -> Path:
        """Where the copy of ``version`` lies, if there is one."""
        return version_folder(self.folder, version.version, version.digest)

    def awaited(self, version: Version) -> bool:
        """Whether ``version`` is not here yet, but the node's copier promises it."""
        return not self.path(version).is_dir() and _is_held(self.folder / "lock")

    @contextmanager
    def reading(self, version: Version) -> Iterator[Path | None]:
        """The copy of ``version``, which stays until the body ends. Waits for one that is on its way. None: no copy."""
        wait = pauses()
        while self.awaited(version) and newest_version(self.pointers) == version:
            time.sleep(next(wait))
        path = self.path(version)
        held = _hold(path, fcntl.LOCK_SH)
        try:
            yield path if held is not None and path.is_dir() else None
        finally:
            if held is not None:
                os.close(held)

    def remove(self, keep: Path | None = None) -> None:
        """Remove all copies but ``keep``, and those that an engine reads."""
        for path in version_folders(self.folder):
            if path != keep:
                _remove(path)

    def remove_damaged(self, version: Version) -> None:
        """Remove a copy whose bytes have changed, so that the copier makes it anew."""
        _remove(self.path(version))

    def copy(self, version: Version, stop: threading.Event) -> None:
        """Copy ``version`` from the run folder; its bytes are verified as they pass. Ends early after ``stop``.

        Other copies are removed before anything is written, so that at most two versions lie here: this one, and one
        that an engine is loading. Raises DamagedVersionError for other bytes than those announced, SophiaError or
        OSError for what cannot be read or written; nothing remains then.
        """
        source, target = version.path(self.pointers), self.path(version)
        partial = self.folder / f"{TEMPORARY_PREFIX}{target.name}"
        manifest = read_manifest(source, version.digest)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            linked = self._link(partial, manifest)
            self.remove(keep=partial)
            rest = {name: entry for name, entry in manifest.items() if name not in linked}
            _require_room(self.folder, sum(int(entry["bytes"]) for entry in rest.values()))
            _copy_files(source, partial, rest, stop)
            if not stop.is_set():
                write_json(partial / MANIFEST, manifest)
                partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _link(self, partial: Path, manifest: Manifest) -> set[str]:
        """Link what is the same in an earlier copy; returns the names. Each file is read: damage is not handed on."""
        linked: set[str] = set()
        for folder in version_folders(self.folder):
            with suppress(DamagedVersionError):  # one that is on its way, or that somebody has touched
                before = read_manifest(folder)
                for name in (name for name in manifest if before.get(name) == manifest[name] and name not in linked):
                    with suppress(OSError):
                        if file_digest(folder / name, "xxh3-128") == manifest[name]["xxh3-128"]:
                            os.link(folder / name, partial / name)
                            linked.add(name)
        return linked


class Copier:
    """Copies each new version into ``copies.folder`` in a thread, while the context is open. Then it removes them.

    A version that cannot be copied is told in one line, and engines load it from the run folder.
    """

    def __init__(self, copies: NodeCopies) -> None:
        self._copies = copies
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
        self._promise: int | None = None  # the lock's descriptor
        self._failed: Version | None = None  # what could not be copied
        self._told = False

    def __enter__(self) -> Copier:
        try:
            self._begin()  # before any engine looks
        except OSError as error:
            self._tell(write_failed(self._copies.folder, error))
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_LAST_CHUNK_SECONDS)

    def _run(self) -> None:
        wait = pauses()
        while not self._stop.wait(next(wait)):
            try:
                if self._look():
                    wait = pauses()
            except (SophiaError, OSError) as error:
                self._end()
                self._tell(error)
        with suppress(OSError):
            if self._begin():
                self._clear()
        self._end()

    def _look(self) -> bool:
        """Copy the newest version, if it is not here and could not be copied before."""
        newest = newest_version(self._copies.pointers)
        if newest is not None and newest == self._failed:
            return False  # engines do not wait for it
        if not self._begin() or newest is None or self._copies.path(newest).is_dir():
            return False
        try:
            self._copies.copy(newest, self._stop)
        except (SophiaError, OSError):
            if newest_version(self._copies.pointers) == newest:  # else the trainer has gone on, and has removed it
                self._failed = newest
                raise
        self._told = False
        return True

    def _begin(self) -> bool:
        """Promise that the newest version will be here. False: another copier of this node does."""
        if self._promise is None:
            lock = self._copies.folder / "lock"
            for folder in (lock.parent.parent, lock.parent):  # no further parent: without a /dev/shm none is made
                folder.mkdir(exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                same = os.path.samestat(os.fstat(descriptor), os.stat(lock))  # else its holder has just removed it
            except OSError:
                same = False
            if not same:
                os.close(descriptor)
                return False
            self._promise = descriptor
        return True

    def _end(self) -> None:
        """From now on engines do not wait."""
        if self._promise is not None:
            os.close(self._promise)
            self._promise = None

    def _clear(self) -> None:
        """Give the node its memory back."""
        self._copies.remove()
        (self._copies.folder / "lock").unlink(missing_ok=True)
        with suppress(OSError):  # an engine reads a copy, or the node's folder holds the lock of its devices
            self._copies.folder.rmdir()
            self._copies.folder.parent.rmdir()

    def _tell(self, error: Exception) -> None:
        if not self._told:
            print(
                f"warning: no copy of new weights in {self._copies.folder} ({error}): engines of this node load them "
                "from the run folder",
                file=sys.stderr,
                flush=True,
            )
        self._told = True


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SophiaError(f"{free / 2**30:.2f} GiB free, {needed / 2**30:.2f} GiB needed")


def _copy_files(source: Path, target: Path, files: Manifest, stop: threading.Event) -> None:
    """Copy files and compare their digests. The first failure ends the others."""
    failed = threading.Event()

    def copy(name: str) -> None:
        running = new_digest("xxh3-128")
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        try:
            with open(source / name, "rb", buffering=0) as reader, open(target / name, "wb", buffering=0) as writer:
                while count := reader.readinto(buffer):
                    if stop.is_set() or failed.is_set():
                        return
                    running.update(buffer[:count])
                    written = 0
                    while written < count:
                        written += writer.write(buffer[written:count])
            if running.hexdigest() != files[name]["xxh3-128"]:
                raise DamagedVersionError(f"{source}: damaged version ({name}: other bytes than were written)")
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="copies") as pool:
        for done in [pool.submit(copy, name) for name in files]:
            done.result()


def _remove(path: Path) -> None:
    """Remove a copy unless somebody reads it."""
    held = _hold(path, fcntl.LOCK_EX)
    if held is not None:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def _hold(path: Path, kind: int) -> int | None:
    """A descriptor that locks ``path``; None if it is not there or others have it locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _is_held(lock: Path) -> bool:
    """Whether a process holds ``lock``."""
    if not lock.exists():
        return False
    descriptor = _hold(lock, fcntl.LOCK_SH)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None
