"""Resolves the weight tables (`pretrained.table`) for a model and a layout.

A row of a table says from which source tensors one of our tensors is made. The operation is invertible, and `ops`
derives its inverse.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.family import Family, Spelling
from sophia_mcore.pretrained.spec import Layout, ModelSpec
from sophia_mcore.pretrained.table import LLAMA_LIKE, Cut, Join, Row
from sophia_mcore.pretrained.tensors import rows_of, symbols_of, tables_of, value
from sophia_mcore.weights.ops import Interleave, copy, matrix_shape

# Keys of stored tensors that are no weights of the model. They are ignored.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor in a Hugging Face layout."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A resolved row: ``op`` joins ``sources`` to our tensor; ``cut`` says how tensor parallelism divides it."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    op: Interleave
    cut: Cut | None


def resolve(spec: ModelSpec, layout: Layout) -> list[Entry]:
    """Entries of all tensors of a model in a layout, in the order of the tables."""
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
    """Prefix of the language model's tensor names inside a vision-language model; "" in a text model."""
    return "" if spec.family is None else spec.family.language_prefix


def spelling_of(names: Collection[str], family: Family | None) -> Spelling:
    """The spelling of the family that fits most ``names`` of a folder in transformers' layout.

    transformers has renamed the modules of some families, so files of one model can have different names.
    """
    ways = () if family is None else sorted(family.spellings, key=len)  # if none fits, the names of the tables

    def found(way: Spelling) -> int:
        return sum(name.startswith(tuple(new for _, new in way)) for name in names) if way else 0

    return max(ways, key=found, default=())


def spelled(name: str, spelling: Spelling) -> str:
    """The name in files of a name in the tables.

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
        raise SophiaError(f"this model has no such layout: it holds no {row.name}")
    shape = tuple(value(size, sizes) for size in row.shape)
    names = [prefix + name.format(i=i) for name in cell.names]
    if cell.parts:
        op = Interleave(value(cell.groups, sizes), tuple(value(part, sizes) for part in cell.parts))
        sources = tuple(Source(n, (length, *shape[1:])) for n, length in zip(names, op.source_lengths, strict=True))
    else:
        op, sources = copy(matrix_shape(shape)[0]), (Source(names[0], shape),)
    return Entry(row.name.format(i=i), shape, sources, op, row.cut)
