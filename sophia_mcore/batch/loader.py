"""The loader: micro batches of any step for one data-parallel rank."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sophia_mcore.batch.collate import PackedBatch
from sophia_mcore.batch.reader import Reader
from sophia_mcore.batch.rows import Rows
from sophia_mcore.batch.samples import FRESH, STORED, Sample, require_some
from sophia_mcore.batch.schedule import Schedule, Stream
from sophia_mcore.batch.tokenize import TokenizedSample, tokenize
from sophia_mcore.config.schema import Config
from sophia_mcore.errors import SophiaError

_FRESH = "\0fresh"  # not a possible name of a mixture


class Loader:
    """Makes the micro batches of each step. Step i depends only on (samples, seed, i), so resuming needs no state.

    Samples whose source is the name of a mixture form the stream of that mixture; all others form the main stream.
    All ranks of a data-parallel group must pass the same samples in the same order.

    Raises UsageError when batch.sequence_length_tokens does not fit the layout, SophiaError when no sample is left to
    train on (with counts of the dropped samples) or an image cannot be read.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        config: Config,
        reader: Reader,
        data_parallel_rank: int = 0,
        data_parallel_size: int = 1,
        *,
        load_pixels: bool = True,
    ) -> None:
        self._rows = Rows(config, reader, data_parallel_rank, data_parallel_size, load_pixels=load_pixels)
        self._logprobs: dict[str, Any] = {}
        done = tokenize(
            require_some(list(samples), "training"),
            reader.tokenizer,
            reader.chat,
            lru_cache(maxsize=None)(reader.image_size),
            self._rows.longest,
        )
        self.dropped: Counter[str] = done.dropped
        self._schedule, self._streams = _schedule(done.samples, config, done.dropped)

    @property
    def steps(self) -> int:
        """Number of steps: train.steps, or as many as train.epochs over the main stream take."""
        return self._schedule.steps

    def sample_ids(self, index: int) -> list[str]:
        """Ids of the samples of step `index`, over all data-parallel ranks."""
        return [sample.id for sample in self._samples(index)]

    def step(self, index: int) -> list[PackedBatch]:
        """This rank's micro batches of step `index`. Every rank gets the same number; some rows may be all padding."""
        return list(self._rows.batches(self._samples(index), self._logprobs))

    def prefetch(self, start: int = 0, stop: int | None = None) -> Iterator[list[PackedBatch]]:
        """Yield the micro batches of steps [start, stop). A thread prepares the next step in the meantime."""
        indices = range(start, self.steps if stop is None else stop)
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            following = pool.submit(self.step, indices[0]) if indices else None
            for index in indices:
                assert following is not None
                batches = following.result()
                if index + 1 < indices.stop:
                    following = pool.submit(self.step, index + 1)
                yield batches

    def with_logprobs(
        self,
        behaviour: Mapping[str, NDArray[np.float32]] | None = None,
        rollout: Mapping[str, NDArray[np.float32]] | None = None,
        *,
        stored: bool = True,
    ) -> Loader:
        """A copy of this loader whose batches also have log-probs of their targets.

        ``behaviour``: log mu; ``rollout``: the sampling engine's log-probs. Each maps a sample id to the natural-log
        probability of each response token (as `collate.split_logprobs` returns them); None keeps the present values.
        The policy's own samples need both. Stored samples need ``behaviour``, unless ``stored`` is False. Samples of
        mixtures need none. Raises SophiaError naming a sample whose log-probs are missing or not finite.
        """
        for kind, given, kinds in (
            ("behaviour", behaviour, (FRESH, STORED) if stored else (FRESH,)),
            ("rollout", rollout, (FRESH,)),
        ):
            for sample in (sample for stream in self._streams for sample in stream):
                own = None if given is None else given.get(sample.id)
                if given is None or sample.kind not in kinds:
                    continue
                if own is None:
                    raise SophiaError(f"no {kind} log-probs for sample {sample.id}")
                if not np.isfinite(own).all():
                    bad = own[~np.isfinite(own)][0]
                    raise SophiaError(f"{kind} log-probs of sample {sample.id}: {bad} is not finite")
        other = copy.copy(self)
        new = {"behaviour_logprobs": behaviour, "rollout_logprobs": rollout}
        other._logprobs = self._logprobs | {name: values for name, values in new.items() if values is not None}
        return other

    def everything(self) -> Iterator[PackedBatch]:
        """Yield this rank's micro batches over all samples, each sample once. Every rank gets the same number."""
        return self._rows.batches([sample for stream in self._streams for sample in stream], self._logprobs)

    def fixed(self, count: int) -> list[PackedBatch]:
        """This rank's micro batches of `count` samples of the main stream, which are the same in every call."""
        main = self._streams[0]
        order = np.random.default_rng(0).permutation(len(main))[:count]
        return list(self._rows.batches([main[i] for i in order], self._logprobs))

    def _samples(self, index: int) -> list[TokenizedSample]:
        return [self._streams[stream][item] for stream, item in self._schedule.step(index)]


def _schedule(
    samples: Sequence[TokenizedSample], config: Config, dropped: Counter[str]
) -> tuple[Schedule, list[list[TokenizedSample]]]:
    """The schedule and the samples of each stream: main stream, one per mixture, and fresh samples if
    objective.fresh_share is set. Raises SophiaError when a stream is empty."""
    shares = {mixture.name: mixture.share for mixture in config.batch.mixtures}
    names = {name: f"mixture {name}" for name in shares}
    if config.objective.fresh_share:
        shares[_FRESH] = config.objective.fresh_share
        names[_FRESH] = "the policy's own trajectories (objective.fresh_share)"
    members: dict[str, list[TokenizedSample]] = {"": [], **{name: [] for name in shares}}
    for sample in samples:
        fresh = sample.kind == FRESH and _FRESH in shares
        members[_FRESH if fresh else sample.source if sample.source in shares else ""].append(sample)
    names[""] = "the trajectories of the store"
    for key, stream in members.items():
        if not stream:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items())) or "none given"
            raise SophiaError(f"no sample to train on in {names[key]} (dropped: {reasons})")
    rest = 1.0 - sum(shares.values())  # the configuration checks that this is positive
    schedule = Schedule(
        streams=tuple(Stream(key, len(stream), shares.get(key, rest)) for key, stream in members.items()),
        global_batch=config.train.global_batch_samples,
        seed=config.run.seed,
        epochs=config.train.epochs,
        fixed_steps=config.train.steps,
    )
    return schedule, list(members.values())
