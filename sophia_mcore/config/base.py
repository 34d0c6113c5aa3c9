"""The base class of all sections of the configuration, and number types with limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _http_address(text: str) -> str:
    try:
        parts = urlsplit(text)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # invalid brackets or port
        known = False
    if not known:
        raise ValueError(f"{text!r} is not an address such as http://127.0.0.1:8000/v1")
    return text


HttpAddress = Annotated[str, AfterValidator(_http_address)]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    """Base class of all sections: frozen, refuses unknown keys, and does not convert strings to other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_empty_path(cls, given: Any) -> Any:
        """An empty text would be the working directory, which nobody means by it."""
        for name, value in given.items() if isinstance(given, Mapping) else ():
            kind = cls.model_fields[name].annotation if name in cls.model_fields else None
            if value == "" and Path in (kind, *get_args(kind)):
                raise ValueError(f"{name} is an empty path")
        return given
