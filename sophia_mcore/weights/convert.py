"""Convert a checkpoint from one layout to another: plan, stream, prove."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from sophia_mcore.errors import UsageError
from sophia_mcore.progress import NoProgress, Progress
from sophia_mcore.store.atomic import write_json
from sophia_mcore.weights import proof
from sophia_mcore.weights.checkpoint import Checkpoint, open_checkpoint
from sophia_mcore.weights.copying import WORKERS, Digests, write_target
from sophia_mcore.weights.formats.folder import new_folder
from sophia_mcore.weights.model_files import dtype_warnings, write_settings
from sophia_mcore.weights.targets import Target, check_complete, plan_hf
from sophia_mcore.weights.verify import compare, require_equal

Destination = Literal["megatron", "hf", "hf-custom", "fp8"]
DEFAULT_SHARD_MIB = 5000


@dataclass(frozen=True, slots=True)
class Summary:
    """What a conversion did, or with dry_run would do: bytes of tensors, files by size, one line per tensor."""

    source_layout: str
    target_layout: str
    nbytes: int
    files: Mapping[str, int]
    plan: tuple[str, ...]
    verified: bool
    source_checked: bool = False  # its tensors had the digests of its own conversion.json
    warnings: tuple[str, ...] = ()


def convert(
    source: Path,
    destination: Path,
    to: Destination,
    *,
    tensor: int = 1,
    pipeline: int = 1,
    base: Path | None = None,
    dtype: str | None = None,
    shard_size_mib: int = DEFAULT_SHARD_MIB,
    verify: bool = False,
    checksums: bool = True,
    workers: int = WORKERS,
    dry_run: bool = False,
    calibration: Path | None = None,
    quantizer: Path | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Write ``source`` (any layout) as ``destination`` in layout ``to``.

    Args:
        tensor, pipeline: ranks that a Megatron checkpoint is cut for; it loads at any other layout too.
        base: model folder that a trainer's checkpoint belongs to; only for one without a configuration of its own.
        dtype: "BF16", "F16" or "F32" for all tensors; None keeps each tensor's.
        verify: read the result back from the disk and compare every tensor with the source, bit by bit; a source
            that was converted itself is held to the digests in its conversion.json.
        checksums: sha256 of every stored tensor in conversion.json (costs about as much again as the copy).
        workers: tensors copied at a time, each through 1 MiB of memory.
        dry_run: only check and plan; nothing is written.
        calibration, quantizer: for fp8, see `fp8.quantize_fp8`.

    Raises:
        UsageError: unknown layout, the destination exists, a layout that does not divide the model.
        SophiaError: tensors missing or left over (all are listed), damaged files, a full disk, or a failed
            verification. Nothing half-written stays; the source is only read.
    """
    source, destination, progress = Path(source), Path(destination), progress or NoProgress()
    _check_arguments(to, tensor, pipeline, workers, shard_size_mib, dtype, verify)
    _check_folders(source, destination, base)
    _check_fp8_arguments(to, dtype, base, calibration, quantizer)
    if to == "fp8":
        return _convert_fp8(source, destination, calibration, quantizer, dry_run, progress)
    opened = open_checkpoint(source, base)
    if opened.spec.vision is None and to not in ("megatron", opened.spec.layout):
        raise UsageError(f"{source}: a plain text model has only one layout, {opened.spec.layout}")
    dtypes = {name: dtype or tensor_.dtype for name, tensor_ in opened.tensors.items()}
    recorded = proof.recorded(source) if verify else {}

    def plan(folder: Path) -> Target:
        if to == "megatron":
            from sophia_mcore.weights.formats.torch_dist_write import plan_megatron  # imports torch

            return plan_megatron(opened.spec, dtypes, folder, tensor=tensor, pipeline=pipeline)
        return plan_hf(opened.spec, to, dtypes, folder, shard_size_mib << 20)

    if dry_run:
        target = plan(destination)
        check_complete(target.tensors, opened.tensors)
        return _summary(opened, target, verified=False)
    if checksums and opened.chunks:
        opened.check_bytes(progress)
    with new_folder(destination) as folder:
        target = plan(folder)
        progress.start(f"convert to {to}", target.nbytes)
        hashed = checksums or bool(recorded)
        digests = write_target(opened, target, checksums=hashed, workers=workers, advance=progress.advance)
        if recorded:
            proof.require_recorded(source, digests.source, recorded)
        write_settings(opened.spec, base or source, folder, to, dtype)
        if verify:
            require_equal(compare(opened, open_checkpoint(folder), progress))
        digests = digests if checksums else Digests({}, {})
        write_json(folder / proof.NAME, proof.proof(opened, target, digests, verify))
        warnings = dtype_warnings(folder, dtypes)
    return replace(_summary(opened, target, verify), source_checked=bool(recorded), warnings=warnings)


def _convert_fp8(
    source: Path, destination: Path, calibration: Path | None, quantizer: Path | None, dry_run: bool, progress: Progress
) -> Summary:
    from sophia_mcore.weights.quantize import check as fp8

    if calibration is None:
        raise UsageError("--to fp8 needs --calibration: a run folder, or a file with one text per line")
    opened = fp8.require_native(source)
    plan = fp8.plan(source)
    nbytes = sum(tensor.nbytes for tensor in opened.tensors.values())
    if dry_run:
        return Summary(opened.layout, "fp8", nbytes, {}, plan, verified=False)
    fp8.quantize_fp8(
        source, destination, calibration=calibration, quantizer=quantizer or fp8.QUANTIZER, progress=progress
    )
    files = {file.name: file.stat().st_size for file in sorted(destination.glob("*.safetensors"))}
    return Summary(opened.layout, "fp8", nbytes, files, plan, verified=True)


def _check_folders(source: Path, destination: Path, base: Path | None) -> None:
    if os.path.lexists(destination):
        what = "is a dangling link" if destination.is_symlink() and not destination.exists() else "exists already"
        raise UsageError(f"{destination} {what}; delete it or name another folder")
    for folder in (source, base):
        if folder is not None and destination.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{destination} lies inside {folder}, which is only read; name another folder")
    if base is None:
        return
    if (source / "config.json").exists():
        raise UsageError(f"--base {base}: {source} has a configuration of its own; leave out --base")
    if not (base / "config.json").is_file():
        raise UsageError(f"--base {base}: no such model folder (it has no config.json)")


def _check_arguments(
    to: str, tensor: int, pipeline: int, workers: int, shard_size_mib: int, dtype: str | None, verify: bool
) -> None:
    if to not in get_args(Destination):
        raise UsageError(f"unknown layout {to!r}; known: {', '.join(get_args(Destination))}")
    if tensor < 1 or pipeline < 1:
        raise UsageError(f"--tp {tensor} --pp {pipeline}: both must be at least 1")
    for name, count in (("workers", workers), ("shard-size-mib", shard_size_mib)):
        if count < 1:
            raise UsageError(f"--{name} {count}: at least 1")
    if to != "megatron" and (tensor, pipeline) != (1, 1):
        raise UsageError(f"--tp and --pp are for --to megatron; {to} folders are not cut by ranks")
    if dtype not in (None, "BF16", "F16", "F32"):
        raise UsageError(f"unknown dtype {dtype!r}; known: BF16, F16, F32")
    if verify and dtype is not None:
        raise UsageError("a cast result cannot equal its source bit by bit: leave out --verify or the dtype")


def _check_fp8_arguments(
    to: str, dtype: str | None, base: Path | None, calibration: Path | None, quantizer: Path | None
) -> None:
    if to != "fp8" and (calibration or quantizer):
        raise UsageError(f"--calibration and --quantizer are for --to fp8, not {to}")
    if to == "fp8" and (dtype is not None or base is not None):
        raise UsageError("--to fp8 takes neither --dtype nor --base: it quantizes a model folder as it is")


def _summary(opened: Checkpoint, target: Target, verified: bool) -> Summary:
    lines = [
        f"{new.name} {new.dtype} {list(new.shape)}: {old.op} of {len(old.tiles)} -> {new.op} to {len(new.tiles)}"
        for new in target.tensors.values()
        for old in [opened.tensors[new.name]]
    ]
    files = {file.path.name: file.size for file in target.files}
    return Summary(opened.layout, target.layout, target.nbytes, files, tuple(lines), verified)
