"""Versions of the policy: folders of weights, and pointer files that say which of them exist.

    FOLDER/00000013.json            the pointer: nothing else says that version 13 exists
    FOLDER/00000013-1f6a09c2/       its folder, named by version and digest, never overwritten

Version v is the policy after v trained batches; version 0 is the starting model. A version's folder is a Hugging Face
model folder with a manifest of its files and their xxh3-128 digests. The digest of the manifest is the version's
digest, and the ``model_digest`` of everything that the version samples.

A new version's bytes are in the memory of the system and not yet on the disk: an engine waits for them, and compares
every byte with the digest. `settle` brings them to the disk, before the checkpoint from which the version could be
written again is followed by a newer one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from sophia_mcore.errors import SophiaError
from sophia_mcore.store.atomic import TEMPORARY_PREFIX, sync_files, write_json
from sophia_mcore.store.digests import file_digest

MANIFEST = "version.json"
_POINTER = re.compile(r"(\d{8,})\.json")
_FOLDER = re.compile(r"(\d{8,})-[0-9a-f]{8}")
_READERS = 4  # hashing and reading release the interpreter lock

Manifest = Mapping[str, Mapping[str, str | int]]  # size ("bytes") and digest ("xxh3-128") of a folder's files, by name


class DamagedVersionError(SophiaError):
    """The bytes of a version's folder are not those that were published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What a pointer file says.

    ``bytes``: size of the weights that were written for it; ``step``: optimizer steps; ``made_with``: a digest of the
    settings, layout and code that trained it.
    """

    version: int
    folder: str  # absolute, or a name beside the pointer
    digest: str
    bytes: int
    step: int
    seconds: float
    made_with: str = ""  # not recorded by earlier versions of this package

    def path(self, pointers: Path) -> Path:
        """Where the model lies."""
        return pointers / self.folder  # an absolute path stays as it is


def pointer_file(pointers: Path, version: int) -> Path:
    """The pointer of a version."""
    return pointers / f"{version:08d}.json"


def version_folder(parent: Path, version: int, digest: str) -> Path:
    """The folder of a version under ``parent``."""
    return parent / f"{version:08d}-{digest[:8]}"


def announce(pointers: Path, version: Version) -> None:
    """Say that a version exists: the last act of publishing it."""
    write_json(pointer_file(pointers, version.version), asdict(version))


def read_version(pointers: Path, version: int) -> Version | None:
    """A pointer; None when the version does not exist. Raises SophiaError for a file that holds something else."""
    path = pointer_file(pointers, version)
    try:
        return Version(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise SophiaError(f"{path}: not a version's pointer file ({error})") from None


def newest_version(pointers: Path) -> Version | None:
    """The highest version that exists; None when there is none yet."""
    numbers = [int(match[1]) for path in pointers.glob("*.json") if (match := _POINTER.fullmatch(path.name))]
    return read_version(pointers, max(numbers)) if numbers else None


def damage_file(pointers: Path, version: int) -> Path:
    """Where an engine says that a version's folder is damaged, until one has loaded it again."""
    return pointers / f"{version:08d}.damaged.json"


def note_damage(pointers: Path, version: Version, error: str) -> None:
    """Tell the trainer, which has the weights, that a version must be written again."""
    write_json(damage_file(pointers, version.version), {"digest": version.digest, "error": error})


def manifest_of(folder: Path, digests: Mapping[str, str]) -> dict[str, dict[str, str | int]]:
    """The manifest of a folder: every file's size and digest, by name. ``digests`` gives those known already."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    return {
        path.name: {"bytes": path.stat().st_size, "xxh3-128": digests.get(path.name) or file_digest(path, "xxh3-128")}
        for path in files
    }


def manifest_digest(manifest: Manifest) -> str:
    """The version's digest: sha256 over names, sizes and digests of its files."""
    lines = [f"{name}\t{entry['bytes']}\t{entry['xxh3-128']}\n" for name, entry in sorted(manifest.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_manifest(folder: Path, digest: str | None = None) -> Manifest:
    """The manifest of a version's folder. Raises DamagedVersionError if it is not the one that ``digest`` names."""
    try:
        manifest: Manifest = json.loads((folder / MANIFEST).read_bytes())
        listed = manifest_digest(manifest)
        if outside := [name for name in manifest if Path(name).name != name]:
            raise ValueError(f"{outside[0]!r} is no file's name")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedVersionError(f"{folder}: damaged version ({MANIFEST}: {error})") from None
    if digest is not None and listed != digest:
        raise DamagedVersionError(f"{folder}: damaged version ({MANIFEST} is that of another version)")
    return manifest


def verify_version(folder: Path, digest: str) -> None:
    """Read every byte of a version's folder and compare. Raises DamagedVersionError naming the first file that differs.

    An engine calls it before it loads a version: it never samples with weights that are not the announced ones.
    """
    manifest = read_manifest(folder, digest)
    try:
        names = {path.name for path in folder.iterdir() if path.is_file()} - {MANIFEST}
    except OSError as error:
        raise DamagedVersionError(f"{folder}: damaged version ({error.strerror})") from None
    if different := sorted(names ^ set(manifest)):
        raise DamagedVersionError(f"{folder}: damaged version ({different[0]} is missing or does not belong to it)")
    with ThreadPoolExecutor(_READERS) as pool:
        for problem in pool.map(lambda name: _difference(folder / name, str(manifest[name]["xxh3-128"])), manifest):
            if problem:
                raise DamagedVersionError(f"{folder}: damaged version ({problem})")


def _difference(file: Path, digest: str) -> str:
    """What is wrong with a file's bytes; empty if nothing is."""
    try:
        found = file_digest(file, "xxh3-128")
    except OSError as error:
        return f"{file.name}: {error.strerror}"
    return "" if found == digest else f"{file.name}: its bytes are not those that were written"


def settle(parent: Path) -> None:
    """Bring the bytes of all versions under ``parent`` to the disk. Raises SophiaError if that fails.

    Every process that has written a part of them calls it: a machine can only sync what was written on it.
    """
    for folder in version_folders(parent):
        if _FOLDER.fullmatch(folder.name):
            sync_files(folder)


def version_folders(parent: Path) -> list[Path]:
    """The folders of versions under ``parent``, and what a killed writer left."""
    return [
        path
        for path in (sorted(parent.iterdir()) if parent.is_dir() else [])
        if path.is_dir() and (_FOLDER.fullmatch(path.name) or path.name.startswith(TEMPORARY_PREFIX))
    ]


def prune(parent: Path, keep: Collection[Path]) -> list[Path]:
    """Remove version folders under ``parent`` that are not in ``keep``, and what a killed writer left; returns them."""
    kept = {path.resolve() for path in keep}
    doomed = [path for path in version_folders(parent) if path.resolve() not in kept]
    for path in doomed:
        shutil.rmtree(path, ignore_errors=True)
    return doomed
