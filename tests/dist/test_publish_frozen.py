"""Damaged bytes of frozen tensors are not handed on from version to version."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from safetensors.torch import load_file

from sophia_mcore.config.schema import Parallel
from sophia_mcore.model.names import canonical_parameters
from sophia_mcore.rl.versions import verify_version
from sophia_mcore.weights.publish import publish
from tests.dist.test_publish import MODEL, build
from tests.support import harness


def publish_after_damage(groups: Any, backend: Any, parent: Path) -> list[tuple[str, str]]:
    """Version 0, a damaged byte in its last file, which holds frozen tensors, and version 1."""
    chunks, spec = build(groups, backend)
    first = publish(chunks, spec, groups, MODEL, parent, 0)
    if dist.get_rank() == 0:
        with open(sorted(first[0].glob("*.safetensors"))[-1], "r+b") as file:
            file.seek(-1, os.SEEK_END)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
    dist.barrier()
    second = publish(chunks, spec, groups, MODEL, parent, 1, previous=first[0])
    return [(str(folder), digest) for folder, digest, _ in (first, second)]


@pytest.mark.parametrize("layout", [Parallel(), Parallel(tensor=2)], ids=["one rank", "tensor 2"])
def test_a_damaged_frozen_file_is_not_linked(tmp_path: Path, layout: Parallel) -> None:
    (_, zero), (folder, one) = harness.run_layout(publish_after_damage, layout, tmp_path)[0]
    assert one == zero  # the weights are the same, so the versions are
    verify_version(Path(folder), one)
    expected = load_file(MODEL / "model.safetensors")
    found = {name: value for file in Path(folder).glob("*.safetensors") for name, value in load_file(file).items()}
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


def publish_with_more_frozen(groups: Any, backend: Any, parent: Path) -> tuple[str, str]:
    """Version 0 trains all but the vision tower, version 1 the language model alone: other tensors in as many files."""
    chunks, spec = build(groups, backend)
    names = [name for name, _, _ in canonical_parameters(chunks, spec)]
    folder: Path | None = None
    for version, frozen in enumerate((("vision.",), ("vision.", "projector."))):
        trained = [name for name in names if not name.startswith(frozen)]
        folder, digest, _ = publish(chunks, spec, groups, MODEL, parent, version, trained=trained, previous=folder)
    return str(folder), digest


def test_a_file_of_other_frozen_tensors_is_not_linked(tmp_path: Path) -> None:
    folder, digest = harness.run_layout(publish_with_more_frozen, Parallel(), tmp_path)[0]
    verify_version(Path(folder), digest)
    expected = load_file(MODEL / "model.safetensors")
    parts = [load_file(file) for file in Path(folder).glob("*.safetensors")]
    assert sum(map(len, parts)) == len(expected)
    assert all(part[name].equal(expected[name]) for part in parts for name in part)
