"""Checks that a model folder is complete, before an engine starts: an engine would fail with pages of traceback."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.families import language_sections
from sophia_mcore.store.json_files import read_json, require_json

INDEX_NAME = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # limit of the format


def check_model_dir(model_dir: Path) -> None:
    """Raise SophiaError (one line: what and where) unless config, tokenizer and complete safetensors are there.

    Reads headers and file sizes only, so it takes milliseconds at any model size.
    """
    if not model_dir.is_dir():
        raise SophiaError(f"{model_dir}: no such model directory")
    require_json(model_dir / "config.json")
    if not (model_dir / "tokenizer.json").is_file():
        raise SophiaError(
            f"{model_dir}: no tokenizer.json (a fast tokenizer is needed: AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(...) writes one where the model has only a slow one)"
        )
    for shard in weight_files(model_dir):
        _check_complete(shard)


def weight_files(model_dir: Path) -> list[Path]:
    """The model's safetensors files; those of the index if there is one. Raises SophiaError if one is missing."""
    if (model_dir / INDEX_NAME).is_file():
        index = require_json(model_dir / INDEX_NAME)
        mapping = index.get("weight_map")
        if not isinstance(mapping, dict) or not mapping:
            raise SophiaError(f"{model_dir / INDEX_NAME}: no weight_map in it")
        names = sorted({str(name) for name in mapping.values()})
        strange = [name for name in names if Path(name).name != name]
        if strange:
            raise SophiaError(f"{model_dir / INDEX_NAME}: {strange[0]!r} is not the name of a file in the directory")
        missing = [name for name in names if not (model_dir / name).is_file()]
        if missing:
            raise SophiaError(f"{model_dir}: {len(missing)} of {len(names)} weight files missing, such as {missing[0]}")
        return [model_dir / name for name in names]
    files = sorted(model_dir.glob("*.safetensors"))
    if not files:
        other = sorted(path.name for path in model_dir.glob("*.bin")) + sorted(p.name for p in model_dir.glob("*.pt*"))
        hint = f" (found {other[0]}, but only safetensors are read)" if other else ""
        raise SophiaError(f"{model_dir}: no weights (*.safetensors) in it{hint}")
    return files


def _check_complete(path: Path) -> None:
    """Raise SophiaError unless the file is as long as its header says."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if 8 + length > size or length > MAX_HEADER_BYTES:
                raise SophiaError(f"{path}: truncated or not safetensors ({size:,} bytes, its header is cut off)")
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except OSError as error:
        raise SophiaError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise SophiaError(f"{path}: not safetensors (its header is damaged)") from None
    wanted = 8 + length + max(ends, default=0)
    if size != wanted:
        how = "truncated" if size < wanted else "damaged"
        raise SophiaError(f"{path}: {how} ({size:,} bytes where its header says {wanted:,}); copy or export it again")


def stop_token_ids(model_dir: Path, vocabulary: dict[str, int], end_of_turn: str = "") -> tuple[int, ...]:
    """Ids of the tokens that end an answer, sorted: those in generation_config.json, config.json and
    tokenizer_config.json, and the token ``end_of_turn`` with which the chat template ends a turn."""
    found: set[int] = set()
    configs: list[Mapping[str, Any]] = [require_json(model_dir / "config.json")]
    configs += language_sections(configs[0])
    if (model_dir / "generation_config.json").is_file():
        configs.append(require_json(model_dir / "generation_config.json"))
    for config in configs:
        value = config.get("eos_token_id")
        found.update(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))
    named = (read_json(model_dir / "tokenizer_config.json") or {}).get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    found.update(vocabulary[token] for token in (named, end_of_turn, "<|im_end|>") if token in vocabulary)
    return tuple(sorted(found))
