"""Digests of large files: xxh3-128 for our own (30 times cheaper than copying the bytes), sha256 for other people's."""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from xxhash import xxh3_128

    Running = xxh3_128 | hashlib._Hash

_WINDOW = 4 << 20  # bytes that are mapped at once
Digest = Literal["xxh3-128", "sha256"]


def new_digest(name: Digest) -> Running:
    """An empty digest; call its ``update`` with bytes.

    xxh3-128 finds accidental changes only. It is not cryptographic: an attacker can make other bytes with its digest.
    """
    if name == "sha256":
        return hashlib.sha256()
    from xxhash import xxh3_128

    return xxh3_128()


def file_digest(path: Path, name: Digest, *, mapped: bool = False) -> str:
    """Hexadecimal digest of a file's bytes. Raises OSError when the file cannot be read.

    ``mapped``: hash the bytes where they lie in the system's memory, which takes half the time. If another process
    shortens the file meanwhile, or the disk fails, the system ends this process: for files that we have just written.
    """
    running = new_digest(name)
    if mapped:
        with open(path, "rb") as whole:
            size = path.stat().st_size
            for start in range(0, size, _WINDOW):
                length = min(_WINDOW, size - start)
                with mmap.mmap(whole.fileno(), length, access=mmap.ACCESS_READ, offset=start) as view:
                    running.update(view)
        return running.hexdigest()
    buffer = memoryview(bytearray(1 << 20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            running.update(buffer[:count])
    return running.hexdigest()
