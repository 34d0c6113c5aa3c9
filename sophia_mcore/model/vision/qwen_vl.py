"""The towers of Qwen2.5-VL and Qwen3-VL in plain torch, and the projectors (mergers) behind them.

The same on every tensor-parallel rank. Patches of all pictures stand one after another, in the order of the processor:
squares of m x m patches (one token each) row by row, inside a square row by row. Attention never leaves a picture.

Legend: P patches, C width, d size of a head, m patches per side of a token's square, K DeepStack layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sophia_mcore.model.images import Grid, Pixels, rows_of
from sophia_mcore.model.vision.layers import Linear, RMSNorm
from sophia_mcore.pretrained.qwen_vl.spec import (
    FRAMES,
    NORM_EPS,
    DeepVisionSpec,
    ProjectorSpec,
    VisionSpec,
    WindowVisionSpec,
)

ROTARY_BASE = 10_000.0


@dataclass(frozen=True, slots=True)
class Segments:
    """Patches that attend to each other: after `order` (None: as they stand) they are runs of these lengths."""

    order: Tensor | None
    lengths: tuple[int, ...]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[P, heads, d] each -> [P, heads, d]; runs of one length go through one product together."""
        if self.order is not None:
            query, key, value = (part[self.order] for part in (query, key, value))
        pieces, start = [], 0
        for length, count in _runs(self.lengths):
            stop = start + length * count
            # [count, length, heads, d] -> [count, heads, length, d]
            parts = (part[start:stop].unflatten(0, (count, length)).transpose(1, 2) for part in (query, key, value))
            pieces.append(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(0, 1))
            start = stop
        mixed = torch.cat(pieces)
        return mixed if self.order is None else torch.empty_like(mixed).index_copy(0, self.order, mixed)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the layers need of the pictures' shapes: rotary tables [P, 1, d/2] in fp32, and who attends to whom."""

    cosines: Tensor
    sines: Tensor
    whole: Segments  # pictures
    windows: Segments | None


class Attention(nn.Module):
    """Self-attention inside segments; `qkv` rows are [q; k; v]."""

    def __init__(self, spec: VisionSpec, factory: Mapping[str, Any]) -> None:
        super().__init__()
        self.heads = spec.num_attention_heads
        self.qkv = Linear(spec.hidden_size, 3 * spec.hidden_size, **factory)
        self.proj = Linear(spec.hidden_size, spec.hidden_size, **factory)

    def forward(self, x: Tensor, layout: Layout, segments: Segments) -> Tensor:
        """[P, C] -> [P, C]."""
        query, key, value = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        query, key = (rotate(part, layout.cosines, layout.sines) for part in (query, key))
        return self.proj(segments.attend(query, key, value).flatten(1))


class Mlp(nn.Module):
    """Gated with SiLU, where `fc1` rows are [gate; up], or plain with tanh's GELU."""

    def __init__(self, spec: VisionSpec, gated: bool, factory: Mapping[str, Any]) -> None:
        super().__init__()
        self.gated = gated
        self.fc1 = Linear(spec.hidden_size, spec.intermediate_size * (2 if gated else 1), **factory)
        self.fc2 = Linear(spec.intermediate_size, spec.hidden_size, **factory)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        gate, up = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * up)


class Layer(nn.Module):
    """x + attention(norm1 x), then x + mlp(norm2 x)."""

    def __init__(self, spec: VisionSpec, factory: Mapping[str, Any]) -> None:
        super().__init__()
        layer_norm = isinstance(spec, DeepVisionSpec)
        self.norm1 = _norm(spec.hidden_size, layer_norm, factory)
        self.attention = Attention(spec, factory)
        self.norm2 = _norm(spec.hidden_size, layer_norm, factory)
        self.mlp = Mlp(spec, not layer_norm, factory)

    def forward(self, x: Tensor, layout: Layout, segments: Segments) -> Tensor:
        """[P, C] -> [P, C]."""
        x = x + self.attention(self.norm1(x), layout, segments)
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(Linear):
    """A patch in its frames and colours to C channels; the weight is [C, colours, frames, p, p], as it is stored."""

    def __init__(self, spec: VisionSpec, bias: bool, factory: Mapping[str, Any]) -> None:
        super().__init__(1, 1, bias=False, **factory)
        shape = (spec.hidden_size, spec.num_channels, FRAMES, spec.patch_size, spec.patch_size)
        self.weight = nn.Parameter(torch.empty(shape, **factory))
        if bias:
            self.bias = nn.Parameter(torch.empty(spec.hidden_size, **factory))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class VisionTower(nn.Module):
    """Patches to patch features. Parameters are allocated, not initialised: they come from a checkpoint."""

    def __init__(
        self, spec: VisionSpec, dtype: torch.dtype, device: torch.device | None = None, recompute: bool = False
    ) -> None:
        super().__init__()
        self.spec, self.recompute = spec, recompute
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        self.patch_embedding = PatchEmbedding(spec, isinstance(spec, DeepVisionSpec), factory)
        if isinstance(spec, DeepVisionSpec):
            self.position_embedding = nn.Parameter(torch.empty(spec.positions_side**2, spec.hidden_size, **factory))
        self.layers = nn.ModuleList(Layer(spec, factory) for _ in range(spec.num_layers))

    def forward(self, pixel_values: Tensor, grids: Sequence[Grid]) -> Tensor:
        """[P, 3*2*p*p] -> [P, 1 + K, C]: the last layer's output, then those of the DeepStack layers."""
        deep = self.spec.deepstack if isinstance(self.spec, DeepVisionSpec) else ()
        last, kept = self.run(pixel_values, grids, deep)
        return torch.stack([last, *(kept[number] for number in deep)], dim=1)

    def run(
        self, pixel_values: Tensor, grids: Sequence[Grid], wanted: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The last layer's output [P, C], and those of the wanted layers."""
        x, layout, kept = self.embed(pixel_values, grids), self.layout(grids, pixel_values.device), {}
        for number, layer in enumerate(self.layers):
            full = not isinstance(self.spec, WindowVisionSpec) or number in self.spec.full_layers
            segments = layout.whole if full or layout.windows is None else layout.windows
            keep = not (self.recompute and torch.is_grad_enabled())
            x = layer(x, layout, segments) if keep else checkpoint(layer, x, layout, segments, use_reentrant=False)
            if number in wanted:
                kept[number] = x
        return x, kept

    def embed(self, pixel_values: Tensor, grids: Sequence[Grid]) -> Tensor:
        """[P, 3*2*p*p] -> [P, C]; Qwen3-VL adds its table of positions, interpolated to each grid.

        Raises:
            ValueError: rows of pixels of another size than the model's, or grids that do not divide into squares.
        """
        if pixel_values.shape[1:] != (self.spec.row_width,):
            raise ValueError(
                f"rows of pixels are {tuple(pixel_values.shape[1:])}, the vision tower takes ({self.spec.row_width},)"
            )
        if uneven := [grid for grid in grids if grid[0] % self.spec.merge or grid[1] % self.spec.merge]:
            raise ValueError(f"a picture of {uneven[0]} patches does not divide into squares of {self.spec.merge}")
        x = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        if not isinstance(self.spec, DeepVisionSpec):
            return x
        tables = [
            interpolated(self.position_embedding, self.spec.positions_side, grid, self.spec.merge) for grid in grids
        ]
        return x + torch.cat(tables).to(x.dtype)

    def layout(self, grids: Sequence[Grid], device: torch.device) -> Layout:
        """Tables and segments for these pictures."""
        spec = self.spec
        quarter = spec.hidden_size // spec.num_attention_heads // 4
        inverse = ROTARY_BASE ** (-torch.arange(quarter, device=device).float() / quarter)
        places = torch.cat([coordinates(grid, spec.merge, device) for grid in grids])  # [P, 2]
        angles = (places[..., None].float() * inverse).flatten(1)[:, None]  # [P, 1, d/2]
        windows = windows_of(grids, spec, device) if isinstance(spec, WindowVisionSpec) else None
        whole = Segments(None, tuple(rows_of(grid) for grid in grids))
        return Layout(angles.cos(), angles.sin(), whole, windows)


class Merger(nn.Module):
    """Norm (over one patch, or over the whole square), squares of patches as rows, Linear, exact GELU, Linear."""

    def __init__(self, spec: ProjectorSpec, whole: bool, factory: Mapping[str, Any]) -> None:
        super().__init__()
        self.wide = spec.input_size
        self.norm = _norm(spec.input_size if whole else spec.width, spec.layer_norm, factory)
        self.whole = whole
        self.fc1 = Linear(spec.input_size, spec.input_size, **factory)
        self.fc2 = Linear(spec.input_size, spec.output_size, **factory)

    def squares(self, features: Tensor) -> Tensor:
        """What the first linear reads: [P, C] -> [tokens, m*m*C]."""
        if self.whole:
            return self.norm(features.reshape(-1, self.wide))
        return self.norm(features).reshape(-1, self.wide)

    def forward(self, features: Tensor) -> Tensor:
        """[P, C] -> [tokens, H]."""
        return self.fc2(F.gelu(self.fc1(self.squares(features))))


class Projector(Merger):
    """The merger, and one for each DeepStack layer. Parameters are allocated: they come from a checkpoint."""

    def __init__(self, spec: ProjectorSpec, dtype: torch.dtype, device: torch.device | None = None) -> None:
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        super().__init__(spec, False, factory)
        self.deepstack = nn.ModuleList(Merger(spec, True, factory) for _ in range(spec.deep))

    def forward(self, features: Tensor) -> Tensor:
        """[P, 1 + K, C] of the tower -> [tokens, 1 + K, H]."""
        deep = [merger(features[:, 1 + number]) for number, merger in enumerate(self.deepstack)]
        return torch.stack([super().forward(features[:, 0]), *deep], dim=1)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """[P, heads, d] turned in fp32 by [P, 1, d/2]; channel i is paired with i + d/2."""
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1)
    return turned.to(x.dtype)


def coordinates(grid: Grid, merge: int, device: torch.device) -> Tensor:
    """[P, 2] row and column of each patch, in the order of the patches."""
    rows, columns = grid
    places = torch.stack(
        torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"), dim=-1
    )
    squares = places.view(rows // merge, merge, columns // merge, merge, 2)
    return squares.transpose(1, 2).reshape(-1, 2)


def windows_of(grids: Sequence[Grid], spec: WindowVisionSpec, device: torch.device) -> Segments:
    """Windows of all pictures, those of one size behind each other: nothing is padded."""
    names, before = [], 0
    for grid in grids:
        places = coordinates(grid, spec.merge, torch.device("cpu")) // (spec.merge * spec.window)
        across = -(-grid[1] // (spec.merge * spec.window))
        names.append(before + places[:, 0] * across + places[:, 1])
        before += -(-grid[0] // (spec.merge * spec.window)) * across
    window = torch.cat(names)
    counts = torch.bincount(window, minlength=before)
    order = torch.argsort(counts[window] * before + window, stable=True)
    return Segments(order.to(device), tuple(sorted(counts.tolist())))


def interpolated(table: Tensor, side: int, grid: Grid, merge: int) -> Tensor:
    """A square table [side * side, C] at the patches of a grid, [P, C] in fp32: bilinear, corners on corners."""
    device = table.device
    axes = [torch.linspace(0, side - 1, count, device=device) for count in grid]
    places = coordinates(grid, merge, device)
    (y, x) = (axis[places[:, number]] for number, axis in enumerate(axes))
    top, left = y.long(), x.long()
    bottom, right = (top + 1).clamp(max=side - 1), (left + 1).clamp(max=side - 1)
    down, along = (y - top)[:, None], (x - left)[:, None]
    corners = ((top, left, (1 - down) * (1 - along)), (top, right, (1 - down) * along),
               (bottom, left, down * (1 - along)), (bottom, right, down * along))  # fmt: skip
    parts = [table[row * side + column].float() * weight for row, column, weight in corners]
    return parts[0] + parts[1] + parts[2] + parts[3]


def build(
    vision: VisionSpec, projector: ProjectorSpec, dtype: torch.dtype, device: torch.device | None, recompute: bool
) -> tuple[nn.Module, nn.Module]:
    """Tower and projector."""
    return VisionTower(vision, dtype, device, recompute), Projector(projector, dtype, device)


def blank(vision: VisionSpec) -> Pixels:
    """The smallest image, for a row without images that must run the tower all the same: one token."""
    return Pixels(torch.zeros(vision.merge**2, vision.row_width), [(vision.merge, vision.merge)])


def tokens(vision: VisionSpec, projector: ProjectorSpec, rows: int) -> int:
    """Image tokens of a picture of so many patches."""
    return rows // vision.merge**2


@torch.no_grad()
def stages(vision: VisionTower, projector: Projector, pixel_values: Tensor, grids: Sequence[Grid]) -> dict[str, Tensor]:
    """What reference files hold of tower and projector, by their names."""
    last, kept = vision.run(pixel_values, grids, (0, 1))
    found = {
        "vit.hidden_states.0": vision.embed(pixel_values, grids),
        "vit.hidden_states.1": kept[0],
        "vit.hidden_states.2": kept[1],
        "vit.last_hidden_state": last,
        "projector.input": projector.squares(last),
    }
    features = projector(vision(pixel_values, grids))
    return found | {f"deepstack.{k}": features[:, 1 + k] for k in range(len(projector.deepstack))}


def _norm(width: int, layer_norm: bool, factory: Mapping[str, Any]) -> nn.Module:
    make: Callable[..., nn.Module] = partial(nn.LayerNorm, width, eps=NORM_EPS) if layer_norm else _rms(width)
    return make(**factory)


def _rms(width: int) -> Callable[..., nn.Module]:
    return partial(RMSNorm, width, NORM_EPS)


def _runs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(length, how many) of equal neighbours."""
    runs: list[tuple[int, int]] = []
    for length in lengths:
        if runs and runs[-1][0] == length:
            runs[-1] = (length, runs[-1][1] + 1)
        else:
            runs.append((length, 1))
    return runs
