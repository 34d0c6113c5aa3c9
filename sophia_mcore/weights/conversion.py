"""The options of a conversion of checkpoints, as one value."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sophia_mcore.errors import UsageError
from sophia_mcore.store.digests import Digest
from sophia_mcore.weights.formats.safetensors import WEIGHT_DTYPES

Destination = Literal["megatron", "hf", "hf-custom", "fp8"]
_SPELLINGS = {
    "BF16": ("bf16", "bfloat16"),
    "F16": ("f16", "fp16", "float16", "half"),
    "F32": ("f32", "fp32", "float32", "float"),
}
DEFAULT_SHARD_MIB = 5000
WORKERS = 2  # threads; each has its own buffer


def named_dtype(text: str | None) -> str | None:
    """The safetensors name of a dtype that is given by any usual name. Unknown names are returned unchanged.

    >>> named_dtype("bfloat16"), named_dtype("fp32"), named_dtype("int8")
    ('BF16', 'F32', 'int8')
    """
    if text is None:
        return None
    plain = text.lower().removeprefix("torch.")
    return next((name for name, spellings in _SPELLINGS.items() if plain in spellings), text)


@dataclass(frozen=True, slots=True)
class Conversion:
    """Write ``source`` (any layout) as ``destination`` in layout ``to``.

    tensor, pipeline: numbers of ranks for which a Megatron checkpoint is cut. It can be loaded at any other layout.
    base: model folder of a trainer's checkpoint, if the checkpoint has no configuration.
    dtype: "BF16", "F16" or "F32" for all tensors. None: each tensor keeps its dtype.
    shard_size_mib: largest file of a Hugging Face folder, in MiB.
    verify: read the result back from the disk and compare every tensor with the source, bit by bit. If the source has a
        conversion.json, its tensors must have the digests in it.
    digest: kind of digest of every tensor in conversion.json, computed during the copy: "xxh3-128", "sha256" (of every
        stored tensor on both sides; takes longer than the copy) or None.
    workers: number of tensors that are copied at a time, each through 1 MiB of memory.
    calibration, quantizer: for fp8, see `quantize.fp8.quantize_fp8`. quantizer None: Python of `.venv-modelopt`.
    dry_run: only check and plan; nothing is written.
    """

    source: Path
    destination: Path
    to: Destination
    tensor: int = 1
    pipeline: int = 1
    base: Path | None = None
    dtype: str | None = None
    shard_size_mib: int = DEFAULT_SHARD_MIB
    verify: bool = False
    digest: Digest | None = "xxh3-128"
    workers: int = WORKERS
    calibration: Path | None = None
    quantizer: Path | None = None
    dry_run: bool = False

    def check(self) -> None:
        """Raise UsageError for options that exclude each other and folders that cannot be read or written."""
        self._check_options()
        self._check_folders()
        if self.to == "fp8":
            if self.dtype is not None or self.base is not None:
                raise UsageError("--to fp8 takes neither --dtype nor --base: it quantizes a model folder as it is")
            if self.calibration is None:
                raise UsageError("--to fp8 needs --calibration: a run folder, or a file with one text per line")
        elif self.calibration or self.quantizer:
            raise UsageError(f"--calibration and --quantizer are for --to fp8, not {self.to}")

    def _check_options(self) -> None:
        if self.to not in get_args(Destination):
            raise UsageError(f"unknown layout {self.to!r}; known: {', '.join(get_args(Destination))}")
        if self.digest is not None and self.digest not in get_args(Digest):
            raise UsageError(f"unknown digest {self.digest!r}; known: {', '.join(get_args(Digest))}")
        if self.tensor < 1 or self.pipeline < 1:
            raise UsageError(f"--tp {self.tensor} --pp {self.pipeline}: both must be at least 1")
        for name, count in (("workers", self.workers), ("shard-size-mib", self.shard_size_mib)):
            if count < 1:
                raise UsageError(f"--{name} {count}: at least 1")
        if self.to != "megatron" and (self.tensor, self.pipeline) != (1, 1):
            raise UsageError(f"--tp and --pp are for --to megatron; {self.to} folders are not cut by ranks")
        if self.dtype not in (None, *WEIGHT_DTYPES):
            raise UsageError(f"unknown dtype {self.dtype!r}; known: {', '.join(WEIGHT_DTYPES)}")
        if self.verify and self.dtype is not None:
            raise UsageError("a cast result cannot equal its source bit by bit: leave out --verify or the dtype")

    def _check_folders(self) -> None:
        if os.path.lexists(self.destination):
            dangling = self.destination.is_symlink() and not self.destination.exists()
            what = "is a dangling link" if dangling else "exists already"
            raise UsageError(f"{self.destination} {what}; delete it or name another folder")
        for folder in (self.source, self.base):
            if folder is not None and self.destination.resolve().is_relative_to(folder.resolve()):
                raise UsageError(f"{self.destination} lies inside {folder}, which is only read; name another folder")
        if self.base is None:
            return
        if (self.source / "config.json").exists():
            raise UsageError(f"--base {self.base}: {self.source} has a configuration of its own; leave out --base")
        if not (self.base / "config.json").is_file():
            raise UsageError(f"--base {self.base}: no such model folder (it has no config.json)")
