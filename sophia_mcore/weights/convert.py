"""Converts a checkpoint from one layout to another: plan the files, copy the bytes, verify the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sophia_mcore.errors import UsageError
from sophia_mcore.pretrained.families import check_processor
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.progress import NoProgress, Progress
from sophia_mcore.store.atomic import write_json
from sophia_mcore.store.layout import CONVERSION
from sophia_mcore.weights import proof
from sophia_mcore.weights.conversion import Conversion
from sophia_mcore.weights.formats.copying import write_target
from sophia_mcore.weights.formats.folder import new_folder
from sophia_mcore.weights.formats.model_files import dtype_warnings, write_settings
from sophia_mcore.weights.formats.opening import Checkpoint, open_checkpoint
from sophia_mcore.weights.formats.targets import Target, check_complete, plan_hf
from sophia_mcore.weights.verify import compare, require_equal


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a conversion, or of its plan (dry_run).

    ``nbytes``: bytes of all tensors. ``files``: name -> size in bytes. ``plan``: one line per tensor.
    """

    source_layout: str
    target_layout: str
    nbytes: int
    files: Mapping[str, int]
    plan: tuple[str, ...]
    verified: bool
    source_checked: bool = False  # True: the source's tensors match the digests in its conversion.json
    warnings: tuple[str, ...] = ()


def _check_layout(conversion: Conversion, spec: ModelSpec) -> None:
    """Raise UsageError for a layout that the model's family does not have."""
    layouts = {spec.layout} if spec.family is None else set(spec.family.model_types.values())
    if conversion.to not in ("megatron", *layouts):
        name = "a plain text model" if spec.family is None else spec.family.name
        raise UsageError(f"{conversion.source}: {name} has only one layout, {spec.layout}; nearest: --to {spec.layout}")


def convert(conversion: Conversion, progress: Progress | None = None) -> Summary:
    """Do the conversion, or with ``dry_run`` only plan it.

    Raises:
        UsageError: unknown layout, the destination exists, or the layout cannot divide the model.
        SophiaError: tensors are missing or left over (all are listed), a file is damaged, the disk is full, or the
            verification failed. No partial result remains. The source is only read.
    """
    progress = progress or NoProgress()
    conversion.check()
    if conversion.to == "fp8":
        return _convert_fp8(conversion, progress)
    opened = open_checkpoint(conversion.source, conversion.base)
    _check_layout(conversion, opened.spec)
    check_processor(conversion.base or conversion.source)
    dtypes = {name: conversion.dtype or tensor.dtype for name, tensor in opened.tensors.items()}
    if conversion.dry_run:
        target = _plan(conversion, opened, dtypes, conversion.destination)
        check_complete(target.tensors, opened.tensors)
        return _summary(opened, target, verified=False)
    recorded = proof.recorded(conversion.source) if conversion.verify else None
    if conversion.digest and opened.chunks:
        opened.check_bytes(progress)
    with new_folder(conversion.destination) as folder:
        target = _plan(conversion, opened, dtypes, folder)
        progress.start(f"convert to {conversion.to}", target.nbytes)
        algorithms = {name for name in (conversion.digest, recorded and recorded.algorithm) if name}
        digests = write_target(opened, target, algorithms, conversion.workers, progress.advance)
        if recorded:
            proof.require_recorded(conversion.source, digests[recorded.algorithm].source, recorded.target)
        write_settings(opened.spec, conversion.base or conversion.source, folder, conversion.to, conversion.dtype)
        if conversion.verify:
            require_equal(compare(opened, open_checkpoint(folder), progress))
        kept = digests[conversion.digest] if conversion.digest else None
        write_json(folder / CONVERSION, proof.proof(opened, target, kept, conversion.verify))
        warnings = dtype_warnings(folder, dtypes)
    return replace(_summary(opened, target, conversion.verify), source_checked=bool(recorded), warnings=warnings)


def _plan(conversion: Conversion, opened: Checkpoint, dtypes: Mapping[str, str], folder: Path) -> Target:
    if conversion.to == "megatron":
        from sophia_mcore.weights.formats.torch_dist_write import plan_megatron  # imports torch

        return plan_megatron(opened.spec, dtypes, folder, tensor=conversion.tensor, pipeline=conversion.pipeline)
    assert conversion.to != "fp8"
    spelling = opened.spelling if opened.layout == conversion.to else None
    return plan_hf(opened.spec, conversion.to, dtypes, folder, conversion.shard_size_mib << 20, spelling=spelling)


def _convert_fp8(conversion: Conversion, progress: Progress) -> Summary:
    from sophia_mcore.weights.quantize import fp8

    opened = fp8.require_native(conversion.source)
    plan = fp8.plan(conversion.source)
    nbytes = sum(tensor.nbytes for tensor in opened.tensors.values())
    if conversion.dry_run:
        return Summary(opened.layout, "fp8", nbytes, {}, plan, verified=False)
    fp8.quantize_fp8(conversion, progress)
    files = {file.name: file.stat().st_size for file in sorted(conversion.destination.glob("*.safetensors"))}
    return Summary(opened.layout, "fp8", nbytes, files, plan, verified=True)


def _summary(opened: Checkpoint, target: Target, verified: bool) -> Summary:
    lines = [
        f"{new.name} {new.dtype} {list(new.shape)}: {old.op} of {len(old.tiles)} -> {new.op} to {len(new.tiles)}"
        for new in target.tensors.values()
        for old in [opened.tensors[new.name]]
    ]
    files = {file.path.name: file.size for file in target.files}
    return Summary(opened.layout, target.layout, target.nbytes, files, tuple(lines), verified)
