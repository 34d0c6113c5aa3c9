"""conversion.json: what every tensor was made of, by which operation, and the sha256 of both sides."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import sophia_mcore
from sophia_mcore.weights.checkpoint import Checkpoint
from sophia_mcore.weights.copying import Digests
from sophia_mcore.weights.targets import Target
from sophia_mcore.weights.tiles import Tiled

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
