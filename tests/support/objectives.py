"""Objectives by name, with the options of the loss and of [objective] side by side."""

from __future__ import annotations

from typing import Any

from sophia_mcore.config.losses import LOSSES
from sophia_mcore.config.schema import Objective


def objective(name: str = "sophia", **options: Any) -> Objective:
    """``options`` go where they belong: to the loss if it has such a field, else to [objective]."""
    own = {key: options.pop(key) for key in list(options) if key in LOSSES[name].model_fields}
    return Objective.model_validate({"loss": {"name": name, **own}, **options})
