"""Checks the filesystem of the run: free space, speed, and the guarantees that the store relies on."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

from sophia_mcore.doctor.rows import Row

_PROBE_BYTES = 16 << 20


def checks(folder: Path) -> list[Row]:
    """Rows about the filesystem of ``folder`` (or its nearest existing parent). Removes the files that it writes."""
    place = existing(folder)
    if blocked := _file_in_the_way(folder):
        found = f"{blocked} is a file, not a folder"
        return [Row(name="run folder", state="stops", found=found, cost="no run", remedy="choose another run.folder")]
    try:
        with tempfile.TemporaryDirectory(prefix=".sophia-doctor-", dir=place) as temporary:
            probe = Path(temporary)
            return [room(place), speed(probe), rename(probe), links(probe), locks(probe)]
    except OSError as error:
        found = f"{place}: {error.strerror}"
        return [Row(name="run folder", state="stops", found=found, cost="no run", remedy="choose another run.folder")]


def existing(folder: Path) -> Path:
    """``folder`` or the nearest parent that exists."""
    path = folder.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _file_in_the_way(folder: Path) -> Path | None:
    """``folder``, or a parent of it, that exists but is not a folder; None if there is none."""
    path = folder.absolute()
    return next((p for p in (path, *path.parents) if os.path.lexists(p) and not p.is_dir()), None)


def room(place: Path) -> Row:
    """A row with free space and the type of the filesystem."""
    free = shutil.disk_usage(place).free / 2**30
    found = f"{free:,.0f} GiB free at {place} ({filesystem(place)})"
    if free >= 2:
        return Row(name="disk space", state="ok", found=found)
    return Row(
        name="disk space", state="warning", found=found, cost="the digits example needs 2 GiB", remedy="free some"
    )


def filesystem(place: Path) -> str:
    """The kernel's name of the type of filesystem at ``place``, such as "ext4"."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    here = str(place.resolve())
    fitting = [(point, kind) for point, kind in mounts if here == point or here.startswith(point.rstrip("/") + "/")]
    return max(fitting, key=lambda mount: len(mount[0]), default=("", "unknown"))[1]


def speed(probe: Path) -> Row:
    """A row with the speed of a synced write of 16 MiB and of writing fifty small files."""
    data = os.urandom(_PROBE_BYTES)
    began = time.perf_counter()
    _write(probe / "large", data)
    rate = _PROBE_BYTES / 2**20 / (time.perf_counter() - began)
    began = time.perf_counter()
    for i in range(50):
        (probe / f"small-{i}").write_bytes(b"x")
    small = 50 / (time.perf_counter() - began)
    found = f"{rate:,.0f} MiB/s synced, {small:,.0f} small files/s"
    if rate >= 50:
        return Row(name="disk speed", state="ok", found=found)
    return Row(
        name="disk speed", state="warning", found=found, cost="slow checkpoints and shards", remedy="another disk"
    )


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def rename(probe: Path) -> Row:
    """A row that says whether a rename replaces a file while a reader that has it open keeps the old content."""
    old, new = probe / "old", probe / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    with open(old, "rb") as reader:
        os.replace(new, old)
        kept = reader.read() == b"old"
    return _promise("atomic rename", kept and old.read_bytes() == b"new", "a reader may see half of a file")


def links(probe: Path) -> Row:
    """A row that says whether a hard link can be made only once. Claims of work units rely on it."""
    source, target = probe / "source", probe / "target"
    source.write_bytes(b"x")
    try:
        os.link(source, target)
        try:
            os.link(source, target)
            once = False
        except FileExistsError:
            once = os.stat(source).st_nlink == 2
    except OSError:
        once = False
    return _promise("hard links", once, "work units cannot be claimed and finished")


def locks(probe: Path) -> Row:
    """A row that says whether a second lock on a file is refused."""
    path = probe / "lock"
    refused = False
    with open(path, "w") as first, open(path, "w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return _promise("file locks", False, "two commands may work in one run folder")
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            refused = True
    return _promise("file locks", refused, "two commands may work in one run folder")


def _promise(name: str, holds: bool, cost: str) -> Row:
    if holds:
        return Row(name=name, state="ok", found="works")
    return Row(
        name=name, state="stops", found="does not work", cost=cost, remedy="put run.folder on another filesystem"
    )
