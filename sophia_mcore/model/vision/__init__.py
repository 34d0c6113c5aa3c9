"""Vision towers and projectors, a file for each family; a model's own is chosen here by the type of its spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sophia_mcore.errors import UsageError
from sophia_mcore.model.vision import internvl
from sophia_mcore.pretrained.internvl.spec import VisionSpec
from sophia_mcore.pretrained.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class TowerKind:
    """How a family's tower and projector are made. Parameters are allocated, not initialised.

    The tower takes rows of pixels [T, *row_shape] and gives [T, ...] for each; the projector turns that into
    [T, n, H], the features of the row's n tokens.
    """

    build: Callable[[Any, Any, torch.dtype, torch.device | None, bool], tuple[nn.Module, nn.Module]]
    blank: Callable[[Any], Tensor]  # pixels of the smallest image


KINDS: Mapping[type, TowerKind] = {VisionSpec: TowerKind(internvl.build, internvl.blank)}


def kind_of(spec: ModelSpec) -> TowerKind:
    """The kind of a model's tower. Raises UsageError for a model without one."""
    if spec.vision is None:
        raise UsageError("the batch has images, but the model has no vision tower")
    return KINDS[type(spec.vision)]
