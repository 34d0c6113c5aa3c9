"""Micro batches of any step for one data-parallel rank."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from sophia_mcore.batch.collate import PackedBatch, aligned, collate
from sophia_mcore.batch.pack import pack
from sophia_mcore.batch.samples import Sample, require_some
from sophia_mcore.batch.schedule import Schedule, Stream, assign_rows
from sophia_mcore.batch.tokenize import TokenizedSample, tokenize
from sophia_mcore.config.schema import Config, Parallel
from sophia_mcore.data.chat import Chat
from sophia_mcore.data.images import decode
from sophia_mcore.data.tiling import ImageSpec, tiles
from sophia_mcore.errors import SophiaError, UsageError
from sophia_mcore.store.images import ImageStore

_CACHED_IMAGES = 64


class Loader:
    """Step i is a pure function of (samples, seed, i): to resume, go on with the next i.

    Samples whose source is the name of a mixture form that mixture's stream, all others the main one. Every rank
    of one data-parallel group must be given the same samples in the same order.

    Raises UsageError when batch.sequence_length_tokens does not divide as the layout needs it, SophiaError when
    there is nothing to train on (with the counts of what was dropped) or an image cannot be read.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        config: Config,
        chat: Chat,
        tokenizer: Tokenizer,
        image_spec: ImageSpec,
        image_store: ImageStore,
        data_parallel_rank: int = 0,
        data_parallel_size: int = 1,
        *,
        load_pixels: bool = True,
        behaviour_logprobs: Mapping[str, NDArray[np.float32]] | None = None,
        rollout_logprobs: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        self._length = config.batch.sequence_length_tokens
        self._sequence_multiple, row_multiple = multiples(config.parallel)
        if self._length % row_multiple:
            raise UsageError(
                f"batch.sequence_length_tokens = {self._length} must be a multiple of {row_multiple} for this layout; "
                f"nearest: {aligned(self._length, row_multiple)}"
            )
        self._rows_multiple = config.parallel.pipeline if config.parallel.virtual_pipeline else 1
        self._rank, self._ranks = data_parallel_rank, data_parallel_size
        self._image_spec, self._image_store = image_spec, image_store
        self._load_pixels = load_pixels
        self._logprobs: dict[str, Any] = {
            "behaviour_logprobs": behaviour_logprobs,
            "rollout_logprobs": rollout_logprobs,
        }
        self._tiles = lru_cache(maxsize=_CACHED_IMAGES)(self._read_tiles)
        done = tokenize(
            require_some(list(samples), "training"),
            tokenizer,
            chat,
            lru_cache(maxsize=None)(self._tile_count),
            image_spec.tokens_per_tile,
            self._length // self._sequence_multiple * self._sequence_multiple,
        )
        self.dropped: Counter[str] = done.dropped
        self._schedule, self._streams = _schedule(done.samples, config, done.dropped)

    @property
    def steps(self) -> int:
        """Number of steps: train.steps, or what train.epochs over the main samples take."""
        return self._schedule.steps

    def sample_ids(self, index: int) -> list[str]:
        """Ids of the samples of step `index`, over all data-parallel ranks."""
        return [sample.id for sample in self._samples(index)]

    def step(self, index: int) -> list[PackedBatch]:
        """This rank's micro batches of step `index`; the same number on every rank, padded with empty rows."""
        return [self._collate(row) for row in self._rows(self._samples(index))]

    def prefetch(self, start: int = 0, stop: int | None = None) -> Iterator[list[PackedBatch]]:
        """Steps [start, stop) in order, each prepared in a thread while the one before is used."""
        indices = range(start, self.steps if stop is None else stop)
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            following = pool.submit(self.step, indices[0]) if indices else None
            for index in indices:
                assert following is not None
                batches = following.result()
                if index + 1 < indices.stop:
                    following = pool.submit(self.step, index + 1)
                yield batches

    def fixed(self, count: int) -> list[PackedBatch]:
        """This rank's micro batches of the first `count` main samples in a shuffled, fixed order: a measuring set."""
        main = self._streams[0]
        order = np.random.default_rng(0).permutation(len(main))[:count]
        return [self._collate(row) for row in self._rows([main[i] for i in order])]

    def _samples(self, index: int) -> list[TokenizedSample]:
        return [self._streams[stream][item] for stream, item in self._schedule.step(index)]

    def _rows(self, samples: Sequence[TokenizedSample]) -> list[list[TokenizedSample]]:
        lengths = [aligned(len(sample.input_ids), self._sequence_multiple) for sample in samples]
        rows = pack(lengths, self._length)
        mine = assign_rows([[lengths[item] for item in row] for row in rows], self._rows_multiple, self._ranks)
        return [[] if row is None else [samples[item] for item in rows[row]] for row in mine[self._rank]]

    def _collate(self, row: Sequence[TokenizedSample]) -> PackedBatch:
        return collate(
            row,
            length=self._length,
            sequence_multiple=self._sequence_multiple,
            tiles=self._tiles if self._load_pixels else None,
            tile_size=self._image_spec.tile_size,
            **self._logprobs,
        )

    def _tile_count(self, digest: str) -> int:
        with Image.open(io.BytesIO(self._image_store.get(digest))) as image:
            return self._image_spec.tile_count(*image.size)

    def _read_tiles(self, digest: str) -> NDArray[np.float32]:
        return tiles(decode(self._image_store.get(digest)), self._image_spec)


def multiples(parallel: Parallel) -> tuple[int, int]:
    """What every sequence's length and the row's length must be multiples of.

    Context parallelism cuts each sequence into 2 CP pieces (zigzag); sequence parallelism cuts a rank's part by TP.
    """
    context = 2 * parallel.context if parallel.context > 1 else 1
    scatter = parallel.context * parallel.tensor if parallel.sequence_parallel else 1
    return context, math.lcm(context, scatter)


def _schedule(
    samples: Sequence[TokenizedSample], config: Config, dropped: Counter[str]
) -> tuple[Schedule, list[list[TokenizedSample]]]:
    mixtures = config.batch.mixtures
    shares = {mixture.name: mixture.share for mixture in mixtures}
    main = [sample for sample in samples if sample.source not in shares]
    streams = [main, *([sample for sample in samples if sample.source == name] for name in shares)]
    names = ["the kept trajectories", *(f"mixture {name}" for name in shares)]
    for name, stream in zip(names, streams, strict=True):
        if not stream:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items())) or "none given"
            raise SophiaError(f"no sample to train on in {name} (dropped: {reasons})")
    all_shares = [1.0 - sum(shares.values()), *shares.values()]
    schedule = Schedule(
        streams=tuple(Stream(n, len(s), share) for n, s, share in zip(names, streams, all_shares, strict=True)),
        global_batch=config.train.global_batch_samples,
        seed=config.run.seed,
        epochs=config.train.epochs,
        fixed_steps=config.train.steps,
    )
    return schedule, streams
