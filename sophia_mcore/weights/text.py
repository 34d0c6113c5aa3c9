"""Plain text models (the reasoners), which have no tower and no projector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sophia_mcore.model.spec import LanguageSpec, ModelSpec, _Fields, _language


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSpec:
    """A Qwen2, Qwen3 or Llama text model in transformers' layout."""

    language: LanguageSpec
    layout: Literal["hf"] = "hf"
    vision: None = None
    projector: None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> TextSpec:
        """Read a parsed config.json; ``where`` is named in errors. Raises UsageError for an unknown architecture."""
        return cls(language=_language(_Fields(config, where)))


Spec = ModelSpec | TextSpec
