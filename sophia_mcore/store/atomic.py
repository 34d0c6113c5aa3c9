"""Atomic writes: a file appears whole or not at all, even if the writer is killed.

A file is written under a hidden temporary name in its own folder and synced. Then it is renamed (``replacing``) or
hard-linked (``creating``: the first writer to finish wins, and its file is never replaced). A killed writer leaves at
most a hidden temporary file, which readers ignore.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sophia_mcore.errors import SophiaError

TEMPORARY_PREFIX = ".tmp-"

_HINTS = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "the quota is used up: free some space and run again",
    errno.EFBIG: "the file size limit (ulimit -f) or the filesystem does not allow a file of this size",
    errno.EROFS: "the filesystem is mounted read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there, or the filesystem has no hard links",
    errno.EOPNOTSUPP: "the filesystem has no hard links; put the run folder on another one",
    errno.EEXIST: "a file of that name is in the way",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}


def write_failed(path: Path, error: OSError) -> SophiaError:
    """The error for a failed write, in one line: what, where, why, what to do."""
    hint = _HINTS.get(error.errno or 0)
    return SophiaError(f"cannot write {path}: {error.strerror or error}" + (f" ({hint})" if hint else ""))


@contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """Yield a file to write to. When the body ends without an exception, the file becomes ``path`` and replaces it.

    Raises SophiaError when the folder cannot be written or the disk is full. No partial file remains.
    """
    target = Path(path)
    with _temporary(target) as (file, name):
        yield file
        _flush(file)
        os.replace(name, target)
        _sync_folder(target.parent)


@contextmanager
def creating(path: Path | str) -> Iterator[BinaryIO]:
    """Like ``replacing``, but raises FileExistsError when ``path`` exists; the existing file stays as it is."""
    target = Path(path)
    with _temporary(target) as (file, name):
        yield file
        _flush(file)
        link_once(name, target)
        _sync_folder(target.parent)


def link_once(existing: Path | str, new: Path | str) -> None:
    """Hard-link ``existing`` as ``new``. Of several callers exactly one succeeds; the others get FileExistsError.

    Over NFS the reply to a successful request may be lost; the client repeats the request, which then fails. So after a
    failure this checks whether both names are the same file.
    """
    try:
        os.link(existing, new)
    except FileExistsError:
        with suppress(FileNotFoundError):
            if os.path.samefile(existing, new):
                return
        raise


def write_bytes(path: Path | str, value: bytes) -> None:
    """Write ``value`` to ``path`` atomically, replacing what was there."""
    with replacing(path) as file:
        file.write(value)


def write_text(path: Path | str, value: str) -> None:
    """Write ``value`` as UTF-8 to ``path`` atomically."""
    write_bytes(path, value.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path`` atomically. NaN and infinity, which JSON lacks, become null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0.0:
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


@contextmanager
def _temporary(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    name = target.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}-{target.name[:100]}"
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise SophiaError(f"cannot write {target}: {target.parent} is not a folder") from None
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise write_failed(target, error) from error
    try:
        with open(descriptor, "wb") as file:
            yield file, name
    except FileExistsError:
        raise
    except OSError as error:
        if error.filename not in (None, name, str(name), target, str(target)):
            raise  # the error is about another file, in the body of the ``with``
        raise write_failed(target, error) from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def sync_files(folder: Path) -> None:
    """Make the files of a folder, and their names, survive a power cut. A folder or file that is gone is passed over.

    Raises SophiaError naming the file that cannot be written to the disk.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise write_failed(path, error) from error
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise write_failed(path, error) from error
        finally:
            os.close(descriptor)
    _sync_folder(folder)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Sync the folder so that the new name survives a power cut. Ignored on filesystems that cannot sync a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    with suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)
