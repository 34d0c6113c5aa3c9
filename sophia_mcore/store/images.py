"""A store of images, addressed by the sha256 of their bytes. Many images share a Parquet file; reads are single."""

from __future__ import annotations

import bisect
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sophia_mcore.errors import SophiaError
from sophia_mcore.store import atomic

_SCHEMA = pa.schema([pa.field("digest", pa.string(), nullable=False), pa.field("bytes", pa.binary(), nullable=False)])
_SHARD_BYTES = 256 << 20
_SHARD_IMAGES = 8192
_GROUP_BYTES = 1 << 20  # a read decodes one row group; small groups make reading one image cheap
_GROUP_IMAGES = 32
_CACHED_GROUPS = 8


class ImageStore:
    """A folder of image shards. Adding an image twice stores it once; its bytes are stored unchanged.

    Several processes may read and add at the same time. ``get`` checks the bytes against their digest.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._files: list[Path] = []
        self._known: set[str] = set()  # names of the shards in the index
        self._place: dict[str, tuple[int, int]] = {}  # digest -> file, row in the file
        self._open: dict[int, tuple[pq.ParquetFile, list[int]]] = {}  # file -> reader, first row of each group
        self._groups: OrderedDict[tuple[int, int], pa.Array] = OrderedDict()
        self._lock = threading.Lock()
        self._refresh()

    def __contains__(self, digest: str) -> bool:
        return digest in self._place or (self._refresh() and digest in self._place)

    def __len__(self) -> int:
        return len(self._place)

    def get(self, digest: str) -> bytes:
        """Bytes of the image. Raises SophiaError when it is not stored or its bytes are damaged."""
        if digest not in self:
            raise SophiaError(f"no image {digest} in {self.folder}")
        file, row = self._place[digest]
        try:
            with self._lock:
                value = self._read(file, row)
        except (OSError, pa.ArrowException) as error:
            raise SophiaError(f"cannot read image {digest[:16]} in {self._files[file]}: damaged ({error})") from error
        if hashlib.sha256(value).hexdigest() != digest:
            raise SophiaError(f"image {digest[:16]} in {self._files[file]} is damaged: its digest does not match")
        return value

    def add_many(self, images: Iterable[bytes]) -> list[str]:
        """Store images; returns their digests in order. Raises SophiaError when they cannot be written.

        Each call closes its last shard, so pass all images of a set in one call (a generator is fine).
        """
        digests = []
        with self.adding() as adder:
            for image in images:
                digests.append(adder.add(image))
        return digests

    @contextmanager
    def adding(self) -> Iterator[ImageAdder]:
        """``with store.adding() as adder: digest = adder.add(data)``. All images are stored when the body ends."""
        adder = ImageAdder(self)
        yield adder
        adder.flush()

    def _read(self, file: int, row: int) -> bytes:
        if file not in self._open:
            reader = pq.ParquetFile(self._files[file], memory_map=True)
            counts = [reader.metadata.row_group(i).num_rows for i in range(reader.num_row_groups)]
            self._open[file] = reader, [sum(counts[:i]) for i in range(len(counts))]
        reader, starts = self._open[file]
        group = bisect.bisect_right(starts, row) - 1
        values = self._groups.get((file, group))
        if values is None:
            table = reader.read_row_group(group, columns=["bytes"], use_threads=False)
            values = self._groups[file, group] = table.column("bytes").combine_chunks()
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((file, group))
        return values[row - starts[group]].as_py()

    def _refresh(self) -> bool:
        """Index the shards that are new since the last call; returns whether there were any. Reads only digests."""
        with self._lock:
            new = sorted(p for p in self.folder.glob("*.parquet") if p.name[0] != "." and p.name not in self._known)
            for path in new:
                try:
                    with pq.ParquetFile(path) as file:  # pq.read_table would import pandas
                        digests = file.read(columns=["digest"], use_threads=False).column("digest").to_pylist()
                except (OSError, pa.ArrowException) as error:
                    reason = str(error).splitlines()[0]
                    raise SophiaError(f"cannot read image shard {path}: damaged or unreadable ({reason})") from error
                self._known.add(path.name)
                self._files.append(path)
                for row, digest in enumerate(digests):
                    self._place.setdefault(digest, (len(self._files) - 1, row))
        return bool(new)


class ImageAdder:
    """Collects images and writes them as shards; made by ``ImageStore.adding``."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._pending: dict[str, bytes] = {}
        self._bytes = 0

    def add(self, image: bytes) -> str:
        """Take an image to be stored, unless it is stored already; returns its digest."""
        digest = hashlib.sha256(image).hexdigest()
        if digest not in self._pending and digest not in self._store._place:
            self._pending[digest] = image
            self._bytes += len(image)
            if self._bytes >= _SHARD_BYTES or len(self._pending) >= _SHARD_IMAGES:
                self.flush()
        return digest

    def flush(self) -> None:
        """Write the pending images as one shard, named by a hash of its content: equal images give equal files."""
        if not self._pending:
            return
        name = hashlib.sha256("\n".join(self._pending).encode()).hexdigest()[:32]
        path = self._store.folder / f"{name}.parquet"
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        with (
            suppress(FileExistsError),
            atomic.creating(path) as file,
            pq.ParquetWriter(file, _SCHEMA, **options) as writer,
        ):
            for group in _row_groups(self._pending):
                writer.write_table(pa.table(group, schema=_SCHEMA))
        self._pending, self._bytes = {}, 0
        self._store._refresh()


def _row_groups(images: dict[str, bytes]) -> Iterator[dict[str, list]]:
    digests: list[str] = []
    size = 0
    for digest, data in images.items():
        digests.append(digest)
        size += len(data)
        if size >= _GROUP_BYTES or len(digests) >= _GROUP_IMAGES:
            yield {"digest": digests, "bytes": [images[d] for d in digests]}
            digests, size = [], 0
    if digests:
        yield {"digest": digests, "bytes": [images[d] for d in digests]}
