"""Checkpoints as folders: which are complete, which is the newest, which may go. No torch in here.

A checkpoint is written into a hidden folder and renamed when every rank has finished, so a folder named
``step-00000500`` is complete. Its checkpoint.json lists every file with its size and digest: a truncated or missing
file is found without reading the data, a changed one when it is loaded.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sophia_mcore.errors import SophiaError
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.digests import Digest, file_digest
from sophia_mcore.store.layout import CHECKPOINT, checkpoint_steps, step_name

FORMAT = 1
_OF_RANK = re.compile(r"__(\d+)_")  # torch names a file after the rank that writes it
_TEMPORARY, _DELETED = ".tmp-", ".old-"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """checkpoint.json: the step, the layout that wrote it, and its files."""

    step: int
    layout: Mapping[str, int]  # sizes of the parallel groups: tensor, pipeline, virtual_pipeline, context, data
    files: Mapping[str, int]  # name -> bytes
    format: int = FORMAT
    digests: Mapping[str, str] = field(default_factory=dict)  # xxh3-128 by name; {} in checkpoints of earlier versions
    sha256: Mapping[str, str] = field(default_factory=dict)  # by name, in checkpoints of earlier versions only


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, newest first."""
    return list(reversed(checkpoint_steps(folder).values()))


def newest_checkpoint(folder: Path) -> Path:
    """The newest intact checkpoint; raises SophiaError when there is none, saying what is wrong with those there."""
    problems = []
    for path in list_checkpoints(folder):
        try:
            read_manifest(path)
        except SophiaError as error:
            problems.append(str(error))
        else:
            return path
    raise SophiaError("; ".join(problems) if problems else f"{folder}: no checkpoint (train first)")


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint whose files are all there with their sizes.

    Raises SophiaError naming the first file that is missing or has another size.
    """
    try:
        content = json.loads((path / CHECKPOINT).read_bytes())
        manifest = Manifest(**content)
    except (OSError, ValueError, TypeError) as error:
        raise SophiaError(f"{path}: broken checkpoint ({CHECKPOINT}: {error})") from None
    if manifest.format != FORMAT:
        raise SophiaError(f"{path}: checkpoint format {manifest.format}, this version reads {FORMAT}")
    for name, size in manifest.files.items():
        try:
            actual = (path / name).stat().st_size
        except OSError as error:
            raise SophiaError(f"{path}: broken checkpoint ({name}: {error.strerror})") from None
        if actual != size:
            raise SophiaError(f"{path}: broken checkpoint ({name} has {actual} bytes, not {size})")
    return manifest


def begin(folder: Path, step: int) -> Path:
    """An empty hidden folder to write the checkpoint of ``step`` into."""
    temporary = folder / f"{_TEMPORARY}{step_name(step)}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def digests(folder: Path, rank: int, ranks: int, digest: Digest = "xxh3-128") -> dict[str, str]:
    """Digests by name of the files in ``folder`` that are this rank's to hash: its own, on rank 0 also nobody's."""
    found = {}
    for path in sorted(folder.iterdir()):
        match = _OF_RANK.match(path.name)
        if path.name != CHECKPOINT and int(match[1] if match else 0) % ranks == rank:
            found[path.name] = file_digest(path, digest)
    return found


def changed_file(folder: Path, manifest: Manifest, rank: int, ranks: int) -> str | None:
    """What is wrong with the first of this rank's files whose bytes are not those that were written, or None."""
    kind: Digest = "xxh3-128" if manifest.digests else "sha256"
    written = manifest.digests or manifest.sha256
    try:
        found = digests(folder, rank, ranks, kind) if written else {}
    except OSError as error:
        return f"{folder}: broken checkpoint ({error})"
    wrong = [name for name, digest in found.items() if written.get(name, digest) != digest]
    return f"{folder}: broken checkpoint ({wrong[0]}: its bytes have changed)" if wrong else None


def commit(temporary: Path, step: int, layout: Mapping[str, int], keep: int, digests: Mapping[str, str]) -> Path:
    """Make a written checkpoint visible, then delete all but the ``keep`` newest. Returns its final path."""
    files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
    manifest = Manifest(step=step, layout=dict(layout), files=files, digests=dict(digests))
    write_json(temporary / CHECKPOINT, asdict(manifest))
    final = temporary.parent / step_name(step)
    if final.exists():  # a broken one of the same step: it was refused at loading
        _delete(final)
    temporary.rename(final)
    for old in list_checkpoints(final.parent)[keep:]:
        _delete(old)
    return final


def clean(folder: Path) -> None:
    """Remove what a killed writer or a killed deletion left behind."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith((_TEMPORARY, _DELETED)):
                shutil.rmtree(path, ignore_errors=True)


def _delete(path: Path) -> None:
    doomed = path.with_name(f"{_DELETED}{path.name}")  # renamed first: never seen half deleted
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
