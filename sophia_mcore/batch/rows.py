"""Packs samples into rows, divides the rows among data-parallel ranks, and collates those of one rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sophia_mcore.batch.collate import PackedBatch, aligned, collate
from sophia_mcore.batch.pack import pack
from sophia_mcore.batch.reader import Reader, longest_sample
from sophia_mcore.batch.schedule import assign_rows
from sophia_mcore.batch.tokenize import TokenizedSample
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import UsageError

_CACHED_IMAGES = 64


class Rows:
    """Makes the rows of data-parallel rank ``rank`` of ``ranks``.

    All ranks must pass the same samples in the same order. ``load_pixels`` False: rows have no pixel_values. Raises
    UsageError when batch.sequence_length_tokens does not fit the layout.
    """

    def __init__(
        self, config: Config, reader: Reader, rank: int = 0, ranks: int = 1, *, load_pixels: bool = True
    ) -> None:
        self._length = config.batch.sequence_length_tokens
        self._sequence_multiple = config.parallel.sequence_multiple
        row_multiple = config.parallel.row_multiple(fp8=config.fp8.used)
        if self._length % row_multiple:
            raise UsageError(
                f"batch.sequence_length_tokens = {self._length} must be a multiple of {row_multiple} for this layout; "
                f"nearest: {aligned(self._length, row_multiple)}"
            )
        self._rows_multiple = config.parallel.pipeline if config.parallel.virtual_pipeline else 1
        self._longest = longest_sample(config)
        self._rank, self._ranks = rank, ranks
        self._row_shape = reader.image_processor.row_shape
        self._positions = reader.image_processor.positions
        self._pixels = lru_cache(maxsize=_CACHED_IMAGES)(reader.pixels) if load_pixels else None

    @property
    def longest(self) -> int:
        """The largest number of tokens of a sample, prompt and response together."""
        return self._longest

    def batches(
        self, samples: Sequence[TokenizedSample], logprobs: Mapping[str, Any] | None = None
    ) -> Iterator[PackedBatch]:
        """Yield this rank's micro batches. Every rank gets the same number; some rows may be all padding.

        ``logprobs``: keyword arguments of `collate.collate`, such as behaviour_logprobs.
        """
        lengths = [aligned(len(sample.input_ids), self._sequence_multiple) for sample in samples]
        rows = pack(lengths, self._length)
        dealt = assign_rows([[lengths[item] for item in row] for row in rows], self._rows_multiple, self._ranks)
        for row in dealt[self._rank]:
            yield collate(
                [] if row is None else [samples[item] for item in rows[row]],
                length=self._length,
                sequence_multiple=self._sequence_multiple,
                pixels=self._pixels,
                row_shape=self._row_shape,
                positions=self._positions,
                **(logprobs or {}),
            )
