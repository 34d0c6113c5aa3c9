"""The weight tables (`pretrained.table`) of a model in a layout: each tensor of ours, and what it is made of.

A table's row says which source tensors a tensor of ours is made of; the operation between them is invertible, and its
inverse is derived (`ops`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.family import Family, Spelling
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.pretrained.table import LLAMA_LIKE, Cut, Join, Row
from sophia_mcore.pretrained.tensors import rows_of, symbols_of, tables_of, value
from sophia_mcore.weights.ops import Interleave, copy, matrix_shape

HfLayout = Literal["hf", "hf-custom"]

# Keys that carry no weights of the model; they are left behind on purpose, by name.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of a Hugging Face layout."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A resolved row: our tensor is ``sources`` joined by ``op``, shared by ``cut``."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    op: Interleave
    cut: Cut | None


def resolve(spec: ModelSpec, layout: HfLayout) -> list[Entry]:
    """All tensors of a model and what each is made of in a layout, in the order of the tables."""
    symbols = symbols_of(spec)
    *own, language = tables_of(spec)
    entries = [
        _entry(row, row.custom if layout == "hf-custom" else row.hf, symbols, i, "")
        for rows in own
        for row, i in rows_of(rows, symbols)
    ]
    custom = spec.language.family in LLAMA_LIKE and layout == "hf-custom"
    prefix = language_prefix(spec)
    return entries + [
        _entry(row, row.custom if custom else row.hf, symbols, i, prefix) for row, i in rows_of(language, symbols)
    ]


def language_prefix(spec: ModelSpec) -> str:
    """What stands before the language model's names inside a vision-language model."""
    return "" if spec.family is None else spec.family.language_prefix


def spelling_of(names: Collection[str], family: Family | None) -> Spelling:
    """How the files of a folder in transformers' layout spell the tables' names, of the family's ways."""
    ways = () if family is None else sorted(family.spellings, key=len)  # where none is found: the tables' own

    def found(way: Spelling) -> int:
        return sum(name.startswith(tuple(new for _, new in way)) for name in names) if way else 0

    return max(ways, key=found, default=())


def spelled(name: str, spelling: Spelling) -> str:
    """A name of the tables as the files have it.

    >>> spelled("visual.merger.ln_q.weight", (("visual.", "model.visual."), ("model.", "model.language_model.")))
    'model.visual.merger.ln_q.weight'
    """
    old, new = next((pair for pair in spelling if name.startswith(pair[0])), ("", ""))
    return new + name.removeprefix(old)


def table_name(name: str, spelling: Spelling) -> str:
    """The inverse of `spelled`."""
    return spelled(name, tuple((new, old) for old, new in spelling))


def _entry(row: Row, cell: Join | None, sizes: Mapping[str, int], i: int, prefix: str) -> Entry:
    if cell is None:
        raise SophiaError(f"{row.name} has no place in this layout")
    shape = tuple(value(size, sizes) for size in row.shape)
    names = [prefix + name.format(i=i) for name in cell.names]
    if cell.parts:
        op = Interleave(value(cell.groups, sizes), tuple(value(part, sizes) for part in cell.parts))
        sources = tuple(Source(n, (length, *shape[1:])) for n, length in zip(names, op.source_lengths, strict=True))
    else:
        op, sources = copy(matrix_shape(shape)[0]), (Source(names[0], shape),)
    return Entry(row.name.format(i=i), shape, sources, op, row.cut)
