"""Versions of a policy without a trainer: folders of weights that a test names, with manifest and pointer."""

from __future__ import annotations

import shutil
from pathlib import Path

from sophia_mcore.rl.versions import MANIFEST, Version, announce, manifest_digest, manifest_of, version_folder
from sophia_mcore.store.atomic import write_json


def write_version(model_dir: Path, parent: Path, version: int) -> tuple[Path, str]:
    """A version's folder with the files of ``model_dir``; (folder, digest)."""
    partial = parent / f".tmp-{version:08d}"
    shutil.copytree(model_dir, partial)
    manifest = manifest_of(partial, {})
    digest = manifest_digest(manifest)
    write_json(partial / MANIFEST, manifest)
    return partial.rename(version_folder(parent, version, digest)), digest


def publish(model_dir: Path, pointers: Path, version: int, updates_per_batch: int = 1) -> Version:
    """A version that exists: its folder beside its pointer."""
    folder, digest = write_version(model_dir, pointers, version)
    made = Version(
        version=version, folder=folder.name, digest=digest, bytes=0, step=version * updates_per_batch, seconds=0.0
    )
    announce(pointers, made)
    return made
