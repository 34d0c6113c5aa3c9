"""InternViT and the projector in plain torch: the same on every tensor-parallel rank, so 25 heads (6B) fit any layout.

Legend: T tiles, N patches of a tile, C width, S pixels per side. Conventions of the original code: no norm after the
last layer; query-key norms over the full width; layer scales multiply the branch output; exact GELU. The projector:
pixel shuffle, LayerNorm, Linear, exact GELU, Linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sophia_mcore.model.images import Grid, Pixels
from sophia_mcore.model.vision.layers import Linear, RMSNorm
from sophia_mcore.pretrained.internvl.spec import ProjectorSpec, VisionSpec, tokens_per_tile


class Patches(nn.Conv2d):
    """A convolution whose parameters are allocated, not initialised."""

    def reset_parameters(self) -> None:
        pass


class Attention(nn.Module):
    """Self-attention of all tokens of a tile; `qkv` rows are [q; k; v]."""

    def __init__(self, spec: VisionSpec, dtype: torch.dtype, device: torch.device | None) -> None:
        super().__init__()
        width = spec.hidden_size
        self.heads = spec.num_attention_heads
        self.qkv = Linear(width, 3 * width, bias=spec.qkv_bias, dtype=dtype, device=device)
        self.proj = Linear(width, width, dtype=dtype, device=device)
        self.q_norm = RMSNorm(width, spec.norm_eps, dtype, device) if spec.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width, spec.norm_eps, dtype, device) if spec.qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[T, N+1, C] -> [T, N+1, C]."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        query, key = self.q_norm(query), self.k_norm(key)
        heads = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)]
        mixed = F.scaled_dot_product_attention(*heads)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, spec: VisionSpec, dtype: torch.dtype, device: torch.device | None) -> None:
        super().__init__()
        self.fc1 = Linear(spec.hidden_size, spec.intermediate_size, dtype=dtype, device=device)
        self.fc2 = Linear(spec.intermediate_size, spec.hidden_size, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    """x + ls1 attention(norm1 x), then x + ls2 mlp(norm2 x)."""

    def __init__(self, spec: VisionSpec, dtype: torch.dtype, device: torch.device | None) -> None:
        super().__init__()
        self.norm1 = _norm(spec, dtype, device)
        self.attention = Attention(spec, dtype, device)
        self.ls1 = nn.Parameter(torch.empty(spec.hidden_size, dtype=dtype, device=device))
        self.norm2 = _norm(spec, dtype, device)
        self.mlp = Mlp(spec, dtype, device)
        self.ls2 = nn.Parameter(torch.empty(spec.hidden_size, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """[T, N+1, C] -> [T, N+1, C]."""
        x = x + self.attention(self.norm1(x)) * self.ls1
        return x + self.mlp(self.norm2(x)) * self.ls2


class VisionTower(nn.Module):
    """Tiles to patch features. Parameters are allocated, not initialised: they come from a checkpoint."""

    def __init__(
        self, spec: VisionSpec, dtype: torch.dtype, device: torch.device | None = None, recompute: bool = False
    ) -> None:
        super().__init__()
        self.spec, self.recompute = spec, recompute
        width = spec.hidden_size
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        self.class_token = nn.Parameter(torch.empty(1, 1, width, **factory))
        self.position_embedding = nn.Parameter(torch.empty(1, spec.patches + 1, width, **factory))
        self.patch_embedding = Patches(spec.num_channels, width, spec.patch_size, spec.patch_size, **factory)
        self.layers = nn.ModuleList(Layer(spec, dtype, device) for _ in range(spec.num_layers))

    def embed(self, pixel_values: Tensor) -> Tensor:
        """[T, 3, S, S] -> [T, N+1, C]: patch projections behind the class token, plus positions.

        Raises:
            ValueError: tiles of another size than the model's.
        """
        side = self.spec.image_size
        if pixel_values.shape[1:] != (self.spec.num_channels, side, side):
            wanted = (self.spec.num_channels, side, side)
            raise ValueError(f"tiles are {tuple(pixel_values.shape[1:])}, the vision tower takes {wanted}")
        patches = self.patch_embedding(pixel_values.to(self.class_token.dtype)).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.class_token.expand(len(patches), -1, -1), patches), dim=1)
        return tokens + self.position_embedding

    def forward(self, pixel_values: Tensor, grids: Sequence[Grid] = ()) -> Tensor:
        """[T, 3, S, S] -> [T, N+1, C], class token first; no norm after the last layer. Every tile is a picture."""
        x = self.embed(pixel_values)
        for layer in self.layers:
            keep = not (self.recompute and torch.is_grad_enabled())
            x = layer(x) if keep else checkpoint(layer, x, use_reentrant=False)
        return x


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
        return self.fc2(F.gelu(self.fc1(self.norm(self.squares(features)))))

    def squares(self, features: Tensor) -> Tensor:
        """What the norm reads: [T, N+1, C] -> [T, N/s^2, s*s*C]."""
        return pixel_shuffle(features[:, 1:], self.side)


def build(
    vision: VisionSpec, projector: ProjectorSpec, dtype: torch.dtype, device: torch.device | None, recompute: bool
) -> tuple[nn.Module, nn.Module]:
    """Tower and projector."""
    return VisionTower(vision, dtype, device, recompute), Projector(projector, dtype, device)


def blank(vision: VisionSpec) -> Pixels:
    """The smallest image, for a row without images that must run the tower all the same: one tile."""
    return Pixels(torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size), [(1, 1)])


def tokens(vision: VisionSpec, projector: ProjectorSpec, rows: int) -> int:
    """Image tokens of a picture of so many tiles."""
    return rows * tokens_per_tile(vision, projector)


@torch.no_grad()
def stages(vision: VisionTower, projector: Projector, pixel_values: Tensor, grids: Sequence[Grid]) -> dict[str, Tensor]:
    """What reference files hold of tower and projector, by their names."""
    embedded, seen = vision.embed(pixel_values), vision(pixel_values)
    return {
        "vit.hidden_states.0": embedded,
        "vit.hidden_states.1": vision.layers[0](embedded),
        "vit.last_hidden_state": seen,
        "projector.input": projector.squares(seen),
    }


def _norm(spec: VisionSpec, dtype: torch.dtype, device: torch.device | None) -> nn.Module:
    if spec.norm_type == "rms_norm":
        return RMSNorm(spec.hidden_size, spec.norm_eps, dtype, device)
    return nn.LayerNorm(spec.hidden_size, eps=spec.norm_eps, dtype=dtype, device=device)
