"""Buckets in the order of data: one shape per batch, every sample once per epoch, shares by counts, seeks without replay."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest

from plait.data.buckets import BucketOrder
from plait.data.loading.bucketing import batches_of, order_of
from plait.data.order import Order, SampleId, rank_slices
from plait.data.sources.contract import Source
from plait.errors import PlaitError

FIVE = (37, 5, 1, 64, 23)


class Ranges(Source):
    """Samples that are their own numbers; in buckets of these lengths, or `plain` without any."""

    name = fingerprint = "ranges"

    def __init__(self, *groups, plain=0):
        self.groups, self.plain = groups, plain

    def __len__(self):
        return sum(self.groups) or self.plain

    def __getitem__(self, index):
        return {"id": str(index)}


def bucket_of(index, groups=FIVE):
    return int(np.searchsorted(np.cumsum(groups), index, side="right"))


@pytest.mark.parametrize("batch", [1, 4, 8, 50, 300])
def test_a_batch_is_full_and_of_one_bucket(batch):
    order = BucketOrder([FIVE], [1.0], 0, batch)
    for step in range(200):
        ids = order.ids(step)
        assert len(ids) == batch
        assert {bucket_of(i.index) for i in ids} == {order.bucket(step)[1]}


@pytest.mark.parametrize("batch", [1, 4, 7, 8, 50])
def test_every_sample_comes_once_in_each_epoch_of_its_bucket(batch):
    order = BucketOrder([FIVE], [1.0], 3, batch)
    epochs = 2 * batch  # whole numbers of batches for every bucket
    drawn = Counter(i for step in range(epochs * sum(FIVE) // batch) for i in order.ids(step))
    assert drawn == Counter({SampleId(0, index, epoch): 1 for index in range(sum(FIVE)) for epoch in range(epochs)})


@pytest.mark.parametrize("epochs", range(1, 9))
def test_after_any_epoch_only_the_carried_samples_are_missing(epochs):
    order = BucketOrder([FIVE], [1.0], 3, 8)
    batches = sum(epochs * n // 8 for n in FIVE)
    drawn = Counter(bucket_of(i.index) for step in range(batches) for i in order.ids(step))
    assert [epochs * n - drawn[group] for group, n in enumerate(FIVE)] == [epochs * n % 8 for n in FIVE]


def test_shares_follow_the_sample_counts_at_every_moment():
    groups = (900, 80, 20)
    order = BucketOrder([groups], [1.0], 0, 10)
    picked = np.array([order.bucket(step)[1] for step in range(1000)])  # ten epochs of 90, 8 and 2 batches
    for epoch in range(10):
        assert Counter(picked[epoch * 100 : epoch * 100 + 100].tolist()) == {0: 90, 1: 8, 2: 2}
    assert len({tuple(picked[e * 100 : e * 100 + 100]) for e in range(10)}) == 10  # in another order each time


def test_samples_are_shuffled_in_their_bucket_differently_each_epoch_and_seed():
    def walk(seed, epoch):
        order = BucketOrder([(1000, 24)], [1.0], seed, 8)
        batches = range(epoch * 128, epoch * 128 + 128)
        return [i.index for step in batches for i in order.ids(step) if i.index < 1000]

    assert walk(0, 0) == walk(0, 0)
    assert sorted(walk(0, 0)) == list(range(1000))
    assert max(np.mean(np.array(walk(0, 0)) == other) for other in (walk(0, 1), walk(1, 0), list(range(1000)))) < 0.01


def test_a_mixture_honours_the_weights_in_whole_batches():
    order = BucketOrder([FIVE, (60,), (7, 9)], [3, 1, 0.5], 0, 6)
    ids = [order.ids(step) for step in range(900)]
    assert all(len({i.source for i in batch}) == 1 for batch in ids)
    assert [sum(batch[0].source == s for batch in ids) for s in range(3)] == [600, 200, 100]
    drawn = Counter(i for batch in ids for i in batch if i.source == 1)
    assert drawn == Counter({SampleId(1, index, epoch): 1 for index in range(60) for epoch in range(20)})


def test_a_seek_equals_walking_there():
    walked = BucketOrder([FIVE, (9, 9)], [1, 2], 5, 6)
    path = [walked.ids(step) for step in range(300)]
    for step in (299, 0, 120, 7):
        assert BucketOrder([FIVE, (9, 9)], [1, 2], 5, 6).ids(step) == path[step]


def test_a_billion_samples_are_sought_in_constant_memory_and_work(calls):
    groups = (600_000_000, 250_000_000, 149_999_999, 1)
    order = BucketOrder([groups], [1.0], 0, 256)

    def seek(steps):
        for step in steps:
            assert len({bucket_of(i.index, groups) for i in order.ids(step)}) == 1

    seek([0])
    tracemalloc.start()
    seek(range(10**9, 10**9 + 100))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 8 << 20  # 64 batches are remembered
    near, far = (calls(lambda first=first: seek(range(first, first + 100 * 103, 103))) for first in (1, 10**12))
    assert far < 1.5 * near  # nothing is replayed: a step costs the same wherever it is


def test_every_rank_draws_the_same_bucket():
    order = BucketOrder([FIVE], [1.0], 0, 8)
    for step in range(50):
        cuts = [rank_slices(order.ids(step), rank, 4, 1) for rank in range(4)]
        assert len({bucket_of(i.index) for cut in cuts for part, _ in cut for i in part}) == 1


def test_epochs_and_steps_are_those_of_the_plain_order():
    order = BucketOrder([FIVE], [1.0], 0, 13)
    assert order.sizes == (130,)
    assert [order.steps(e * 130) for e in (0.5, 1, 3)] == [5, 10, 30]
    assert order.samples(10) == 130


@pytest.mark.parametrize(("first", "changed_at", "then"), [(4, 7, 8), (8, 3, 5), (3, 20, 7), (8, 0, 4), (1, 130, 2), (50, 1, 4)])
def test_a_changed_batch_goes_on_in_each_bucket_from_the_sample_it_had_come_to(first, changed_at, then):
    order, old = (BucketOrder([FIVE, (9, 4)], [3.0, 1.0], 3, first, changes) for changes in ([(changed_at, then)], ()))
    drawn = [order.ids(step) for step in range(changed_at + 300)]
    assert drawn[:changed_at] == [old.ids(step) for step in range(changed_at)]
    walks = {}
    for step, ids in enumerate(drawn):
        assert len(ids) == (first if step < changed_at else then)
        source, group = order.bucket(step)
        walks.setdefault((source, group), Counter()).update(ids)
    for (source, group), walk in walks.items():
        n = (FIVE, (9, 4))[source][group]
        assert max(walk.values()) == 1, "no sample comes twice in an epoch of its bucket"
        epochs = Counter(i.epoch for i in walk)
        sizes = [epochs[epoch] for epoch in range(max(epochs) + 1)]
        # batches of an epoch come in any order: those of the last two may be under way
        assert all(size == n for size in sizes[: -2 - max(first, then) // n])


def test_a_batch_that_is_changed_twice_goes_on_twice():
    order = BucketOrder([FIVE], [1.0], 3, 4, [(10, 8), (25, 2)])
    drawn = Counter(i for step in range(300) for i in order.ids(step))
    assert max(drawn.values()) == 1
    assert (order.samples(10), order.samples(25), order.samples(300)) == (40, 160, 160 + 275 * 2)
    assert sum(drawn.values()) == order.samples(300)


def test_a_change_to_the_same_batch_in_the_middle_of_an_epoch_loses_and_repeats_nothing():
    order = BucketOrder([FIVE], [1.0], 3, 4, [(13, 4)])
    drawn = Counter(i for step in range(4 * sum(FIVE) // 4 * 4) for i in order.ids(step))
    assert max(drawn.values()) == 1


def test_order_of_chooses_buckets_only_where_they_matter():
    assert isinstance(order_of([Ranges(10)], [1.0], 0, 4), Order)
    assert isinstance(order_of([Ranges(plain=5), Ranges(plain=6)], [1.0, 1.0], 0, 4), Order)
    assert isinstance(order_of([Ranges(3, 7)], [1.0], 0, 4), BucketOrder)
    mixed = order_of([Ranges(10), Ranges(10)], [1.0, 1.0], 0, 4)  # one bucket each, perhaps of different shapes
    assert isinstance(mixed, BucketOrder)
    assert all(len({i.source for i in mixed.ids(step)}) == 1 for step in range(20))


@pytest.mark.parametrize(
    ("groups", "weights", "words"),
    [([], [], "no data to order"), ([(5, 0)], [1], "bucket 1 of source 0 is empty"), ([(5,)], [0.0], "has weight 0.0")],
)
def test_an_impossible_order_is_refused(groups, weights, words):
    with pytest.raises(PlaitError, match=words):
        BucketOrder(groups, weights, 0, 8)


def test_held_out_batches_keep_to_one_bucket_and_lose_nothing():
    source = Ranges(*FIVE)
    chosen = [SampleId(0, int(i), 0) for i in np.random.default_rng(0).permutation(130)]
    cut = batches_of(chosen, [source], 8)
    assert sorted(i for batch in cut for i in batch) == sorted(chosen)
    assert all(len({bucket_of(i.index) for i in batch}) == 1 and len(batch) <= 8 for batch in cut)
    assert batches_of(chosen, [Ranges(plain=130)], 8) == [chosen[k : k + 8] for k in range(0, 130, 8)]
