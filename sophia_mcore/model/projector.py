"""Patch features to language tokens: pixel shuffle, LayerNorm, Linear, exact GELU, Linear."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sophia_mcore.model.vision import Linear
from sophia_mcore.pretrained.spec import ProjectorSpec


def pixel_shuffle(patches: Tensor, side: int) -> Tensor:
    """[T, R*R, C] -> [T, (R/s)*(R/s), s*s*C]: each s x s square of patches becomes one token.

    Token order is row-major; channels are (row in square, column in square, C). This is `ps_version` v2.
    """
    tiles, count, channels = patches.shape
    rows = round(count**0.5)
    squares = patches.view(tiles, rows // side, side, rows // side, side, channels)
    return squares.transpose(2, 3).reshape(tiles, (rows // side) ** 2, side * side * channels)


class Projector(nn.Module):
    """Parameters are allocated, not initialised: they come from a checkpoint."""

    def __init__(self, spec: ProjectorSpec, dtype: torch.dtype, device: torch.device | None = None) -> None:
        super().__init__()
        self.side = spec.shuffle
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        self.norm = nn.LayerNorm(spec.input_size, eps=spec.norm_eps, **factory)
        self.fc1 = Linear(spec.input_size, spec.output_size, **factory)
        self.fc2 = Linear(spec.output_size, spec.output_size, **factory)

    def forward(self, features: Tensor) -> Tensor:
        """[T, N+1, C] of the tower (class token first, dropped here) -> [T, N/s^2, H]."""
        return self.fc2(F.gelu(self.fc1(self.norm(pixel_shuffle(features[:, 1:], self.side)))))
