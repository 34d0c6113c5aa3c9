"""What all sections of the configuration share: strictness and bounded numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, no silent coercion of strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
