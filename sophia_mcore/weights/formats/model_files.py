"""Copies or translates the files beside the weights: configuration, tokenizer, preprocessor, chat template."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.families import language_sections
from sophia_mcore.pretrained.spec import Layout, ModelSpec
from sophia_mcore.store.atomic import write_failed, write_json
from sophia_mcore.store.json_files import read_json
from sophia_mcore.store.layout import CHECKPOINT, CONVERSION
from sophia_mcore.weights.formats.torch_dist import MCORE_CONFIG_NAME, METADATA_NAME

# Files that are not copied: weights of any format, and files about a conversion or a training run.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".distcp", ".gguf", ".h5", ".msgpack", ".onnx")
_SETTINGS = ("config.json", "preprocessor_config.json", "tokenizer_config.json")  # these differ between layouts
DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
NOT_COPIED = (CONVERSION, CHECKPOINT, MCORE_CONFIG_NAME, METADATA_NAME)


def copy_model_files(source: Path, target: Path, *, code: bool = True, skip: tuple[str, ...] = ()) -> list[str]:
    """Copy configuration, tokenizer, preprocessor, chat template and similar files; returns their names.

    ``code`` False: do not copy the model's own Python files, which do not fit another layout. ``skip``: further names
    that are not copied.
    """
    copied = []
    for file in sorted(source.iterdir()):
        weights = file.name.endswith((*WEIGHT_SUFFIXES, ".index.json"))
        weights = weights or (file.suffix == ".py" and not code)
        if weights or file.name in (*NOT_COPIED, *skip) or file.name.startswith(".") or not file.is_file():
            continue
        try:
            shutil.copyfile(file, target / file.name)
        except OSError as error:
            raise write_failed(target / file.name, error) from error
        copied.append(file.name)
    return copied


def write_settings(
    spec: ModelSpec, model_dir: Path, folder: Path, to: str, dtype: str | None = None, *, skip: tuple[str, ...] = ()
) -> None:
    """Write configuration, tokenizer and similar files of ``model_dir`` into ``folder``, translated to layout ``to``.

    ``dtype``, if given, is written into the configuration. ``skip``: names that are not copied. Raises SophiaError if a
    translation changed the network.
    """
    same = to in ("megatron", spec.layout)
    copy_model_files(model_dir, folder, code=same, skip=skip)
    config = read_json(folder / "config.json") or {}
    if dtype is not None:
        config = with_dtype(config, dtype)
        write_json(folder / "config.json", config)
    if same:
        return
    if spec.family is None:
        raise ValueError("only vision-language models have two layouts")
    files = {name: settings for name in _SETTINGS if (settings := read_json(folder / name)) is not None}
    for name, settings in spec.family.translate(files, spec.parts, cast("Layout", to)).items():
        write_json(folder / name, settings)
    _check_same_model(spec, folder)


def dtype_warnings(folder: Path, dtypes: Mapping[str, str]) -> tuple[str, ...]:
    """A warning if tensors (name -> dtype) have another dtype than config.json says, since loaders would cast them."""
    config = read_json(folder / "config.json") or {}
    named = (s.get(key) for s in (config, *language_sections(config)) for key in ("dtype", "torch_dtype"))
    wanted = next((name for name in named if name in DTYPE_NAMES.values()), None)
    others = [dtype for dtype in dtypes.values() if DTYPE_NAMES.get(dtype) != wanted]
    if wanted is None or not others:
        return ()
    kinds = ", ".join(sorted(set(others)))
    return (f"{len(others)} of {len(dtypes)} tensors are {kinds}, but config.json says {wanted}: transformers and vLLM "
            "would cast them on loading (--dtype casts them here)",)  # fmt: skip


def _check_same_model(spec: ModelSpec, folder: Path) -> None:
    """Raise SophiaError if the translated configuration in ``folder`` describes another network than ``spec``."""
    found = ModelSpec.from_model_dir(folder)
    family = {"internlm2": "llama"}
    for part in ("vision", "projector", "language"):
        old, new = (asdict(getattr(s, part)) for s in (spec, found))
        old["family"], new["family"] = (family.get(s.language.family, s.language.family) for s in (spec, found))
        if wrong := [f"{part}.{key} {old[key]!r} became {new[key]!r}" for key in old if old[key] != new[key]]:
            raise SophiaError(f"{folder}: the translated configuration describes another model: {', '.join(wrong)}")


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A copy of the configuration with ``dtype`` in all fields that name the dtype."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            value = DTYPE_NAMES[dtype]
        changed[key] = with_dtype(value, dtype) if isinstance(value, Mapping) else value
    return changed
