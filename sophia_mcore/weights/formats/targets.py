"""Plans a new checkpoint: its files, their headers, and the place of every tile of our tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from sophia_mcore.errors import SophiaError
from sophia_mcore.pretrained.complete import INDEX_NAME
from sophia_mcore.pretrained.family import Spelling
from sophia_mcore.pretrained.spec import Layout, ModelSpec
from sophia_mcore.weights.formats.safetensors import NewTensor, header_bytes, index_text, plan_files
from sophia_mcore.weights.formats.tiles import Tiled, entry_tiles
from sophia_mcore.weights.tables import resolve, spelled

# Bytes of a new file that do not come from tensors, such as its header: (offset, bytes).
Literal = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be created: its size in bytes, and the bytes that do not come from tensors."""

    path: Path
    size: int
    literals: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A checkpoint to be written. ``tensors``: our tensors by canonical name, with their places in the files."""

    layout: str
    files: tuple[NewFile, ...]
    tensors: dict[str, Tiled]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def check_complete(tensors: Mapping[str, Tiled], source: Mapping[str, Tiled]) -> None:
    """Raise SophiaError unless both sides have the same tensors of the same shapes, each covered exactly once."""
    if set(tensors) != set(source):
        raise SophiaError(f"source and target differ in tensors: {sorted(set(tensors) ^ set(source))}")
    for tensor in tensors.values():
        tensor.check_covered()


def plan_hf(
    spec: ModelSpec,
    layout: Layout,
    dtypes: Mapping[str, str],
    folder: Path,
    max_file_bytes: int,
    apart: Collection[str] = (),
    spelling: Spelling | None = None,
) -> Target:
    """Plan a Hugging Face folder. ``dtypes``: canonical name -> dtype, in the order of the network.

    Tensors are stored in the order of the tables, which is that of the network, so a file holds consecutive layers.
    ``apart``: canonical names of tensors that get their own files, after the others. ``spelling`` None: the family's
    first spelling.
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
