"""The tables against an oracle written by hand, and a mutation of every single cell of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained import table as language
from sophia_mcore.pretrained.internvl import weights as internvl
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.pretrained.table import ROWS, Join, Row
from sophia_mcore.weights.formats.opening import open_checkpoint
from sophia_mcore.weights.formats.stream import Files, read_box
from sophia_mcore.weights.formats.torch_dtypes import TORCH_DTYPES
from sophia_mcore.weights.ops import Interleave, Rectangle, matrix_shape
from sophia_mcore.weights.tables import resolve
from tests.support.weights_models import FAMILIES, Model, Sizes, layouts, make, write

TABLES = {"VISION": internvl, "PROJECTOR": internvl, "LANGUAGE": language}
_CUT = re.compile(
    r"^language\.(?:(?P<rows>embedding\.word_embeddings\.weight|output_layer\.weight"
    r"|decoder\.layers\.\d+\.self_attention\.linear_qkv\.(?:weight|bias))"
    r"|(?P<gated>decoder\.layers\.\d+\.mlp\.linear_fc1\.weight)"
    r"|(?P<columns>decoder\.layers\.\d+\.(?:self_attention\.linear_proj|mlp\.linear_fc2)\.weight))$"
)


def megatron_cut(name: str) -> tuple[int | None, int]:
    """(axis, blocks) by which megatron-core's layers hold the tensor, written by hand; axis None: whole."""
    match = _CUT.match(name)
    if match is None:
        return None, 1
    return (1, 1) if match["columns"] else (0, 2 if match["gated"] else 1)


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of ours as the package reads it."""
    found = {}
    with Files() as files:
        for name, tiled in open_checkpoint(folder).tensors.items():
            rows, columns = matrix_shape(tiled.shape)
            buffer = bytearray(tiled.nbytes)
            read_box(tiled, Rectangle(0, rows, 0, columns), memoryview(buffer), files)
            found[name] = torch.frombuffer(buffer, dtype=TORCH_DTYPES[tiled.dtype]).view(tiled.shape)
    return found


def assert_reads_right(folders: dict[tuple[str, str], Path], models: dict[str, Model]) -> None:
    """Raise unless every model reads right from every layout and is cut as the trainer cuts it."""
    for (family, layout), folder in folders.items():
        found = read_all(folder)
        assert found.keys() == models[family].ours.keys()
        for name, tensor in models[family].ours.items():
            assert found[name].shape == tensor.shape and torch.equal(found[name], tensor), (family, layout, name)
        for entry in resolve(ModelSpec.from_model_dir(folder), layout):
            ours = (None, 1) if entry.cut is None else (entry.cut.axis, entry.cut.blocks)
            assert ours == megatron_cut(entry.name), entry.name
            assert entry.cut is None or entry.cut.uneven == ("embeddings" in entry.name or "output" in entry.name)


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {name: make(sizes) for name, sizes in FAMILIES.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Model]) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        (name, layout): write(root / f"{name}-{layout}", sizes, models[name], layout)
        for name, sizes in FAMILIES.items()
        for layout in layouts(sizes)
    }


def test_every_family_reads_right_from_every_layout(
    folders: dict[tuple[str, str], Path], models: dict[str, Model]
) -> None:
    assert_reads_right(folders, models)


def mutations(row: Row) -> Iterator[tuple[str, Row]]:
    """Every way in which one cell of a row can be wrong."""
    yield "our name", replace(row, name=row.name.replace(".", ".wrong_", 1))
    yield "one size", replace(row, shape=(*row.shape[:-1], 1 if row.shape[-1] != 1 else 2))
    yield "one axis more", replace(row, shape=(*row.shape, 2))
    yield "condition", replace(row, when="" if row.when else "vision_qk_norm" if "vision" in row.name else "qk_norm")
    cut = None if row.cut is not None else ROWS
    yield "cut", replace(row, cut=cut)
    if row.cut is not None:
        yield "cut axis", replace(row, cut=replace(row.cut, axis=1 - row.cut.axis))
        yield "cut blocks", replace(row, cut=replace(row.cut, blocks=3 - row.cut.blocks))
        yield "cut rest", replace(row, cut=replace(row.cut, uneven=not row.cut.uneven))
    for column in ("hf", "custom"):
        cell: Join | None = getattr(row, column)
        if cell is None:
            continue
        for i, name in enumerate(cell.names):
            names = (*cell.names[:i], name + "s", *cell.names[i + 1 :])
            yield f"{column} name {i}", replace(row, **{column: replace(cell, names=names)})
        for i in range(len(cell.names) - 1):
            names = (*cell.names[:i], cell.names[i + 1], cell.names[i], *cell.names[i + 2 :])
            yield f"{column} names {i} and {i + 1} swapped", replace(row, **{column: replace(cell, names=names)})
        for i in range(len(cell.parts)):
            parts = (*cell.parts[:i], 1, *cell.parts[i + 1 :])
            yield f"{column} part {i}", replace(row, **{column: replace(cell, parts=parts)})
        if cell.parts:
            groups = 1 if cell.groups != 1 else 2
            yield f"{column} groups", replace(row, **{column: replace(cell, groups=groups)})


ALL = [
    pytest.param(table, number, what, wrong, id=f"{row.name}: {what}")
    for table in TABLES
    for number, row in enumerate(getattr(TABLES[table], table))
    for what, wrong in mutations(row)
]


@pytest.mark.parametrize(("table", "number", "what", "wrong"), ALL)
def test_breaking_any_cell_of_any_table_is_noticed(
    monkeypatch: pytest.MonkeyPatch, folders: dict[tuple[str, str], Path], models: dict[str, Model],
    table: str, number: int, what: str, wrong: Row,
) -> None:  # fmt: skip
    rows = getattr(TABLES[table], table)
    monkeypatch.setattr(TABLES[table], table, (*rows[:number], wrong, *rows[number + 1 :]))
    with pytest.raises((AssertionError, SophiaError, KeyError)):
        assert_reads_right(folders, models)


@pytest.mark.parametrize("table", TABLES)
def test_a_missing_or_a_doubled_row_is_noticed(
    monkeypatch: pytest.MonkeyPatch, folders: dict[tuple[str, str], Path], models: dict[str, Model], table: str
) -> None:
    rows = getattr(TABLES[table], table)
    for number, row in enumerate(rows):
        for wrong in ((*rows[:number], *rows[number + 1 :]), (*rows, row), (*rows[: number + 1], *rows[number:])):
            monkeypatch.setattr(TABLES[table], table, wrong)
            with pytest.raises((AssertionError, SophiaError)):
                assert_reads_right(folders, models)


def test_the_operation_is_invertible_and_of_the_stated_order() -> None:
    op = Interleave(groups=2, parts=(3, 1, 1))
    taken = [(b.source, b.source_start + i) for b in op.blocks() for i in range(b.length)]
    assert sorted(taken) == [(s, r) for s, n in enumerate(op.source_lengths) for r in range(n)]
    assert [b.start for b in op.blocks()] == [0, 3, 4, 5, 8, 9]
    assert taken[:5] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    with pytest.raises(SophiaError, match="impossible"):
        Interleave(groups=0, parts=(1,))


def test_sizes_of_a_head_that_is_not_hidden_over_heads() -> None:
    """Qwen3: 6 heads of 8 on a hidden size of 12."""
    sizes = Sizes(tower="", family="qwen3", head_size=8)
    assert make(sizes).ours["language.decoder.layers.0.self_attention.linear_proj.weight"].shape == (12, 48)
