"""The table of model families. This is the only place where the `model_type` of a model folder chooses one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sophia_mcore.config.schema import Batch
from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained import internvl, qwen_vl
from sophia_mcore.pretrained.family import Family, ImageLimits, ImageProcessor, ImageSize, Layout
from sophia_mcore.store.json_files import read_json

FAMILIES: tuple[Family, ...] = (internvl.FAMILY, *qwen_vl.FAMILIES)


def family_of(config: Mapping[str, Any]) -> tuple[Family, Layout] | None:
    """(family, layout) by model_type, or else architecture, of a config.json. None: a text model, or unknown."""
    architecture = (config.get("architectures") or [None])[0]
    for key, value in (("model_types", config.get("model_type")), ("architectures", architecture)):
        for family in FAMILIES:
            layouts: Mapping[str, Layout] = getattr(family, key)
            if isinstance(value, str) and value in layouts:
                return family, layouts[value]
    return None


def language_sections(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The sections of a config.json that hold settings of the language model, in any family; [] if it is flat."""
    names = dict.fromkeys(name for family in FAMILIES for name in family.language_sections)
    return [section for name in names if isinstance(section := config.get(name), Mapping)]


def family_of_folder(model_dir: Path | str) -> tuple[Family, Layout] | None:
    """`family_of` a folder's config.json. Raises SophiaError if that is missing."""
    return family_of(config_of(Path(model_dir)))


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a model that is related to a family is not supported, by model_type or architecture; None: no such reason."""
    names = (config.get("model_type"), (config.get("architectures") or [None])[0])
    reasons = (family.refused.get(name) for family in FAMILIES for name in names if isinstance(name, str))
    return next((reason for reason in reasons if reason), None)


def image_processor(model_dir: Path | str, limits: ImageLimits) -> ImageProcessor:
    """The image processor of a model folder. If the run and the folder both have a limit, the lower one is used.

    Raises SophiaError when the model takes no images or its settings contradict each other.
    """
    folder = Path(model_dir)
    config = config_of(folder)
    found = family_of(config)
    if found is None:
        known = ", ".join(kind for family in FAMILIES for kind in family.model_types)
        kind = config.get("model_type")
        raise SophiaError(f"{folder / 'config.json'}: model_type {kind!r} takes no images; those that do: {known}")
    try:
        return found[0].image_processor(folder, config, limits)
    except (KeyError, TypeError, ValueError) as error:
        raise SophiaError(f"{folder / 'config.json'}: cannot read the image settings ({error!r})") from error


def check_images(model_dir: Path, batch: Batch) -> None:
    """Refuse a model whose image settings contradict it or the run's limits. Raises as `image_processor`."""
    if family_of_folder(model_dir) is not None:
        image_processor(model_dir, image_limits(batch))


def check_processor(model_dir: Path, limits: ImageLimits | None = None) -> None:
    """Refuse image settings that contradict the folder's model. A folder without such settings passes.

    ``limits``: the run's, if there is one. Raises as `image_processor`.
    """
    settings = ("preprocessor_config.json", "processor_config.json")
    if any((model_dir / name).is_file() for name in settings) and family_of_folder(model_dir) is not None:
        image_processor(model_dir, limits or ImageLimits())


def size_check(model_dir: Path, batch: Batch) -> Callable[[int, int], ImageSize] | None:
    """What a model makes of an image of a width and height; the function raises SophiaError if it cannot take it.

    None for a folder that is not there (the model of an endpoint), and for a text model. Raises as `image_processor`.
    """
    if not (model_dir / "config.json").is_file() or family_of_folder(model_dir) is None:
        return None
    return image_processor(model_dir, image_limits(batch)).size


def image_limits(batch: Batch) -> ImageLimits:
    """The limits of image sizes in a run's configuration."""
    return ImageLimits(max_tiles=batch.max_tiles, min_pixels=batch.min_pixels, max_pixels=batch.max_pixels)


def check_engine_layout(model_dir: Path | str) -> None:
    """Raise SophiaError for the layout of an original release, which needs its own code. Engines take transformers'."""
    found = family_of_folder(model_dir)
    if found is not None and found[1] != "hf":
        raise SophiaError(
            f"{model_dir} has the original {found[0].name} layout, which runs code of its own; convert it once: "
            f"sophia convert {model_dir} NEW_FOLDER --to hf"
        )


def config_of(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder. Raises SophiaError if it is missing."""
    config = read_json(folder / "config.json")
    if config is None:
        raise SophiaError(f"no config.json in {folder}")
    return config
