"""Vision towers and projectors, a file for each family; a model's own is chosen here by the type of its spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sophia_mcore.errors import UsageError
from sophia_mcore.model.images import Grid, Pixels
from sophia_mcore.model.vision import internvl, qwen_vl
from sophia_mcore.pretrained.internvl.spec import VisionSpec
from sophia_mcore.pretrained.qwen_vl.spec import DeepVisionSpec, WindowVisionSpec
from sophia_mcore.pretrained.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class TowerKind:
    """How a family's tower and projector are made. Parameters are allocated, not initialised.

    The tower takes rows of pixels [T, *row_shape] and the pictures' grids, and gives [T, ...]; the projector turns that
    into the features of image tokens, [..., H]: of one token L levels (`Family.levels`), the next token's, and so on.
    """

    build: Callable[[Any, Any, torch.dtype, torch.device | None, bool], tuple[nn.Module, nn.Module]]
    blank: Callable[[Any], Pixels]  # the smallest image
    tokens: Callable[[Any, Any, int], int]  # (vision, projector, rows of pixels of a picture) -> its image tokens
    # (tower, projector, pixels, grids) -> what a reference file holds of them, by its names
    stages: Callable[[Any, Any, Tensor, Sequence[Grid]], Mapping[str, Tensor]]


_QWEN = TowerKind(qwen_vl.build, qwen_vl.blank, qwen_vl.tokens, qwen_vl.stages)
KINDS: Mapping[type, TowerKind] = {
    VisionSpec: TowerKind(internvl.build, internvl.blank, internvl.tokens, internvl.stages),
    WindowVisionSpec: _QWEN,
    DeepVisionSpec: _QWEN,
}


def kind_of(spec: ModelSpec) -> TowerKind:
    """The kind of a model's tower. Raises UsageError for a model without one."""
    if spec.vision is None:
        raise UsageError("the batch has images, but the model has no vision tower")
    return KINDS[type(spec.vision)]
