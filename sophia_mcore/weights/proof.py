"""conversion.json: what every tensor was made of, by which operation, and the sha256 of both sides."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sophia_mcore
from sophia_mcore.errors import SophiaError
from sophia_mcore.weights.checkpoint import Checkpoint
from sophia_mcore.weights.copying import Digests
from sophia_mcore.weights.formats.tiles import Tiled, raise_problems
from sophia_mcore.weights.targets import Target

NAME = "conversion.json"
FORMAT = 1
_PACKAGES = ("torch", "megatron-core", "safetensors", "transformers")


def proof(source: Checkpoint, target: Target, digests: Digests, verified: bool) -> dict[str, Any]:
    """The content of conversion.json.

    ``tensors``: one entry per tensor of ours: the stored tensors it was read from and written to, and the operation
    that joins them on each side. ``sha256``: of each stored tensor's bytes (row-major, as in the file), by its key.
    """
    return {
        "format": FORMAT,
        "source": {
            "folder": source.folder.name,
            "layout": source.layout,
            "files": {f.path.name: f.size for f in source.files},
        },
        "target": {"layout": target.layout, "files": {f.path.name: f.size for f in target.files}},
        "verified": verified,
        "versions": versions(),
        "tensors": [_entry(source.tensors[name], tensor) for name, tensor in target.tensors.items()],
        "sha256": {"source": dict(digests.source), "target": dict(digests.target)},
    }


def recorded(folder: Path) -> dict[str, str]:
    """sha256 by stored key that the conversion which made ``folder`` wrote down; empty if there is none.

    Raises SophiaError when conversion.json is there but is not what a conversion writes.
    """
    file = folder / NAME
    try:
        digests = json.loads(file.read_text())["sha256"]["target"]
        return {str(key): str(digest) for key, digest in digests.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SophiaError(f"{file} is not what a conversion writes ({error!r}); delete it to do without") from None


def require_recorded(folder: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raise SophiaError naming every stored tensor whose sha256 is not the recorded one."""
    problems = {"changed since": [key for key in found if found[key] != expected.get(key)],
                "no longer there": [key for key in expected if key not in found]}  # fmt: skip
    raise_problems(f"{folder} is not as its own {NAME} describes it", problems)


def _entry(old: Tiled, new: Tiled) -> dict[str, Any]:
    return {
        "name": old.name,
        "shape": list(new.shape),
        "source": {"keys": _keys(old), "operation": old.op, "dtype": old.dtype},
        "target": {"keys": _keys(new), "operation": new.op, "dtype": new.dtype},
    }


def _keys(tensor: Tiled) -> list[str]:
    return list(dict.fromkeys(tile.key for tile in tensor.tiles))


def versions() -> dict[str, str]:
    """Versions of this package, Python and the packages that take part."""
    found = {"sophia_mcore": sophia_mcore.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
