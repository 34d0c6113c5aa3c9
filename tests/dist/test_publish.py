"""The model that is being trained as a Hugging Face folder, written by all ranks at once."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from sophia_mcore.config.schema import Batch, Fp8, Objective, Parallel, Train
from sophia_mcore.errors import SophiaError
from sophia_mcore.model import lvlm
from sophia_mcore.model.names import canonical_parameters
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.rl.versions import Version, announce, newest_version, prune, read_version, verify_version
from sophia_mcore.weights import columns
from sophia_mcore.weights.load import load_hf
from sophia_mcore.weights.publish import publish
from tests.support import harness

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "internvl"
if not FIXTURES.exists():
    pytest.skip(f"needs the reference models at {FIXTURES}", allow_module_level=True)
MODEL = FIXTURES / "internvl3-8b-hf"
LAYOUTS = {
    "one rank": Parallel(),
    "tensor 2, sequence parallel": Parallel(tensor=2, sequence_parallel=True),
    "tensor 2, pipeline 2": Parallel(tensor=2, pipeline=2),
    "data 2": Parallel(processes=2),
    "context 2": Parallel(context=2),
    "pipeline 2, data 2": Parallel(pipeline=2, processes=4),
}


def build(groups: Any, backend: Any) -> tuple[list[Any], ModelSpec]:
    spec = ModelSpec.from_model_dir(MODEL)
    settings = SimpleNamespace(
        train=Train(dtype="bfloat16"), fp8=Fp8(), batch=Batch(sequence_length_tokens=64), objective=Objective()
    )
    chunks = lvlm.build(spec, settings, groups, backend)
    load_hf(chunks, MODEL, spec, groups)
    return chunks, spec


def publish_three(groups: Any, backend: Any, parent: Path) -> list[tuple[str, str, int]]:
    """Version 0 as loaded, version 1 changed, version 1 again."""
    columns.HALF_BYTES = 2048  # rows in several bands, the last one shorter; this process is a forked rank
    chunks, spec = build(groups, backend)
    first = publish(chunks, spec, groups, MODEL, parent, 0)
    with torch.no_grad():
        for name, parameter, _ in canonical_parameters(chunks, spec):
            if name.startswith("language.decoder.layers"):
                parameter.data.mul_(-1)
    second = publish(chunks, spec, groups, MODEL, parent, 1, previous=first[0])
    again = publish(chunks, spec, groups, MODEL, parent, 1, previous=first[0])
    return [(str(folder), digest, written) for folder, digest, written in (first, second, again)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_writes_the_same_bytes(tmp_path: Path, layout: str) -> None:
    results = harness.run_layout(publish_three, LAYOUTS[layout], tmp_path)
    assert all(result == results[0] for result in results)
    (zero, digest_zero, all_bytes), (one, digest_one, written), again = results[0]
    assert again == (one, digest_one, written)
    expected = load_file(MODEL / "model.safetensors")
    versions = [
        {name: value for file in sorted(Path(folder).glob("*.safetensors")) for name, value in load_file(file).items()}
        for folder in (zero, one)
    ]
    assert versions[0].keys() == versions[1].keys() == expected.keys()
    changed_bytes = 0
    for name, tensor in expected.items():
        sign = -1 if ".layers." in name and name.startswith("language_model.") else 1
        assert tensor.dtype == versions[0][name].dtype
        assert torch.equal(versions[0][name], tensor), name
        assert torch.equal(versions[1][name], sign * tensor), name
        frozen = name.startswith(("vision_tower.", "multi_modal_projector."))
        changed_bytes += 0 if frozen else tensor.nbytes
    assert written == changed_bytes < all_bytes == sum(tensor.nbytes for tensor in expected.values())
    for folder, digest in ((zero, digest_zero), (one, digest_one)):
        verify_version(Path(folder), digest)
    same = [(path.stat().st_ino == (Path(zero) / path.name).stat().st_ino) for path in Path(one).glob("*.safetensors")]
    assert sorted(same) == [False, True]  # the frozen file is linked, the other written
    spec = ModelSpec.from_model_dir(Path(one))
    assert spec == ModelSpec.from_model_dir(MODEL)
    assert not list(tmp_path.glob(".tmp-*"))


def test_the_digest_does_not_depend_on_the_layout(tmp_path: Path) -> None:
    found = {
        harness.run_layout(publish_three, LAYOUTS[layout], tmp_path / str(number))[0][1][1]
        for number, layout in enumerate(("one rank", "tensor 2, pipeline 2"))
    }
    assert len(found) == 1


def test_a_damaged_version_is_named(tmp_path: Path) -> None:
    folder, digest, _ = harness.run_layout(publish_three, Parallel(), tmp_path)[0][1]
    file = next(Path(folder).glob("model-00001*.safetensors"))
    with pytest.raises(SophiaError, match="that of another version"):
        verify_version(Path(folder), "0" * 64)
    with open(file, "r+b") as handle:
        handle.seek(-3, os.SEEK_END)
        byte = handle.read(1)[0]
        handle.seek(-1, os.SEEK_CUR)
        handle.write(bytes([byte ^ 4]))
    with pytest.raises(SophiaError, match=rf"damaged version \({file.name}: its bytes are not"):
        verify_version(Path(folder), digest)
    file.unlink()
    with pytest.raises(SophiaError, match=rf"{file.name} is missing"):
        verify_version(Path(folder), digest)


def publish_into_a_file(groups: Any, backend: Any, parent: Path) -> str:
    chunks, spec = build(groups, backend)
    if dist.get_rank() == 0:
        parent.write_text("in the way")
    dist.barrier()
    try:
        publish(chunks, spec, groups, MODEL, parent, 0)
    except SophiaError as error:
        return str(error)
    return ""


def test_a_failure_of_one_rank_is_told_by_all(tmp_path: Path) -> None:
    messages = harness.run_layout(publish_into_a_file, Parallel(tensor=2), tmp_path / "file")
    assert len(messages) == 2
    assert all("cannot write" in message for message in messages)


def publish_on_a_full_disk(groups: Any, backend: Any, parent: Path, only_rank: int) -> str:
    """The disk of one rank is full when it writes its second band of whole rows."""
    chunks, spec = build(groups, backend)
    plain, calls = columns.write_box, [0]

    def write_box(tiled: Any, box: Any, data: memoryview, files: Any) -> None:
        calls[0] += 1
        if calls[0] == 2 and dist.get_rank() == only_rank:
            raise SophiaError(f"cannot write {tiled.name}: no space")
        plain(tiled, box, data, files)

    columns.write_box = write_box  # this process is a forked rank: nobody else sees it
    columns.HALF_BYTES = 2048  # many bands of the small model
    try:
        publish(chunks, spec, groups, MODEL, parent, 0)
    except SophiaError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("rank", [0, 1])
def test_no_rank_waits_for_rows_of_one_that_cannot_write(tmp_path: Path, rank: int) -> None:
    messages = harness.run_layout(publish_on_a_full_disk, Parallel(tensor=2), tmp_path, rank, timeout=60.0)
    assert messages[0] == messages[1] and "no space" in messages[0]
    assert not list(tmp_path.iterdir())


def publish_on_two_machines(groups: Any, backend: Any, parent: Path) -> str:
    """Each rank takes itself for one of another machine; the digest."""
    boot = parent / f"boot-{dist.get_rank()}"
    boot.write_text(str(dist.get_rank()))
    columns._BOOT = boot  # this process is a forked rank: nobody else sees it
    chunks, spec = build(groups, backend)
    assert columns.shared_memory(groups.tensor) is None
    return publish(chunks, spec, groups, MODEL, parent / "versions", 0)[1]


def shared_in_two_containers(groups: Any, backend: Any, parent: Path) -> bool:
    """As if another process had the number of rank 0: what is found there has not its token."""
    plain, os.pwrite = os.pwrite, lambda *_: 0  # this process is a forked rank: nobody else sees it
    found = columns.shared_memory(groups.tensor)
    os.pwrite = plain
    return found is None and columns.shared_memory(groups.tensor) is not None


def test_memory_of_another_process_is_not_shared(tmp_path: Path) -> None:
    found = harness.run_layout(shared_in_two_containers, Parallel(tensor=2), tmp_path)
    assert found == [True, True]


def test_ranks_of_several_machines_share_no_memory(tmp_path: Path) -> None:
    found = harness.run_layout(publish_on_two_machines, Parallel(tensor=2), tmp_path)
    alone = harness.run_layout(publish_three, Parallel(), tmp_path / "alone")
    assert found == [alone[0][0][1]] * 2


def test_pointers(tmp_path: Path) -> None:
    assert newest_version(tmp_path) is None
    for number in (0, 2, 1):
        folder = tmp_path / f"{number:08d}-0123abcd"
        folder.mkdir()
        announce(
            tmp_path,
            Version(version=number, folder=folder.name, digest="0123abcd", bytes=1, step=number, seconds=0.5),
        )
    newest = newest_version(tmp_path)
    assert newest is not None and newest.version == 2
    assert newest.path(tmp_path) == tmp_path / "00000002-0123abcd"
    assert read_version(tmp_path, 7) is None
    (tmp_path / ".tmp-00000003").mkdir()
    removed = prune(tmp_path, [newest.path(tmp_path), tmp_path / "00000001-0123abcd"])
    assert [path.name for path in removed] == [".tmp-00000003", "00000000-0123abcd"]
    (tmp_path / "00000003.json").write_text("{}")
    with pytest.raises(SophiaError, match="not a version's pointer"):
        newest_version(tmp_path)
