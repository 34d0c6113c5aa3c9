"""The loader's promises: pure steps, whole epochs, exact shares, rows that cover the batch on every layout."""

from collections import Counter
from dataclasses import replace

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from sophia_mcore.batch.loader import Loader
from sophia_mcore.batch.reader import Reader
from sophia_mcore.batch.schedule import Schedule, Stream, assign_rows
from sophia_mcore.errors import SophiaError, UsageError
from tests.support.batch_world import CHAT, SPEC, make_images, make_samples, make_tokenizer
from tests.support.configs import make_config


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    batch=st.integers(1, 25),
    steps=st.integers(1, 20),
    seed=st.integers(0, 3),
)
def test_schedule_with_fixed_steps(sizes, batch, steps, seed):
    shares = [0.45, 0.3, 0.2, 0.05][: len(sizes)]
    shares[0] += 1.0 - sum(shares)
    streams = tuple(Stream(str(i), size, share) for i, (size, share) in enumerate(zip(sizes, shares, strict=True)))
    schedule = Schedule(streams, batch, seed, fixed_steps=steps)
    given_out = [schedule.step(i) for i in range(schedule.steps)]
    assert len(given_out) == steps and all(len(step) == batch for step in given_out)
    for number, stream in enumerate(streams):
        items = [item for step in given_out for own, item in step if own == number]
        assert abs(len(items) - steps * batch * stream.share) <= len(streams)
        for start in range(0, len(items) - stream.size + 1, stream.size):
            assert sorted(items[start : start + stream.size]) == list(range(stream.size))
    assert schedule.step(steps - 1) == given_out[-1]


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(size=st.integers(1, 60), batch=st.integers(1, 25), epochs=st.sampled_from([0.5, 1.0, 2.0]))
def test_schedule_by_epochs(size, batch, epochs):
    schedule = Schedule((Stream("a", size, 1.0),), batch, 0, epochs=epochs)
    items = [item for i in range(schedule.steps) for _, item in schedule.step(i)]
    assert len(items) == round(epochs * size) or size == 1
    assert max(Counter(items).values(), default=0) <= max(1, epochs)


def test_epochs_differ_and_seeds_differ():
    def order(seed):
        schedule = Schedule((Stream("a", 50, 1.0),), 50, seed, epochs=2.0)
        return [[item for _, item in schedule.step(i)] for i in range(2)]

    (first, second), (other, _) = order(0), order(1)
    assert first != second and first != other and order(0) == [first, second]


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), max_size=12), st.data())
def test_assign_rows(lengths, data):
    multiple, ranks = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    rows = assign_rows(lengths, multiple, ranks)
    assert len(rows) == ranks and len({len(own) for own in rows}) == 1
    assert len(rows[0]) % multiple == 0 and len(rows[0]) >= 1
    assert sorted(row for own in rows for row in own if row is not None) == list(range(len(lengths)))


@pytest.fixture
def world(tmp_path):
    store, digests = make_images(tmp_path / "images")
    return store, make_samples(digests), make_tokenizer()


def make_loader(tmp_path, world, rank=0, ranks=1, samples=None, load_pixels=True, **sections):
    store, own, tokenizer = world
    defaults = {
        "batch": {"sequence_length_tokens": 512},
        "train": {"global_batch_samples": 8, "steps": 6},
    }
    config = make_config(tmp_path, **(defaults | sections))
    samples = own if samples is None else samples
    return Loader(samples, config, Reader(CHAT, tokenizer, SPEC, store), rank, ranks, load_pixels=load_pixels)


def same(a, b):
    names = ("input_ids", "targets", "weights", "cu_seqlens", "pixel_values", "feature_index", "position_ids")
    return a.sample_ids == b.sample_ids and all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


def test_step_is_a_pure_function(tmp_path, world):
    first, second = make_loader(tmp_path, world), make_loader(tmp_path, world)
    for i in range(first.steps):
        first.step(i)
    for i in (5, 0, 3):
        assert all(same(a, b) for a, b in zip(first.step(i), second.step(i), strict=True))
    prefetched = list(second.prefetch(2, 5))
    assert len(prefetched) == 3 and all(same(a, b) for a, b in zip(prefetched[1], first.step(3), strict=True))
    assert list(second.prefetch(6)) == []


@pytest.mark.parametrize(("ranks", "virtual"), [(1, None), (2, None), (3, 2)])
def test_ranks_share_out_every_sample_once(tmp_path, world, ranks, virtual):
    parallel = {"pipeline": 2, "virtual_pipeline": virtual} if virtual else {}
    loaders = [make_loader(tmp_path, world, rank, ranks, parallel=parallel) for rank in range(ranks)]
    for i in range(loaders[0].steps):
        micro_batches = [loader.step(i) for loader in loaders]
        assert len({len(own) for own in micro_batches}) == 1 and len(micro_batches[0]) % (2 if virtual else 1) == 0
        ids = [sample for own in micro_batches for batch in own for sample in batch.sample_ids]
        assert sorted(ids) == sorted(loaders[0].sample_ids(i)) and len(ids) == 8


def test_rows_do_not_depend_on_the_number_of_ranks(tmp_path, world):
    one = {batch.sample_ids: batch for batch in make_loader(tmp_path, world).step(0)}
    for rank in range(2):
        for batch in make_loader(tmp_path, world, rank, 2).step(0):
            assert not batch.sample_ids or same(batch, one[batch.sample_ids])


def test_mixtures_by_share(tmp_path, world):
    extra = [replace(sample, source="extra", id=f"x{sample.id}") for sample in world[1][:5]]
    mixtures = [{"path": "none.jsonl", "name": "extra", "share": 0.25}]
    batch = {"sequence_length_tokens": 512, "mixtures": mixtures}
    loader = make_loader(tmp_path, world, samples=[*extra, *world[1]], batch=batch)
    for i in range(loader.steps):
        assert sum(sample.startswith("x") for sample in loader.sample_ids(i)) == 2
    with pytest.raises(SophiaError, match="no sample to train on in mixture extra"):
        make_loader(tmp_path, world, batch=batch)


def test_dropped_are_counted_and_alignment_holds(tmp_path, world):
    parallel = {"tensor": 2, "context": 2, "sequence_parallel": True}
    loader = make_loader(tmp_path, world, batch={"sequence_length_tokens": 128}, parallel=parallel)
    assert loader.dropped["too_long"] > 0
    for batch in loader.step(0):
        assert batch.cu_seqlens.remainder(4).eq(0).all() and batch.input_ids.shape == (1, 128)
    with pytest.raises(UsageError, match="must be a multiple of 4 for this layout; nearest: 164"):
        make_loader(tmp_path, world, batch={"sequence_length_tokens": 162}, parallel=parallel)


def test_nothing_to_train_on(tmp_path, world):
    with pytest.raises(SophiaError, match="no sample"):
        make_loader(tmp_path, world, samples=[])
    with pytest.raises(SophiaError, match=r"trajectories of the store \(dropped: too_long 20\)"):
        make_loader(tmp_path, world, batch={"sequence_length_tokens": 32})
    zero = [replace(sample, weight=0.0) for sample in world[1]]
    with pytest.raises(SophiaError, match="weights of all 20 samples are zero"):
        make_loader(tmp_path, world, samples=zero)


def test_without_pixels_nothing_is_decoded(tmp_path, world):
    loader = make_loader(tmp_path, world, load_pixels=False)
    assert all(batch.pixel_values is None for batch in loader.step(0))
    assert any(len(batch.feature_index) for batch in loader.step(0))


def test_measuring_set_is_fixed(tmp_path, world):
    ids = [sample for batch in make_loader(tmp_path, world).fixed(7) for sample in batch.sample_ids]
    again = [
        s
        for b in make_loader(tmp_path, world, run={"name": "t", "folder": tmp_path, "seed": 9}).fixed(7)
        for s in b.sample_ids
    ]
    assert len(set(ids)) == 7 and ids == again
    assert len([s for b in make_loader(tmp_path, world).fixed(1000) for s in b.sample_ids]) == 20
