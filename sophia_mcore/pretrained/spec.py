"""The specification of a model, from its Hugging Face config.json: sizes and conventions, without tensors and ranks.

>>> spec = ModelSpec.from_model_dir("models/InternVL3-8B")          # doctest: +SKIP
>>> spec.language.num_layers, spec.levels                               # doctest: +SKIP
(28, 1)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sophia_mcore.errors import UsageError
from sophia_mcore.pretrained.families import FAMILIES, family_of, refusal
from sophia_mcore.pretrained.family import Family, Layout, Parts, ProjectorSizes, TowerSizes
from sophia_mcore.pretrained.fields import Fields, nearest
from sophia_mcore.pretrained.language import LANGUAGE_MODELS, LanguageSpec, parse_language
from sophia_mcore.pretrained.special_tokens import TOKENIZER_FILES, id_of_token

__all__ = ["LanguageSpec", "Layout", "ModelSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The spec of a vision-language model of one of the families, or of a text model (vision and projector None)."""

    vision: TowerSizes | None  # the family's own dataclass
    projector: ProjectorSizes | None
    language: LanguageSpec
    layout: Layout
    image_token_id: int | None  # None: neither config.json nor the tokenizer files give it

    @property
    def family(self) -> Family | None:
        """The family of the tower; None for a text model."""
        return next((family for family in FAMILIES if isinstance(self.vision, family.vision_type)), None)

    @property
    def levels(self) -> int:
        """Features of an image token: 1 + number of DeepStack layers, whose features are added to the first layers."""
        return 1 if self.family is None else self.family.levels(self.vision)

    @property
    def parts(self) -> Parts:
        """The parts of the spec, as a family's functions take them."""
        return Parts(
            vision=self.vision, projector=self.projector, language=self.language, image_token_id=self.image_token_id
        )

    @classmethod
    def from_model_dir(cls, model_dir: str | Path) -> ModelSpec:
        """Read `config.json` (and the tokenizer's added tokens, for the image token).

        Raises:
            UsageError: no config.json, an unknown architecture, or a setting that is not supported.
        """
        folder = Path(model_dir)
        file = folder / "config.json"
        try:
            config = json.loads(file.read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{folder}: no config.json; is this a Hugging Face model folder?") from None
        except OSError as error:
            raise UsageError(f"{file}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{file}: not JSON ({error})") from None
        spec = cls.from_config(config, where=str(file))
        if spec.vision is None or spec.image_token_id is not None:
            return spec
        found = family_of(config)
        return replace(spec, image_token_id=id_of_token(folder, found[0].image_token) if found else None)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> ModelSpec:
        """The spec of a parsed config.json. `where`: its name in errors.

        Raises:
            UsageError: as in `from_model_dir`, or values of a wrong type.
        """
        if not isinstance(config, Mapping):
            raise UsageError(f"{where}: a JSON object is expected, not {type(config).__name__}")
        try:
            return cls._parsed(config, where)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UsageError(f"{where}: a value is of a wrong kind ({error})") from error

    @classmethod
    def _parsed(cls, config: Mapping[str, Any], where: str) -> ModelSpec:
        architecture = (config.get("architectures") or ["none"])[0]
        fields = Fields(config, where)
        if architecture in LANGUAGE_MODELS:
            text_layout: Layout = "hf-custom" if LANGUAGE_MODELS[architecture] == "internlm2" else "hf"
            language = parse_language(fields)
            return cls(vision=None, projector=None, language=language, layout=text_layout, image_token_id=None)
        if why := refusal(config):
            raise UsageError(f"{where}: {why}")
        known = {name: None for family in FAMILIES for name in family.architectures}
        found = family_of(config)
        if found is None or architecture not in known:
            code = " (it brings code of its own in auto_map, which is never run)" if config.get("auto_map") else ""
            raise UsageError(
                f"{where}: architecture {architecture!r} is not known{code}; "
                f"{nearest(architecture, known | LANGUAGE_MODELS)}"
            )
        family, layout = found
        parts = family.parse(Fields(_with_one_tie_flag(config, family.language_sections, where), where), layout)
        return cls(
            vision=parts.vision,
            projector=parts.projector,
            language=parts.language,
            layout=layout,
            image_token_id=parts.image_token_id,
        )


def require_image_token(folder: Path, spec: ModelSpec) -> None:
    """Raise UsageError if neither config.json nor the tokenizer of a model with a tower gives the image token's id, or
    if they give two.

    A folder without a tokenizer passes: what is missing then is the tokenizer.
    """
    tokenizer = next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
    if spec.family is None or tokenizer is None:
        return
    token, stated = spec.family.image_token, spec.image_token_id
    if stated is None:
        raise UsageError(
            f"{folder / 'config.json'}: the id of the image token is missing, and no tokenizer file of the folder has "
            f"{token}; is this the tokenizer of another model?"
        )
    own = id_of_token(folder, token)
    if own not in (None, stated):
        raise UsageError(
            f"{folder / 'config.json'}: the id of the image token is {stated}, but that of {token} in the tokenizer "
            f"is {own}"
        )


def _with_one_tie_flag(config: Mapping[str, Any], sections: Sequence[str], where: str) -> dict[str, Any]:
    """A copy of the config with ``tie_word_embeddings`` in its language section.

    transformers 5 reads the flag at the top level, older versions that of the section. Raises UsageError if the two
    differ.
    """
    key, merged = "tie_word_embeddings", dict(config)
    for name in sections:
        section = config.get(name)
        if not isinstance(section, Mapping) or config.get(key) is None:
            continue
        if section.get(key) is not None and bool(section[key]) != bool(config[key]):
            raise UsageError(
                f"{where}: {key} is {config[key]} at the top and {section[key]} in {name}: "
                "give both the value that the weights have (false where an output matrix is stored)"
            )
        merged[name] = {**section, key: config[key]}
    return merged
