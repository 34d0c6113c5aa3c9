"""Rotary angles by token, from positions with three axes (M-RoPE)."""

from __future__ import annotations

import torch
from torch import Tensor

from sophia_mcore.pretrained.language import LanguageSpec


def mrope_angles(position_ids: Tensor, spec: LanguageSpec) -> Tensor:
    """[3, b, S] positions (time, height, width) -> [S, b, 1, d] angles in fp32, the second half as the first."""
    if spec.mrope is None:
        raise ValueError("the model has one position per token")
    device = position_ids.device
    inverse = spec.rope_theta ** (-torch.arange(0, spec.head_dim, 2, device=device).float() / spec.head_dim)
    axes = torch.tensor(spec.mrope.axes(), device=device)
    half = position_ids.float().index_select(0, axes).permute(2, 1, 0) * inverse  # [S, b, d/2]
    return torch.cat((half, half), dim=-1)[:, :, None]
