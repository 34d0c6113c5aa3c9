"""Describes a checkpoint of any layout as tiles: rectangles of our tensors, each with its file and offset.

With tiles, sharded and fused layouts need no special cases: a conversion copies, for each of our tensors, the overlaps
of the source's tiles with the target's tiles.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sophia_mcore.errors import SophiaError
from sophia_mcore.weights.formats.safetensors import DTYPE_BYTES, WEIGHT_DTYPES, StoredTensor
from sophia_mcore.weights.ops import Interleave, Rectangle, matrix_shape
from sophia_mcore.weights.tables import IGNORED_SUFFIXES, Entry


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of a tensor that is stored row by row in file ``path``.

    The first row starts at ``offset``; each next row starts ``pitch`` bytes later. ``key``: name of the stored tensor
    (a safetensors key, or a shard of a Megatron tensor).
    """

    rectangle: Rectangle
    key: str
    path: Path
    offset: int
    pitch: int


@dataclass(frozen=True, slots=True)
class Tiled:
    """One of our tensors: shape, stored dtype and tiles. ``op``: how it was joined, as text for conversion.json."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    tiles: tuple[Tile, ...]
    op: str = "copy"

    @property
    def nbytes(self) -> int:
        """Size of the whole tensor in bytes."""
        rows, columns = matrix_shape(self.shape)
        return rows * columns * DTYPE_BYTES[self.dtype]

    def check_covered(self) -> None:
        """Raise SophiaError unless every element lies in exactly one tile."""
        rows, columns = matrix_shape(self.shape)
        whole = Rectangle(0, rows, 0, columns)
        inside = all(t.rectangle.intersect(whole) == t.rectangle for t in self.tiles if t.rectangle.area)
        if not inside or sum(t.rectangle.area for t in self.tiles) != whole.area or _overlapping(self.tiles):
            raise SophiaError(f"{self.name}: the stored parts do not cover {list(self.shape)} exactly once")


def _overlapping(tiles: Sequence[Tile]) -> bool:
    """Whether two tiles share an element. Tiles are sorted by first row; each is compared only with tiles that have not
    ended before this row."""
    reach: list[Rectangle] = []
    for tile in sorted(tiles, key=lambda t: t.rectangle.row):
        box = tile.rectangle
        reach = [r for r in reach if r.row + r.rows > box.row]
        if any(box.intersect(r) for r in reach):
            return True
        reach.append(box)
    return False


def entry_tiles(entry: Entry, dtype: str, place: Callable[[str], tuple[str, Path, int]]) -> Tiled:
    """Tiles of an entry. ``place``: name of a source tensor -> (stored key, path, offset in bytes)."""
    columns = matrix_shape(entry.shape)[1]
    pitch = columns * DTYPE_BYTES[dtype]
    placed = [place(source.name) for source in entry.sources]
    tiles = [
        Tile(
            Rectangle(block.start, block.length, 0, columns),
            placed[block.source][0],
            placed[block.source][1],
            placed[block.source][2] + block.source_start * pitch,
            pitch,
        )
        for block in entry.op.blocks()
    ]
    return Tiled(entry.name, entry.shape, dtype, tuple(tiles), entry.op.describe())


def split_rectangles(shape: Sequence[int], op: Interleave | None) -> Iterator[tuple[int, Rectangle, int, int]]:
    """Yield the shards of a tensor: (rank, rectangle in the tensor, first row and first column inside the shard)."""
    rows, columns = matrix_shape(shape)
    if op is None:
        yield 0, Rectangle(0, rows, 0, columns), 0, 0
        return
    for block in op.blocks():
        if op.axis == 0:
            yield block.source, Rectangle(block.start, block.length, 0, columns), block.source_start, 0
        else:
            yield block.source, Rectangle(0, rows, block.start, block.length), 0, block.source_start


def tiles_of_folder(entries: Sequence[Entry], tensors: Mapping[str, StoredTensor], folder: Path) -> dict[str, Tiled]:
    """Our tensors in a Hugging Face folder, by canonical name. Every stored tensor is used exactly once.

    Raises:
        SophiaError: lists all tensors that are missing, left over (those of an adapter, for example), used twice or of
            a wrong shape.
    """
    uses = Counter(source.name for entry in entries for source in entry.sources)
    made = Counter(entry.name for entry in entries)
    problems = {
        "missing": [name for name in uses if name not in tensors],
        "not part of this model": [n for n in tensors if n not in uses and not n.endswith(IGNORED_SUFFIXES)],
        "used more than once": [name for name, n in uses.items() if n > 1],
        "made more than once": [name for name, n in made.items() if n > 1],
        "of another shape": [_shape_note(s.name, tensors[s.name].shape, s.shape) for e in entries for s in e.sources
                             if s.name in tensors and tensors[s.name].shape != s.shape],
        "of mixed types": [f"{e.name} ({', '.join(sorted(d))})" for e in entries
                           if len(d := {tensors[s.name].dtype for s in e.sources if s.name in tensors}) > 1],
        NO_WEIGHTS: wrong_dtypes({name: tensors[name].dtype for name in uses if name in tensors}),
    }  # fmt: skip
    raise_problems(f"{folder} does not fit its configuration", problems)

    def place(name: str) -> tuple[str, Path, int]:
        return tensors[name].name, tensors[name].path, tensors[name].offset

    found = {e.name: entry_tiles(e, tensors[e.sources[0].name].dtype, place) for e in entries}
    for tensor in found.values():
        tensor.check_covered()
    return found


NO_WEIGHTS = f"of a type that weights do not have (only {', '.join(WEIGHT_DTYPES)})"


def wrong_dtypes(dtypes: Mapping[str, str]) -> list[str]:
    """Texts "name (dtype)" of the tensors whose dtype is not in `WEIGHT_DTYPES`."""
    return [f"{name} ({dtype})" for name, dtype in dtypes.items() if dtype not in WEIGHT_DTYPES]


def _shape_note(name: str, found: Iterable[int], expected: Iterable[int]) -> str:
    return f"{name} {list(found)}, expected {list(expected)}"


def raise_problems(what: str, problems: Mapping[str, Sequence[str]]) -> None:
    """Raise one SophiaError that lists all problems (problem -> names of tensors), if there are any.

    Layer numbers are folded into ranges.
    """
    notes = [
        f"{len(names)} tensors {problem}: {', '.join(fold_layers(names))}"
        for problem, names in problems.items()
        if names
    ]
    if notes:
        raise SophiaError(f"{what}: " + "; ".join(notes))


def fold_layers(names: Iterable[str]) -> list[str]:
    """Fold the layer numbers in names into ranges.

    >>> fold_layers(["a.0.w", "a.1.w", "a.3.w", "b"])
    ['a.{0-1,3}.w', 'b']
    """
    found: dict[str, list[int]] = {}
    for name in names:
        match = re.search(r"(?<=\.)\d+(?=\.)", name)
        pattern = name if match is None else f"{name[: match.start()]}\0{name[match.end() :]}"
        found.setdefault(pattern, []).extend([] if match is None else [int(match[0])])
    return [pattern.replace("\0", _ranges(sorted(numbers))) for pattern, numbers in sorted(found.items())]


def _ranges(numbers: Sequence[int]) -> str:
    if len(numbers) < 2:
        return "".join(map(str, numbers))
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "{" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "}"
