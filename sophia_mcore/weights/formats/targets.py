"""Plans of new checkpoints: which files, what stands in their headers, and where every tile of our tensors will lie."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.family import Spelling
from sophia_mcore.pretrained.spec import ModelSpec
from sophia_mcore.weights.formats.safetensors import INDEX_NAME, NewTensor, header_bytes, index_text, plan_files
from sophia_mcore.weights.formats.tiles import Tiled, entry_tiles
from sophia_mcore.weights.tables import HfLayout, resolve, spelled

# Keys and headers that are literal bytes of a new file: (offset, bytes).
Literal = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be made: its size and the bytes that do not come from tensors."""

    path: Path
    size: int
    literals: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A checkpoint to be made."""

    layout: str
    files: tuple[NewFile, ...]
    tensors: dict[str, Tiled]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def check_complete(tensors: Mapping[str, Tiled], source: Mapping[str, Tiled]) -> None:
    """Raise SophiaError unless both sides have the same tensors of the same shapes, each made exactly once."""
    if set(tensors) != set(source):
        raise SophiaError(f"source and target differ in tensors: {sorted(set(tensors) ^ set(source))}")
    for tensor in tensors.values():
        tensor.check_covered()


def plan_hf(
    spec: ModelSpec,
    layout: HfLayout,
    dtypes: Mapping[str, str],
    folder: Path,
    max_file_bytes: int,
    apart: Collection[str] = (),
    spelling: Spelling | None = None,
) -> Target:
    """A Hugging Face folder; ``dtypes`` gives each of our tensors' dtype, in the order of the network.

    Tensors lie in the files in the order of the tables (the network's), so a shard is a run of layers. Those that
    ``apart`` names (ours) lie in files of their own, at the end. ``spelling`` None: the family's first.
    """
    entries = resolve(spec, layout)
    if spelling is None:
        spelling = spec.family.spellings[0] if spec.family is not None and layout == "hf" else ()
    sides = [[entry for entry in entries if (entry.name in apart) is side] for side in (False, True)]
    new = [
        {s.name: NewTensor(spelled(s.name, spelling), dtypes[e.name], s.shape) for e in side for s in e.sources}
        for side in sides
    ]
    shards = plan_files([list(tensors.values()) for tensors in new], max_file_bytes)
    places: dict[str, tuple[str, Path, int]] = {}
    files = []
    for name, tensors in shards:
        header = header_bytes(tensors, {"format": "pt"})
        offset = len(header)
        for tensor in tensors:
            places[tensor.name] = (tensor.name, folder / name, offset)
            offset += tensor.nbytes
        files.append(NewFile(folder / name, offset, ((0, header),)))
    if len(shards) > 1:
        text = index_text(shards).encode()
        files.append(NewFile(folder / INDEX_NAME, len(text), ((0, text),)))

    def place(name: str) -> tuple[str, Path, int]:
        return places[spelled(name, spelling)]

    tiled = {e.name: entry_tiles(e, dtypes[e.name], place) for e in entries}
    return Target(layout, tuple(files), tiled)
