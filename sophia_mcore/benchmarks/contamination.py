"""Training questions that share their text or an image with a benchmark.

Four tests, from certain to likely: the same normalised question, with its options (without them where the training
question has none); half or more of its word 8-grams are the benchmark's, or of the benchmark's are in it (in Chinese,
every character is a word), so that instructions around a question do not hide it; the same image file; an image whose
64-bit difference hash is within 4 bits. Pictures with little content (a plain page) have hashes that agree by chance:
they are compared by file only.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sophia_mcore.data.columns import Row
from sophia_mcore.data.images import decode
from sophia_mcore.errors import SophiaError

GRAM = 8  # words
CONTAINED = 0.5  # share of the n-grams of one question that stand in the other
SHORTEST = 4  # words: shorter questions ("What is x?") are equal by chance and count only with their image
HASH_BITS = 4  # of 64 that may differ
_HASH_SIDE = 8
_FEWEST_EDGES = 8  # bits set and unset that a telling hash has
_BANDS = HASH_BITS + 1  # two hashes within HASH_BITS agree in at least one of so many bands
_OPTION = re.compile(
    r"[(（][a-j][)）]|(?:^|(?<=[\s:：;；,，]))(?:(?:choices?|options?)\s*[:：]|[a-j][)）.:：、])\s*", re.IGNORECASE
)
_WORD = re.compile(r"\d+(?:\.\d+)?|[\u3400-\u9fff]|[^\W\d_\u3400-\u9fff]+")  # Chinese has no spaces: characters
_IMAGE = re.compile(r"<image[ _]?\d*>|\(image(?: \d+)?\)", re.IGNORECASE)
_HINT = re.compile(r"^\s*hint:.*?\bquestion:\s*", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Match:
    """A training question and the benchmark question that it shares something with."""

    source: str
    row: int
    id: str
    benchmark: str
    benchmark_id: str
    reason: str  # "same text", "shared text", "same image", "similar image"
    share: float  # of n-grams, or of equal bits of the hash

    def __str__(self) -> str:
        return (
            f"{self.source} row {self.row} (id {self.id!r}): {self.reason} as {self.benchmark} {self.benchmark_id!r} "
            f"({100 * self.share:.0f}%)"
        )


def words(text: str) -> list[str]:
    r"""The words of a question as they are compared: lower case, without option letters, image marks and LaTeX signs.

    >>> words("Hint: pick.\nQuestion: Find $x$ in <image 1>.\n(A) 3\n(B) \\frac{1}{2}")
    ['find', 'x', 'in', '3', 'frac', '1', '2']
    >>> words("Is it red? A. yes B: no"), words("求x")
    (['is', 'it', 'red', 'yes', 'no'], ['求', 'x'])
    """
    text = _IMAGE.sub(" ", _OPTION.sub(" ", _HINT.sub("", text)))
    return _WORD.findall(text.casefold())


def _with_options(row: Row) -> list[str]:
    return words("\n".join([row.question, *row.options]))


def grams(tokens: Sequence[str]) -> set[tuple[str, ...]]:
    """All runs of ``GRAM`` words; a shorter question is one run."""
    return {tuple(tokens[i : i + GRAM]) for i in range(max(1, len(tokens) - GRAM + 1))} if tokens else set()


class Index:
    """Questions and images of benchmarks, for look-up by text, file and picture."""

    def __init__(self) -> None:
        self._texts: dict[tuple[str, ...], tuple[str, str]] = {}  # with their options
        self._alone: dict[tuple[str, ...], tuple[str, str]] = {}  # without
        self._grams: dict[tuple[str, ...], set[tuple[str, str]]] = defaultdict(set)
        self._counts: dict[tuple[str, str], int] = {}  # n-grams of each question
        self._files: dict[str, tuple[str, str]] = {}
        self._hashes: dict[tuple[int, int], list[tuple[int, tuple[str, str]]]] = defaultdict(list)

    def add(self, row: Row) -> None:
        """Take in a benchmark's question."""
        where = (row.benchmark or row.source, row.id)
        tokens, alone = _with_options(row), words(row.question)
        if len(tokens) >= SHORTEST:
            self._texts.setdefault(tuple(tokens), where)
            own = grams(alone)
            self._counts[where] = len(own)
            for gram in own:
                self._grams[gram].add(where)
        if len(alone) >= SHORTEST:
            self._alone.setdefault(tuple(alone), where)
        for data in _contents(row):
            self._files.setdefault(hashlib.sha256(data).hexdigest(), where)
            seen = difference_hash(data)
            for band in _bands(seen) if seen is not None else ():
                self._hashes[band].append((seen or 0, where))

    def matches(self, row: Row) -> Iterator[Match]:
        """What a training question shares with them: at most one match of text and one per image."""
        found = self._by_text(row)
        if found is not None:
            yield found
        for data in _contents(row):
            by_image = self._by_image(row, data)
            if by_image is not None:
                yield by_image

    def _by_text(self, row: Row) -> Match | None:
        alone = words(row.question)
        where = self._texts.get(tuple(_with_options(row)))
        if where is None and not row.options:  # the training question has been made an open one
            where = self._alone.get(tuple(alone))
        if where is not None:
            return _match(row, where, "same text", 1.0)
        own = grams(alone)
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for gram in own:
            if len(gram) == GRAM:
                for one in self._grams.get(gram, ()):
                    counts[one] += 1
        shares = {one: count / min(len(own), self._counts[one]) for one, count in counts.items()}
        best = max(shares, key=lambda one: shares[one], default=None)
        return None if best is None or shares[best] < CONTAINED else _match(row, best, "shared text", shares[best])

    def _by_image(self, row: Row, data: bytes) -> Match | None:
        where = self._files.get(hashlib.sha256(data).hexdigest())
        if where is not None:
            return _match(row, where, "same image", 1.0)
        seen = difference_hash(data)
        near = [(((seen or 0) ^ other).bit_count(), one) for band in _bands(seen) for other, one in self._hashes[band]]
        bits, where = min(near, default=(64, ("", "")))
        return _match(row, where, "similar image", 1 - bits / 64) if bits <= HASH_BITS else None


def _match(row: Row, where: tuple[str, str], reason: str, share: float) -> Match:
    return Match(row.source, row.number, row.id, *where, reason, share)


def _contents(row: Row) -> Iterator[bytes]:
    for image in row.images:
        if isinstance(image, Path):
            try:
                yield image.read_bytes()
            except OSError:
                continue  # the questions phase names it
        else:
            yield image


def difference_hash(data: bytes) -> int | None:
    """The 64-bit difference hash of an image; None for one that is damaged or has too little content to tell by."""
    import imagehash

    try:
        picture: Any = decode(data)
    except SophiaError:
        return None
    value = int(str(imagehash.dhash(picture, hash_size=_HASH_SIDE)), 16)
    return value if _FEWEST_EDGES <= value.bit_count() <= 64 - _FEWEST_EDGES else None


def _bands(value: int | None) -> list[tuple[int, int]]:
    """The hash in pieces, each with its number: near hashes share one."""
    if value is None:
        return []
    size = -(-64 // _BANDS)
    return [(band, (value >> (band * size)) & ((1 << size) - 1)) for band in range(_BANDS)]


def find(training: Iterable[Row], benchmark_rows: Iterable[Row]) -> Iterator[tuple[Row, list[Match]]]:
    """Every training question with its matches ([] where it shares nothing)."""
    index = Index()
    for row in benchmark_rows:
        index.add(row)
    for row in training:
        yield row, list(index.matches(row))
