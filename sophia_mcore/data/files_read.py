"""Which image files questions were made from, so that a picture that was replaced since is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.json_files import json_or_empty

LIMIT = 10_000  # files that are remembered, evenly spaced among all: each costs a look at its size and time


def files_read_of(questions_file: Path) -> Path:
    """The file beside the questions that remembers their image files."""
    return questions_file.with_name(f"{questions_file.stem}.images.json")


def remember_files(questions_file: Path, digests: Mapping[Path, str]) -> None:
    """Write down path, sha256, size and time of image files. ``digests``: path -> sha256, "" for what is no image."""
    paths = [path for path, digest in digests.items() if digest]
    files = []
    for path in paths[:: max(1, -(-len(paths) // LIMIT))]:
        try:
            state = path.stat()
        except OSError:  # gone since it was read
            continue
        files.append([str(path.absolute()), digests[path], state.st_size, state.st_mtime_ns])
    write_json(files_read_of(questions_file), {"files": files})


def replaced_files(questions_file: Path) -> list[Path]:
    """The remembered files whose content is another now. Those that cannot be read now are left out.

    Only a file with another size or time is read.
    """
    found = []
    for name, digest, size, time in json_or_empty(files_read_of(questions_file)).get("files", []):
        path = Path(name)
        try:
            state = path.stat()
            same = (state.st_size, state.st_mtime_ns) == (size, time)
            if not same and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                found.append(path)
        except OSError:
            continue
    return found
