"""conversion.json: the source tensors and the operation of every converted tensor, and digests on both sides."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import sophia_mcore
from sophia_mcore.errors import SophiaError
from sophia_mcore.store.digests import Digest
from sophia_mcore.store.json_files import read_json
from sophia_mcore.store.layout import CONVERSION
from sophia_mcore.weights.formats.copying import Digests
from sophia_mcore.weights.formats.opening import Checkpoint
from sophia_mcore.weights.formats.targets import Target
from sophia_mcore.weights.formats.tiles import Tiled, raise_problems

FORMAT = 2  # format 1 had only the sha256 of stored tensors, under "sha256"
_PACKAGES = ("torch", "megatron-core", "safetensors", "transformers")


def proof(source: Checkpoint, target: Target, digests: Digests | None, verified: bool) -> dict[str, Any]:
    """The content of conversion.json.

    ``tensors``: one entry per tensor of ours, with the stored tensors that it was read from and written to, and the
    operation that joins them on each side. ``digests``: the algorithm and the digests of each side, or null. xxh3-128
    is of our tensors' bytes (row-major, so the same in every layout), sha256 of the stored tensors' bytes.
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
        "digests": digests and asdict(digests),
    }


def recorded(folder: Path) -> Digests | None:
    """The digests in the conversion.json of ``folder``; None if there is no such file or it has none.

    Raises SophiaError when the content of conversion.json is not valid.
    """
    file = folder / CONVERSION
    try:
        found = read_json(file)
        if found is None:
            return None
        if found["format"] == 1:
            given = {"algorithm": "sha256", **found["sha256"]}
        else:
            given = found["digests"] or {"algorithm": "sha256", "source": {}, "target": {}}
        if given["algorithm"] not in get_args(Digest):
            raise ValueError(f"unknown digest {given['algorithm']!r}")
        source, target = ({str(k): str(v) for k, v in given[side].items()} for side in ("source", "target"))
    except (SophiaError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SophiaError(f"{file} is not what a conversion writes ({error!r}); delete it to do without it") from None
    return Digests(given["algorithm"], source, target) if target else None


def require_recorded(folder: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raise SophiaError that names every tensor whose digest is not the recorded one."""
    problems = {"changed since": [key for key in found if found[key] != expected.get(key)],
                "no longer there": [key for key in expected if key not in found]}  # fmt: skip
    raise_problems(f"{folder} is not as its own {CONVERSION} describes it", problems)


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
    """Versions of this package, of Python, and of the packages that a conversion uses."""
    found = {"sophia_mcore": sophia_mcore.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
