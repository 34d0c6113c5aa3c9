"""Evaluates the weight tables for a model: names and shapes of its tensors, tensor-parallel cuts, parameter counts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import cache

from sophia_mcore.pretrained import table
from sophia_mcore.pretrained.spec import LanguageSpec, ModelSpec
from sophia_mcore.pretrained.table import Cut, Row, Size, Table

_LAYER = re.compile(r"\.layers\.\d+\.")


def tables_of(spec: ModelSpec) -> tuple[Table, ...]:
    """The weight tables of a model in the order of the network: tower and projector (if any), language model."""
    own = () if spec.family is None else spec.family.tables()
    return (*own, Table(table.LANGUAGE, "layers"))


def symbols_of(spec: ModelSpec) -> dict[str, int]:
    """Values of the tables' symbols for a model."""
    own = {} if spec.family is None else spec.family.symbols(spec.vision, spec.projector)
    return table.language_symbols(spec.language) | dict(own)


def value(size: Size, symbols: Mapping[str, int]) -> int:
    """The value of a size in a table: a number, or the value of a symbol."""
    return size if isinstance(size, int) else symbols[size]


def rows_of(rows: Table, symbols: Mapping[str, int]) -> Iterator[tuple[Row, int]]:
    """Yield (row, layer) for every tensor that the model has, in the order of the network."""
    for block in _layer_blocks(rows.rows):
        repeats = range(symbols[rows.layers]) if "{i}" in block[0].name else range(1)
        yield from ((row, i) for i in repeats for row in block if not row.when or symbols[row.when])


def _layer_blocks(rows: tuple[Row, ...]) -> Iterator[list[Row]]:
    """Split rows into blocks: consecutive rows that are repeated together for each layer, or not repeated."""
    block: list[Row] = []
    for row in rows:
        if block and ("{i}" in row.name) != ("{i}" in block[0].name):
            yield block
            block = []
        block.append(row)
    if block:
        yield block


def cut_of(name: str) -> Cut | None:
    """How tensor parallelism cuts one of our tensors; None: every rank holds the whole tensor.

    >>> cut_of("language.decoder.layers.3.mlp.linear_fc1.weight")
    Cut(axis=0, blocks=2, uneven=False)
    """
    return _cuts().get(_LAYER.sub(".layers.{i}.", name))


@cache
def _cuts() -> dict[str, Cut]:
    """Row name -> cut. Only the language model is cut; every rank holds the whole tower and projector."""
    return {row.name: row.cut for row in table.LANGUAGE if row.cut is not None}


def _numbers(row: Row, symbols: Mapping[str, int]) -> int:
    if row.when and not symbols[row.when]:
        return 0
    return math.prod(value(size, symbols) for size in row.shape)


@cache
def parameters(spec: ModelSpec) -> Mapping[str, int]:
    """Number of parameters of "vision", "projector" and "language", without padding of the vocabulary."""
    symbols, found = symbols_of(spec), {"vision": 0, "projector": 0, "language": 0}
    for rows in tables_of(spec):
        for row in rows.rows:
            repeats = symbols[rows.layers] if "{i}" in row.name else 1
            found[row.name.partition(".")[0]] += repeats * _numbers(row, symbols)
    return found


@cache
def layer_parameters(spec: LanguageSpec, tensor_size: int = 1) -> int:
    """Number of parameters of one language layer on one tensor-parallel rank."""
    symbols = table.language_symbols(spec)
    counts = [(row.cut, _numbers(row, symbols)) for row in table.LANGUAGE if "{i}" in row.name]
    shared = sum(count for cut, count in counts if cut is not None)
    return shared // tensor_size + sum(count for cut, count in counts if cut is None)
