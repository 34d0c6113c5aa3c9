"""Window attention of Qwen2.5-VL's tower: every patch attends to the patches of its own window, and to nothing else.

The products are counted: padding would show as positions that no window has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sophia_mcore.model.vision import qwen_vl
from sophia_mcore.pretrained.qwen_vl.spec import WindowVisionSpec

MERGE, SIDE = 2, 2  # patches of a token's side, tokens of a window's side: windows of 4 x 4 patches
SPEC = WindowVisionSpec(
    hidden_size=16, num_layers=3, num_attention_heads=2, intermediate_size=8, patch_size=2, num_channels=3, merge=MERGE,
    window=SIDE, full_layers=(1,),
)  # fmt: skip
GRIDS = {
    "whole windows": [(8, 8)],
    "edges": [(6, 10)],
    "a single token": [(2, 2)],
    "a row of tokens": [(2, 14)],
    "several pictures": [(8, 8), (6, 10), (2, 2), (4, 6)],
}


def windows(grids: list[tuple[int, int]]) -> list[int]:
    """Patches of each window, counted by hand."""
    side = MERGE * SIDE

    def parts(length: int) -> Iterator[int]:
        return (min(side, length - start) for start in range(0, length, side))

    return [high * wide for rows, columns in grids for high in parts(rows) for wide in parts(columns)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(pieces, queries, keys) of each attention product."""
    calls: list[tuple[int, int, int]] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        assert not options, "a mask would mean that more is computed than is used"
        calls.append((len(query), query.shape[-2], key.shape[-2]))
        return plain(query, key, value)

    monkeypatch.setattr(qwen_vl.F, "scaled_dot_product_attention", attend)
    return calls


def tower() -> qwen_vl.VisionTower:
    torch.manual_seed(0)
    made = qwen_vl.VisionTower(SPEC, torch.float32)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("case", GRIDS)
def test_no_position_is_padded(case: str, counted: list[tuple[int, int, int]]) -> None:
    grids = GRIDS[case]
    patches = [rows * columns for rows, columns in grids]
    tower()(torch.randn(sum(patches), SPEC.row_width), grids)
    attended = sum(pieces * queries * keys for pieces, queries, keys in counted)
    whole, own = sum(count**2 for count in patches), windows(grids)
    assert attended == whole + 2 * sum(count**2 for count in own), "one full layer and two of windows"
    assert sum(pieces * queries for pieces, queries, _ in counted) == 3 * sum(patches)
    assert len(counted) <= len(set(patches)) * len(grids) + 2 * len(set(own)), "windows of one size go together"


def test_a_window_sees_itself_alone() -> None:
    """With windows in all layers, a changed patch changes its own window's features and no other's."""
    local = tower()
    local.spec = replace(SPEC, full_layers=())
    grids = [(6, 10)]
    pixels = torch.randn(60, SPEC.row_width)
    changed = pixels.clone()
    changed[0] += 1.0
    with torch.no_grad():
        moved = (local(pixels, grids) - local(changed, grids)).abs().amax(dim=(1, 2)) > 0
    places = qwen_vl.coordinates(grids[0], MERGE, torch.device("cpu")) // (MERGE * SIDE)
    assert torch.equal(moved, (places == places[0]).all(dim=1)) and moved.sum() == 16
