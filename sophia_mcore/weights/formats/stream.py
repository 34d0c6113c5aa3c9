"""Copies tensors between files through small buffers, without loading a tensor as a whole.

A tensor is processed in bands of full rows. `read_box` gathers a band from the source's tiles; `write_box` scatters it
to the target's tiles. A tile that is narrower than the band (a tensor-parallel shard of columns) uses scatter/gather
I/O, so that no byte is copied twice in user space. Every call has its own offset, so threads share file descriptors.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from sophia_mcore.errors import SophiaError
from sophia_mcore.store.atomic import write_failed
from sophia_mcore.weights.formats.safetensors import DTYPE_BYTES, read_exactly
from sophia_mcore.weights.formats.tiles import Tile, Tiled
from sophia_mcore.weights.ops import Rectangle

IOV_MAX = 1024  # Linux's limit of buffers per preadv/pwritev
BUFFER_BYTES = 1 << 20  # per worker; 256 KiB and 4 MiB take 1.4 and 6 times the CPU time (docs/LOG.md)
SPARSE_RATIO = 4  # pieces narrower than 1/4 of a stored row are read row by row, wider ones with the gaps between them


@dataclass
class Files:
    """Open file descriptors by path, which are closed together. To write a file, call ``create`` or ``join`` first."""

    _open: dict[Path, int] = field(default_factory=dict)

    def reading(self, path: Path) -> int:
        """Descriptor for reading ``path``. Raises SophiaError when it cannot be opened."""
        if path not in self._open:
            try:
                self._open.setdefault(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                raise SophiaError(f"cannot read {path}: {error.strerror}") from error
        return self._open[path]

    def create(self, path: Path, size: int) -> None:
        """Create a file and reserve ``size`` bytes, so that a full disk is noticed early. Raises SophiaError."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            self._open[path] = descriptor
            if size:
                _reserve(descriptor, size)
        except OSError as error:
            raise write_failed(path, error) from error

    def join(self, path: Path) -> None:
        """Open a file that another process has created, to write a part of it. Raises SophiaError."""
        try:
            self._open[path] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise write_failed(path, error) from error

    def writing(self, path: Path) -> int:
        """Descriptor of a file made by ``create`` or opened by ``join``."""
        return self._open[path]

    def sync(self) -> None:
        """Flush every open file to the disk. Raises SophiaError."""
        for path, descriptor in self._open.items():
            try:
                os.fsync(descriptor)
            except OSError as error:
                raise write_failed(path, error) from error

    def __enter__(self) -> Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with suppress(SophiaError):
            self.close()

    def close(self) -> None:
        """Close all files. Raises SophiaError if bytes are refused only now: NFS writes the last ones here."""
        failed: SophiaError | None = None
        for path, descriptor in self._open.items():
            try:
                os.close(descriptor)
            except OSError as problem:
                failed = failed or write_failed(path, problem)
        self._open.clear()
        if failed is not None:
            raise failed


def _reserve(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(descriptor, size)  # the filesystem cannot reserve space: writing finds a full disk later


def bands(rows: int, row_bytes: int, buffer_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (first row, rows) of consecutive bands that fit into the buffer. A band has at least one row."""
    step = max(1, buffer_bytes // max(1, row_bytes))
    for row in range(0, rows, step):
        yield row, min(step, rows - row)


@dataclass(frozen=True, slots=True)
class Piece:
    """Overlap of a tile and a box: ``rows`` runs of ``width`` bytes.

    In the file they start at ``offset``, at distances of ``tile.pitch`` bytes. In the buffer of the box they start at
    ``position``, at distances of ``box_pitch`` bytes.
    """

    tile: Tile
    rows: int
    width: int
    offset: int
    position: int
    box_pitch: int

    @property
    def in_one_run(self) -> bool:
        """Whether the piece is contiguous in the file and in the buffer."""
        return self.rows == 1 or (self.width == self.tile.pitch and self.width == self.box_pitch)


def pieces(tiled: Tiled, box: Rectangle) -> Iterator[Piece]:
    """Yield the overlaps of a tensor's tiles with a box, in the order of the tiles."""
    size = DTYPE_BYTES[tiled.dtype]
    for tile in tiled.tiles:
        common = box.intersect(tile.rectangle)
        if common is None:
            continue
        row, column = common.row - tile.rectangle.row, common.column - tile.rectangle.column
        offset = tile.offset + row * tile.pitch + column * size
        position = ((common.row - box.row) * box.columns + common.column - box.column) * size
        yield Piece(tile, common.rows, common.columns * size, offset, position, box.columns * size)


def read_box(tiled: Tiled, box: Rectangle, buffer: memoryview, files: Files) -> None:
    """Fill ``buffer`` (bytes, row-major [box.rows, box.columns]) with a rectangle of a tensor.

    Raises SophiaError if a file cannot be read or ends early.
    """
    for piece in pieces(tiled, box):
        descriptor = files.reading(piece.tile.path)
        if piece.in_one_run:
            run = buffer[piece.position : piece.position + piece.rows * piece.width]
            read_exactly(descriptor, run, piece.offset, piece.tile.path)
        elif piece.width * SPARSE_RATIO < piece.tile.pitch:
            for i in range(piece.rows):
                start = piece.position + i * piece.box_pitch
                where = piece.offset + i * piece.tile.pitch
                read_exactly(descriptor, buffer[start : start + piece.width], where, piece.tile.path)
        else:
            _read_rows(descriptor, piece, buffer)


def _read_rows(descriptor: int, piece: Piece, buffer: memoryview) -> None:
    """Read several rows with one call into the buffer. The gaps between them are read into a spare buffer."""
    gap = piece.tile.pitch - piece.width
    spare = memoryview(bytearray(gap))
    step = IOV_MAX // 2 if gap else IOV_MAX
    for first in range(0, piece.rows, step):
        rows = range(first, min(first + step, piece.rows))
        views = rows_of(buffer, piece, rows)
        if gap:
            views = [view for run in views for view in (run, spare)][:-1]
        want = sum(map(len, views))
        where = piece.offset + first * piece.tile.pitch
        try:
            got = os.preadv(descriptor, views, where)
        except OSError as error:
            raise SophiaError(f"cannot read {piece.tile.path}: {error.strerror}") from error
        if got != want:  # interrupted, or the file has ended: read row by row, which raises if it has ended
            for i, run in zip(rows, rows_of(buffer, piece, rows), strict=True):
                read_exactly(descriptor, run, piece.offset + i * piece.tile.pitch, piece.tile.path)


def write_box(tiled: Tiled, box: Rectangle, buffer: memoryview, files: Files) -> None:
    """Write a rectangle of a tensor from ``buffer`` (bytes, row-major) to the tensor's tiles.

    A rectangle that is narrower than a tile is written row by row, so that several processes can fill one tensor.

    Raises SophiaError when the disk is full or cannot be written.
    """
    for piece in pieces(tiled, box):
        descriptor = files.writing(piece.tile.path)
        if piece.in_one_run:
            views = [buffer[piece.position : piece.position + piece.rows * piece.width]]
            _write_all(descriptor, views, piece.offset, piece.tile.path)
            continue
        if piece.width != piece.tile.pitch:  # a part of each row; another process writes the rest
            for i, view in enumerate(rows_of(buffer, piece, range(piece.rows))):
                _write_all(descriptor, [view], piece.offset + i * piece.tile.pitch, piece.tile.path)
            continue
        for first in range(0, piece.rows, IOV_MAX):
            rows = range(first, min(first + IOV_MAX, piece.rows))
            where = piece.offset + first * piece.tile.pitch
            _write_all(descriptor, rows_of(buffer, piece, rows), where, piece.tile.path)


def rows_of(buffer: memoryview, piece: Piece, rows: range) -> list[memoryview]:
    starts = range(
        piece.position + rows.start * piece.box_pitch, piece.position + rows.stop * piece.box_pitch, piece.box_pitch
    )
    return [buffer[start : start + piece.width] for start in starts]


def _write_all(descriptor: int, views: Sequence[memoryview], offset: int, path: Path) -> None:
    todo = sum(map(len, views))
    try:
        done = os.pwritev(descriptor, views, offset)
        while done < todo:  # after a short write, continue in the middle of the views
            rest, skip = [], done
            for view in views:
                rest.append(view[min(skip, len(view)) :])
                skip -= min(skip, len(view))
            done += os.pwritev(descriptor, [view for view in rest if len(view)], offset + done)
    except OSError as error:
        raise write_failed(path, error) from error


def write_bytes_at(files: Files, path: Path, data: bytes, offset: int) -> None:
    """Write bytes (a header) at an offset into a file made by ``Files.create``. Raises SophiaError."""
    _write_all(files.writing(path), [memoryview(data)], offset, path)


def drop_cache(files: Files, path: Path) -> None:
    """Hint to the kernel that the file's pages need not stay in memory."""
    with suppress(OSError, AttributeError):
        os.posix_fadvise(files.reading(path), 0, 0, os.POSIX_FADV_DONTNEED)
