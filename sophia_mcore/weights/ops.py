"""The one invertible operation of the weight tables, and rectangles of tensors.

All layouts of a transformer checkpoint hold the same numbers. They differ only in how blocks of rows (or columns) are
joined: query, key and value as three tensors or one, grouped per key-value head or not; gate and up joined or separate;
one shard per tensor-parallel rank. Each of these is an interleaving of blocks:

    target = for each of `groups` groups: the next parts[0] rows of source 0, the next parts[1] rows of source 1, ...

``copy`` is one group of one part, ``concat`` one group of several parts, Megatron's grouped QKV one group per key-value
head. Each row of a source is used exactly once and each row of the target is made exactly once. So the inverse needs no
second table: it reads the same blocks in the other direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sophia_mcore.errors import SophiaError


@dataclass(frozen=True, slots=True)
class Block:
    """``length`` rows (or columns), from ``source_start`` in source ``source``, and from ``start`` in the target."""

    source: int
    source_start: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Interleave:
    """An invertible operation that joins sources along one axis; see the docstring of the module.

    >>> list(Interleave(groups=2, parts=(2, 1)).blocks())[2]
    Block(source=0, source_start=2, start=3, length=2)
    """

    groups: int
    parts: tuple[int, ...]
    axis: int = 0

    def __post_init__(self) -> None:
        if self.groups < 1 or not self.parts or min(self.parts) < 0:
            raise SophiaError(f"impossible interleaving: {self.groups} groups of {self.parts}")

    @property
    def length(self) -> int:
        """Length of the target along ``axis``."""
        return self.groups * sum(self.parts)

    @property
    def source_lengths(self) -> tuple[int, ...]:
        """Length of each source along ``axis``."""
        return tuple(self.groups * part for part in self.parts)

    def blocks(self) -> Iterator[Block]:
        """All blocks in the order of the target."""
        start = 0
        for group in range(self.groups):
            for source, part in enumerate(self.parts):
                if part:
                    yield Block(source, group * part, start, part)
                start += part

    def describe(self) -> str:
        """Name and numbers of the operation, as text for conversion.json."""
        if len(self.parts) == 1:
            return "copy"
        kind = "concat" if self.groups == 1 else f"interleave {self.groups} x"
        return f"{kind} {'+'.join(map(str, self.parts))}" + (f" on axis {self.axis}" if self.axis else "")


def copy(length: int) -> Interleave:
    """The target is equal to its only source."""
    return Interleave(1, (length,))


def concat(*lengths: int, axis: int = 0) -> Interleave:
    """The target consists of the sources one after another."""
    return Interleave(1, tuple(lengths), axis)


def split(length: int, parts: int, *, axis: int = 0, groups: int = 1) -> Interleave:
    """Tensor-parallel shards: each of ``groups`` equal blocks (gate, up) is cut into ``parts`` equal shares.

    Raises SophiaError if ``length`` is not a multiple of groups x parts.
    """
    if length % (groups * parts):
        raise SophiaError(f"a length of {length} does not divide into {groups} x {parts} equal shares")
    return Interleave(groups, (length // groups // parts,) * parts, axis)


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Part of a tensor seen as a matrix [rows, columns]: rows [row, row + rows), columns [column, column + columns)."""

    row: int
    rows: int
    column: int
    columns: int

    def intersect(self, other: Rectangle) -> Rectangle | None:
        """The common part, None if empty."""
        row, column = max(self.row, other.row), max(self.column, other.column)
        rows = min(self.row + self.rows, other.row + other.rows) - row
        columns = min(self.column + self.columns, other.column + other.columns) - column
        return Rectangle(row, rows, column, columns) if rows > 0 and columns > 0 else None

    @property
    def area(self) -> int:
        """Number of elements."""
        return self.rows * self.columns


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of a tensor as a matrix. The first axis, without leading axes of size 1, becomes the rows.

    >>> matrix_shape((64, 3, 14, 14)), matrix_shape((1, 17, 8)), matrix_shape((5,)), matrix_shape(())
    ((64, 588), (17, 8), (5, 1), (1, 1))
    """
    sizes = squeezed(shape)
    return (sizes[0] if sizes else 1), math.prod(sizes[1:])


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape without leading axes of size 1. The last two axes are always kept."""
    leading = 0
    while len(shape) - leading > 2 and shape[leading] == 1:
        leading += 1
    return tuple(shape[leading:])
