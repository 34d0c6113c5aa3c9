"""Writes the model in training as a Hugging Face folder. This is the inverse of `load`.

No tensor is gathered. The ranks make the files. Then each writes its own parts of the parameters, cast to the stored
dtype, through a few MiB of memory; of tensors that are cut by columns, whole rows (`columns`). Ranks that hold the same
part (data and context parallel ranks, or tensors that tensor parallelism does not cut) divide the tensors among
themselves. Frozen tensors have their own files, which are written once and hard-linked from version to version, like
configuration and tokenizer.

Nothing waits for the disk: engines read what was written from the system's memory, and verify it. What a power cut
takes is found damaged and is written again (`rl.versions`).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from sophia_mcore.errors import SophiaError
from sophia_mcore.model.names import Shard, canonical_parameters
from sophia_mcore.parallel.groups import Groups
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.rl.versions import (
    MANIFEST,
    DamagedVersionError,
    manifest_digest,
    manifest_of,
    verify_version,
    version_folder,
)
from sophia_mcore.store.atomic import write_failed, write_json
from sophia_mcore.store.digests import file_digest
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import MODEL_CARD
from sophia_mcore.weights.columns import is_cut_by_columns, shared_memory, write_columns
from sophia_mcore.weights.formats.model_files import write_settings
from sophia_mcore.weights.formats.opening import open_checkpoint
from sophia_mcore.weights.formats.stream import BUFFER_BYTES, Files, bands, write_box, write_bytes_at
from sophia_mcore.weights.formats.targets import NewFile, Target, plan_hf
from sophia_mcore.weights.formats.tiles import Tiled
from sophia_mcore.weights.formats.torch_dtypes import TORCH_DTYPES
from sophia_mcore.weights.load import shard_boxes
from sophia_mcore.weights.ops import Rectangle, matrix_shape

FILE_BYTES, FILES = 256 << 20, 200  # ranks write and read different files at once; about so many are open
T = TypeVar("T")


def publish(
    chunks: Iterable[nn.Module],
    spec: ModelSpec,
    groups: Groups,
    base: Path,
    parent: Path,
    version: int,
    *,
    trained: Collection[str] | None = None,
    previous: Path | None = None,
) -> tuple[Path, str, int]:
    """Write version ``version`` under ``parent``; returns (its folder, its digest, bytes written) on every rank.

    All ranks must call this together, and all must see the folder ``parent``. Before the call the parameters must be
    those of the last update (deferred all-gathers are done). The caller announces the version afterwards.

    Args:
        base: Hugging Face folder with layout, dtypes, configuration and tokenizer to use.
        trained: canonical names of the tensors that training changes. None: those that require a gradient.
        previous: folder of an earlier version, whose files of frozen tensors are linked. None: they are written.

    Raises:
        SophiaError: the disk is full or a folder cannot be used. Every rank raises it, and no files remain.
    """
    chunks = list(chunks)
    stored = open_checkpoint(base)
    if stored.layout == "megatron":
        raise SophiaError(f"{base}: versions are published in the layout of a Hugging Face folder")
    if trained is None:
        trained = _trained(chunks, spec, groups)
    frozen = set(stored.tensors) - set(trained)
    partial = parent / f".tmp-{version:08d}"
    dtypes = {name: tensor.dtype for name, tensor in stored.tensors.items()}
    size = max(FILE_BYTES, sum(tensor.nbytes for tensor in stored.tensors.values()) // FILES)
    target = plan_hf(stored.spec, stored.layout, dtypes, partial, size, apart=frozen, spelling=stored.spelling)
    first = dist.get_rank() == 0
    linked = _linked(target, frozen, previous)
    try:
        together(lambda: _begin(partial, target, linked, previous, base, stored.spec) if first else None)
        new = _share([file for file in target.files if file.path not in linked])
        together(lambda: _create(new))
        written = _write_parameters(chunks, spec, groups, target, linked)
        digests = _digests(new)
        digests |= {path.name: digest for path, digest in linked.items()}
        result = together(lambda: _finish(partial, parent, version, digests) if first else None)[0]
    except BaseException:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    assert result is not None
    return *result, written


def together(work: Callable[[], T]) -> list[T]:
    """Call ``work`` on every rank; returns the results of all ranks. If one fails, all raise the first error."""
    result: T | None = None
    problem: str | None = None
    try:
        result = work()
    except (SophiaError, OSError) as error:
        problem = str(error)
    everybody: list[tuple[T | None, str | None]] = [(None, None)] * dist.get_world_size()
    dist.all_gather_object(everybody, (result, problem))
    for _, failed in everybody:
        if failed is not None:
            raise SophiaError(failed)
    return [value for value, _ in everybody]  # type: ignore[misc]


def _trained(chunks: Iterable[nn.Module], spec: ModelSpec, groups: Groups) -> set[str]:
    """Canonical names of the parameters that require a gradient, on all pipeline stages."""
    own = {name for name, parameter, _ in canonical_parameters(chunks, spec) if parameter.requires_grad}
    everybody: list[set[str]] = [own] * groups.pipeline_size
    if groups.pipeline_size > 1:
        dist.all_gather_object(everybody, own, group=groups.collection.pp)
    return set().union(*everybody)


def _linked(target: Target, frozen: Collection[str], previous: Path | None) -> dict[Path, str]:
    """The target's files that are linked from the version before, and their digests: those with only frozen tensors.

    Each is read; the ranks divide them among themselves. One whose bytes have changed since they were written is not
    linked but written again: its damage would be part of every later version, whose digests would not tell.
    """
    if previous is None:
        return {}
    moving = {tile.path for name, tensor in target.tensors.items() if name not in frozen for tile in tensor.tiles}
    still = {tile.path for name in frozen for tile in target.tensors[name].tiles}
    written = json_or_empty(previous / MANIFEST)
    own = _share([file for file in target.files if file.path in still - moving])

    def read() -> dict[Path, str]:
        found = {}
        for file in own:
            old = previous / file.path.name
            digest = file_digest(old, "xxh3-128") if old.is_file() and _begins_like(old, file) else ""
            if digest and written.get(old.name, {}).get("xxh3-128") == digest:
                found[file.path] = digest
            else:
                print(
                    f"warning: {old} is missing, damaged or holds other tensors: it is written again",
                    file=sys.stderr,
                    flush=True,
                )
        return found

    return {path: digest for part in together(read) for path, digest in part.items()}


def _begins_like(old: Path, new: NewFile) -> bool:
    """Whether an older file has the header of the new one, so holds the same tensors at the same places."""
    with open(old, "rb") as file:
        return all(file.seek(offset) == offset and file.read(len(data)) == data for offset, data in new.literals)


def _begin(
    partial: Path, target: Target, linked: Collection[Path], previous: Path | None, base: Path, spec: ModelSpec
) -> None:
    """On rank 0: make the folder, links, configuration and tokenizer."""
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise write_failed(partial, error) from error
    for path in linked:
        assert previous is not None
        _link(previous / path.name, path)
    write_settings(spec, base, partial, target.layout, skip=(MODEL_CARD,))  # it may change while versions are written


def _create(files: Iterable[NewFile]) -> None:
    """On every rank: make files with headers and reserved space, which in memory takes as long as writing them."""
    with Files() as made:
        for file in files:
            made.create(file.path, file.size)
            for offset, data in file.literals:
                write_bytes_at(made, file.path, data, offset)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another filesystem, or one without hard links
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise write_failed(target, error) from error


def _write_parameters(
    chunks: Iterable[nn.Module], spec: ModelSpec, groups: Groups, target: Target, linked: Collection[Path]
) -> int:
    """Write this rank's share of the tensors; returns the bytes that all ranks have written."""
    whole: list[tuple[Tiled, torch.Tensor, Shard]] = []
    cut: list[tuple[Tiled, torch.Tensor]] = []
    memory = shared_memory(groups.tensor) if groups.tensor_size > 1 else None
    for number, (name, parameter, shard) in enumerate(canonical_parameters(chunks, spec)):
        tiled = target.tensors.get(name)  # None: an output layer that is tied to the embedding
        if tiled is None or any(tile.path in linked for tile in tiled.tiles) or not _writes(number, shard, groups):
            continue
        if memory is not None and is_cut_by_columns(tiled, shard):
            cut.append((tiled, parameter.data))
        else:
            whole.append((tiled, parameter.data, shard))
    start = len(whole) * dist.get_rank() // dist.get_world_size()  # writers of one file wait for each other
    with Files() as files, torch.no_grad():

        def write_whole() -> int:
            for file in target.files:
                if file.path not in linked:
                    files.join(file.path)
            return sum(write_parameter(*part, files) for part in whole[start:] + whole[:start])

        def write_cut() -> int:
            written = write_columns(cut, groups.tensor, memory, files) if memory is not None else 0
            files.close()
            return written

        return sum(together(write_whole)) + sum(together(write_cut))


def _writes(number: int, shard: Shard, groups: Groups) -> bool:
    """Whether this rank writes its part of parameter ``number``: one of the ranks that hold the same part does."""
    place, holders = (
        groups.data_rank * groups.context_size + groups.context_rank,
        groups.data_size * groups.context_size,
    )
    if shard.axis is None:
        place, holders = place * groups.tensor_size + groups.tensor_rank, holders * groups.tensor_size
    return number % holders == place


def write_parameter(tiled: Tiled, values: torch.Tensor, shard: Shard, files: Files) -> int:
    """Write one rank's part of a tensor into its tiles, cast to the stored dtype; returns the bytes written.

    ``values``: local shape of the parameter, any dtype and device. Padded rows of the vocabulary are left out.
    """
    rows, columns = matrix_shape(tiled.shape)
    local, position, written = values.reshape(-1), 0, 0
    for box in shard_boxes(rows + shard.padding, columns, shard):
        real = max(0, min(box.rows, rows - box.row))
        row_values = local[position : position + real * box.columns]
        for row, count, data in _bands(row_values, real, box.columns, TORCH_DTYPES[tiled.dtype]):
            write_box(tiled, Rectangle(box.row + row, count, box.column, box.columns), data, files)
            written += len(data)
        position += box.area
    if position != values.numel():
        raise SophiaError(f"{tiled.name}: the parameter {list(values.shape)} does not fit {list(tiled.shape)}")
    return written


def _bands(values: torch.Tensor, rows: int, columns: int, dtype: torch.dtype) -> Iterator[tuple[int, int, memoryview]]:
    """Yield (first row, rows, bytes) of bands of a flattened matrix, cast to ``dtype`` and in host memory."""
    for row, count in bands(rows, columns * dtype.itemsize, BUFFER_BYTES):
        part = values[row * columns : (row + count) * columns].to(dtype=dtype).cpu().contiguous()
        yield row, count, memoryview(part.view(torch.uint8).numpy().data)


def _digests(own: Sequence[NewFile]) -> dict[str, str]:
    """xxh3-128 of the written files, by name. Each rank reads its own back."""
    found = together(lambda: {file.path.name: file_digest(file.path, "xxh3-128", mapped=True) for file in own})
    return {name: digest for part in found for name, digest in part.items()}


def _share(files: Iterable[NewFile]) -> list[NewFile]:
    """This rank's files, where the ranks divide them among themselves by their bytes."""
    taken: list[list[NewFile]] = [[] for _ in range(dist.get_world_size())]
    for file in sorted(files, key=lambda file: (-file.size, file.path)):
        min(taken, key=lambda part: sum(one.size for one in part)).append(file)
    return taken[dist.get_rank()]


def _finish(partial: Path, parent: Path, version: int, digests: dict[str, str]) -> tuple[Path, str]:
    """On rank 0: write the manifest, then rename the folder; its name contains the digest. Returns (folder, digest)."""
    manifest = manifest_of(partial, digests)
    digest = manifest_digest(manifest)
    write_json(partial / MANIFEST, manifest)
    final = version_folder(parent, version, digest)
    if final.exists():  # a process that was killed has written the same bytes before, unless the disk has lost some
        try:
            verify_version(final, digest)
        except DamagedVersionError:
            shutil.rmtree(final)
        else:
            shutil.rmtree(partial)
            return final, digest
    partial.rename(final)
    return final, digest
