"""Where a round's result comes from, link by link: evaluation <- export <- checkpoint <- kept <- verdicts <- captions.

Every link is named by content: hashes of shards, digests of models, the proof of the conversion. Pure reading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sophia_mcore.errors import SophiaError
from sophia_mcore.phase import Phase
from sophia_mcore.store.json_files import json_or_empty
from sophia_mcore.store.layout import CONVERSION, RunFolder, checkpoint_steps
from sophia_mcore.store.shards import read_metadata, shard_files

LINEAGE = "lineage.json"  # the links as an artifact of an MLflow run
_SAID = ("model_digest", "prompt_template", "verifier_version", "fingerprint")  # of a shard's own metadata


def lineage_of(run: RunFolder, index: int, phases: Sequence[Phase]) -> dict[str, Any]:
    """The links of a round that exist so far, last first; a damaged shard is named instead of hashed.

    They are the ``outputs`` of the phases; a name such as "evaluation:base/paper" is a link inside of "evaluation". The
    last is "fork", in a run that was begun as a variant of another.
    """
    links: dict[str, Any] = {}
    for phase in reversed(phases):
        for name, path in reversed(phase.outputs(run, index).items()):
            link, (group, _, part) = _link(path), name.partition(":")
            if link and part:
                links.setdefault(group, {})[part] = link
            elif link:
                links[group] = link
    origin = json_or_empty(run.fork_file)
    if origin:
        shared = ", ".join(map(str, origin.get("shared", [])))
        links["fork"] = {"of": origin.get("path", ""), "uid": origin.get("uid", ""), "shared": shared}
    return links


def _link(path: Path) -> dict[str, Any]:
    """What is there: an export with its proof, checkpoints, or shards; {} when nothing is."""
    if path.is_file():
        return shards_link([path])
    if not path.is_dir():
        return {}
    return export_link(path / CONVERSION) or _checkpoint(path) or shards_link(shard_files(path))


def tags_of(lineage: dict[str, Any]) -> dict[str, str]:
    """The lineage as flat tags: "lineage.captions.sha256" -> hash."""
    found: dict[str, str] = {}

    def visit(prefix: str, tree: Any) -> None:
        if isinstance(tree, dict):
            for name, child in tree.items():
                visit(f"{prefix}.{name}", child)
        else:
            found[prefix] = str(tree)

    visit("lineage", lineage)
    return found


def shards_link(paths: Iterable[Path]) -> dict[str, Any]:
    """A link to shards: their number, one hash over their content hashes, and what they say about their origin."""
    hashes, count = hashlib.sha256(), 0
    said: dict[str, str] = {}
    for path in paths:
        if not path.is_file():
            continue
        count += 1
        try:
            metadata = read_metadata(path)
        except SophiaError as error:
            return {"damaged": str(error)}
        hashes.update(f"{path.name} {metadata['sha256']}\n".encode())
        said |= {name: metadata["metadata"][name] for name in _SAID if name in metadata["metadata"]}
    return {"shards": count, "sha256": hashes.hexdigest(), **said} if count else {}


def export_link(proof: Path) -> dict[str, Any]:
    """What the proof of a conversion says; {} where there is none."""
    try:
        content = proof.read_bytes()
        value = json.loads(content)
        return {
            "conversion_sha256": hashlib.sha256(content).hexdigest(),
            "from_checkpoint": value["source"]["folder"],
            "proof": "every tensor read back" if value["verified"] else "digests of every tensor, not read back",
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _checkpoint(folder: Path) -> dict[str, Any]:
    checkpoints = list(checkpoint_steps(folder).values())
    if not checkpoints:
        return {}
    files = sorted(path for path in checkpoints[-1].rglob("*") if path.is_file())
    listing = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path in files)
    return {"name": checkpoints[-1].name, "listing_sha256": hashlib.sha256(listing.encode()).hexdigest()}
