"""Writes a planned checkpoint from an open one, tensor by tensor in several threads; computes digests on the way."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sophia_mcore.errors import SophiaError
from sophia_mcore.store.digests import Digest, new_digest
from sophia_mcore.weights.conversion import WORKERS
from sophia_mcore.weights.formats.opening import Checkpoint
from sophia_mcore.weights.formats.safetensors import DTYPE_BYTES
from sophia_mcore.weights.formats.stream import (
    BUFFER_BYTES,
    Files,
    Piece,
    bands,
    pieces,
    read_box,
    rows_of,
    write_box,
    write_bytes_at,
)
from sophia_mcore.weights.formats.targets import Target, check_complete
from sophia_mcore.weights.formats.tiles import Tiled, raise_problems
from sophia_mcore.weights.ops import Rectangle, matrix_shape

if TYPE_CHECKING:
    from sophia_mcore.store.digests import Running


@dataclass
class RunningDigests:
    """Digests of tensors, computed while their bytes are copied in order. Each byte is hashed once.

    xxh3-128 is of our tensors, row by row, so it is the same in every layout. sha256 is of the stored tensors, so other
    programs can compute it too.
    """

    algorithm: Digest
    _running: dict[str, Running] = field(default_factory=dict)

    def update(self, tiled: Tiled, box: Rectangle, buffer: memoryview) -> None:
        """Hash the bytes of a band of full rows. The bands of a tensor must come in order."""
        if self.algorithm == "xxh3-128":
            self._running_digest(tiled.name).update(buffer)
            return
        for piece in pieces(tiled, box):
            running = self._running_digest(piece.tile.key)
            for view in _views(buffer, piece):
                running.update(view)

    def _running_digest(self, key: str) -> Running:
        if key not in self._running:
            self._running[key] = new_digest(self.algorithm)
        return self._running[key]

    def values(self) -> dict[str, str]:
        """Hexadecimal digest of each tensor, by name or key."""
        return {key: running.hexdigest() for key, running in self._running.items()}


def _views(buffer: memoryview, piece: Piece) -> list[memoryview]:
    if piece.in_one_run:
        return [buffer[piece.position : piece.position + piece.rows * piece.width]]
    return rows_of(buffer, piece, range(piece.rows))


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests of all tensors on both sides. xxh3-128: by canonical name. sha256: by key of the stored tensor."""

    algorithm: Digest
    source: Mapping[str, str]
    target: Mapping[str, str]


class _BothSides:
    """Running digests of source and target. xxh3-128 of a tensor that is not cast is computed only once."""

    def __init__(self, algorithm: Digest) -> None:
        self.source, self.target = RunningDigests(algorithm), RunningDigests(algorithm)

    def update(self, old: Tiled, new: Tiled, box: Rectangle, before: memoryview, after: memoryview) -> None:
        """Hash a band as it was read and as it was written."""
        self.source.update(old, box, before)
        if self.target.algorithm == "sha256" or old.dtype != new.dtype:
            self.target.update(new, box, after)

    def finished(self) -> Digests:
        source, target = self.source.values(), self.target.values()
        if self.target.algorithm == "xxh3-128":
            target = source | target
        return Digests(self.source.algorithm, source, target)


def write_target(
    source: Checkpoint,
    target: Target,
    algorithms: Collection[Digest] = (),
    workers: int = WORKERS,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[Digest, Digests]:
    """Create the target's files and fill them; returns the digests for each of the ``algorithms``.

    ``advance`` is called with numbers of bytes that are done, by several threads, one at a time.

    Raises SophiaError when the disk is full, or a source file is damaged or has changed. The caller then removes the
    folder.
    """
    check_complete(target.tensors, source.tensors)
    digests = {algorithm: _BothSides(algorithm) for algorithm in algorithms}
    with Files() as reading, Files() as writing:
        for file in target.files:
            writing.create(file.path, file.size)
            for offset, data in file.literals:
                write_bytes_at(writing, file.path, data, offset)
        work = _Work(source.tensors, target.tensors, reading, writing, tuple(digests.values()), advance)
        run_parallel(work.copy, list(target.tensors), workers, buffer_bytes(source.tensors.values()))
        too_large = [f"{name} ({count} values)" for name, count in sorted(work.overflows.items())]
        raise_problems("values too large for the dtype they are cast to", {"with infinities": too_large})
        writing.sync()
    source.check_unchanged()
    return {algorithm: sides.finished() for algorithm, sides in digests.items()}


def buffer_bytes(tensors: Iterable[Tiled]) -> int:
    """Size of a worker's buffer in bytes: `BUFFER_BYTES`, or one row of the widest tensor if that is more."""
    return max(BUFFER_BYTES, *(matrix_shape(t.shape)[1] * DTYPE_BYTES[t.dtype] for t in tensors))


def run_parallel(work: Callable[[str, memoryview], None], names: Iterable[str], workers: int, size: int) -> None:
    """Call ``work(name, buffer)`` for every name in ``workers`` threads, each with a buffer of ``size`` bytes.

    The first exception ends all threads and is raised.
    """
    todo, lock, stop = iter(names), threading.Lock(), threading.Event()

    def worker() -> None:
        buffer = memoryview(bytearray(size))
        while not stop.is_set():
            with lock:
                name = next(todo, None)
            if name is None:
                return
            work(name, buffer)

    with ThreadPoolExecutor(workers) as pool:
        tasks = [pool.submit(worker) for _ in range(workers)]
        try:
            done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
        for task in done:
            task.result()


@dataclass
class _Work:
    source: Mapping[str, Tiled]
    target: Mapping[str, Tiled]
    reading: Files
    writing: Files
    digests: tuple[_BothSides, ...]
    advance: Callable[[int], None]
    overflows: Counter[str] = field(default_factory=Counter)  # tensor -> finite values that became infinite
    lock: threading.Lock = field(default_factory=threading.Lock)

    def copy(self, name: str, buffer: memoryview) -> None:
        """Copy one tensor in bands of full rows. Cast it if the target has another dtype."""
        old, new = self.source[name], self.target[name]
        rows, columns = matrix_shape(new.shape)
        if matrix_shape(old.shape) != (rows, columns):
            raise SophiaError(f"{name}: shape {list(old.shape)} cannot become {list(new.shape)}")
        row_bytes = columns * DTYPE_BYTES[old.dtype]
        for row, count in bands(rows, row_bytes, len(buffer)):
            view = buffer[: count * row_bytes]
            box = Rectangle(row, count, 0, columns)
            read_box(old, box, view, self.reading)
            written, overflows = (view, 0) if old.dtype == new.dtype else cast(view, old.dtype, new.dtype)
            write_box(new, box, written, self.writing)
            for sides in self.digests:
                sides.update(old, new, box, view, written)
            with self.lock:
                if overflows:
                    self.overflows[name] += overflows
                self.advance(len(view))


def cast(data: memoryview, old: str, new: str) -> tuple[memoryview, int]:
    """Cast values to another floating-point type (round to nearest even); returns them and how many became infinite."""
    import torch  # imported here, because copies without a cast need no torch

    from sophia_mcore.weights.formats.torch_dtypes import TORCH_DTYPES

    if old not in TORCH_DTYPES or new not in TORCH_DTYPES:
        raise SophiaError(f"cannot cast {old} to {new}")
    exact = torch.frombuffer(data, dtype=TORCH_DTYPES[old])
    values = exact.to(TORCH_DTYPES[new])
    overflows = int((values.isinf() & ~exact.isinf()).sum())
    return memoryview(values.view(torch.uint8).numpy().data), overflows
