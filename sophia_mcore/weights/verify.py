"""Compares two checkpoints of any layouts, tensor by tensor and bit by bit, with a few megabytes of memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sophia_mcore.errors import SophiaError, UsageError, listed
from sophia_mcore.progress import NoProgress, Progress
from sophia_mcore.weights.conversion import WORKERS
from sophia_mcore.weights.formats.copying import buffer_bytes, run_parallel
from sophia_mcore.weights.formats.opening import Checkpoint, open_checkpoint
from sophia_mcore.weights.formats.safetensors import DTYPE_BYTES
from sophia_mcore.weights.formats.stream import Files, bands, read_box
from sophia_mcore.weights.formats.tiles import Tiled, fold_layers
from sophia_mcore.weights.ops import Rectangle, matrix_shape

_NAMES, _KINDS = 6, 6  # that one line names


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of a comparison. ``equal``: canonical names of equal tensors. ``different``: name -> difference."""

    equal: tuple[str, ...]
    different: Mapping[str, str]
    nbytes: int  # bytes compared on each side

    @property
    def is_equal(self) -> bool:
        """True if no tensor differs."""
        return not self.different

    def describe(self) -> str:
        """One line: all tensors are equal, or those that differ, layers folded into ranges: the first of each kind."""
        if self.is_equal:
            return f"equal: {len(self.equal)} tensors, {self.nbytes / 1e9:.3g} GB, bit for bit"
        kinds: dict[str, list[str]] = {}
        for name, how in self.different.items():
            kinds.setdefault(how, []).append(name)
        notes = [f"{how}: {listed(fold_layers(names), _NAMES)}" for how, names in kinds.items()]
        return f"{len(self.different)} of {len(self.different) + len(self.equal)} tensors differ - " + listed(
            notes, _KINDS, "; "
        )


def verify(a: Path, b: Path, *, base: Path | None = None, progress: Progress | None = None) -> Comparison:
    """Compare checkpoints ``a`` and ``b``. ``base``: model folder of a trainer's checkpoint without configuration.

    Raises SophiaError or UsageError when one of them cannot be read. Differences are returned, not raised.
    """
    if base is not None and all((Path(folder) / "config.json").exists() for folder in (a, b)):
        raise UsageError(f"--base {base}: both checkpoints have a configuration of their own; leave it out")
    first, second = open_checkpoint(Path(a), _base(a, base)), open_checkpoint(Path(b), _base(b, base))
    return compare(first, second, progress or NoProgress())


def _base(folder: Path, base: Path | None) -> Path | None:
    return None if (Path(folder) / "config.json").exists() else base


def compare(first: Checkpoint, second: Checkpoint, progress: Progress) -> Comparison:
    """Compare two open checkpoints."""
    different = dict.fromkeys(first.tensors.keys() ^ second.tensors.keys(), "only in one")
    todo = []
    for name in first.tensors:
        if name in different:
            continue
        a, b = first.tensors[name], second.tensors[name]
        if matrix_shape(a.shape) != matrix_shape(b.shape):
            different[name] = f"shapes {list(a.shape)} and {list(b.shape)}"
        elif a.dtype != b.dtype:
            different[name] = f"types {a.dtype} and {b.dtype}"
        else:
            todo.append(name)
    sizes = {name: first.tensors[name].nbytes for name in todo}
    progress.start("verify", sum(sizes.values()))
    lock = threading.Lock()
    size = buffer_bytes(first.tensors.values())
    with Files() as files:

        def work(name: str, buffer: memoryview) -> None:
            same = _equal(first.tensors[name], second.tensors[name], files, buffer)
            with lock:
                if not same:
                    different[name] = "values differ"
                progress.advance(sizes[name])

        run_parallel(work, todo, WORKERS, 2 * size)
    first.check_unchanged()
    second.check_unchanged()
    equal = tuple(name for name in todo if name not in different)
    return Comparison(equal, different, sum(sizes.values()))


def _equal(a: Tiled, b: Tiled, files: Files, buffer: memoryview) -> bool:
    rows, columns = matrix_shape(a.shape)
    row_bytes = columns * DTYPE_BYTES[a.dtype]
    half = len(buffer) // 2
    for row, count in bands(rows, row_bytes, half):
        views = buffer[: count * row_bytes], buffer[half : half + count * row_bytes]
        for tensor, view in zip((a, b), views, strict=True):
            read_box(tensor, Rectangle(row, count, 0, columns), view, files)
        if bytes_differ(*views):
            return False
    return True


def bytes_differ(a: memoryview, b: memoryview) -> bool:
    """True if two buffers differ. Uses numpy, which compares words; memoryview compares byte by byte."""
    import numpy

    return not numpy.array_equal(numpy.frombuffer(a, numpy.uint8), numpy.frombuffer(b, numpy.uint8))


def require_equal(comparison: Comparison) -> None:
    """Raise SophiaError that names every tensor that differs."""
    if not comparison.is_equal:
        raise SophiaError(comparison.describe())
