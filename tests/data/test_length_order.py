"""Batches of similar length: the samples of the plain order, in other batches, found from (seed, step) alone."""

from collections import Counter

import numpy as np
import pytest

from plait.data.loading.length_order import BLOCK_STEPS, LengthOrder, padded_share
from plait.data.order import Order, rank_slices


def lengths_of(*sizes, seed=0):
    random = np.random.default_rng(seed)
    return [np.exp(random.normal(4, 0.8, size)).round().astype(np.float32) for size in sizes]


def both(sizes, batch, changes=(), weights=None):
    lengths = lengths_of(*sizes)
    weights = weights or [1.0] * len(sizes)
    return LengthOrder(lengths, weights, 5, batch, changes), Order(sizes, weights, 5, batch, changes)


def drawn(order, steps, first=0):
    return Counter(identity for step in range(first, steps) for identity in order.ids(step))


@pytest.mark.parametrize("sizes", [(1000,), (97,), (5,), (300, 41), (7, 3)])
@pytest.mark.parametrize("batch", [1, 4, 7, 64])
def test_a_stage_of_whole_epochs_takes_the_samples_of_the_plain_order(sizes, batch):
    arranged, plain = both(sizes, batch)
    for epochs in (1, 2, 5):
        steps = plain.steps(epochs * sum(sizes))
        assert arranged.steps(epochs * sum(sizes)) == steps
        assert drawn(arranged, steps) == drawn(plain, steps)


def test_each_sample_comes_once_in_an_epoch_that_batches_divide():
    arranged, _ = both((960,), 8)
    for epoch in range(3):
        ids = drawn(arranged, 120 * (epoch + 1), 120 * epoch)
        assert sorted(ids.elements()) == sorted((0, i, epoch) for i in range(960))


def test_any_step_is_found_without_those_before_it():
    arranged, _ = both((500, 200), 8)
    steps = [*range(200)]
    right = {step: arranged.ids(step) for step in steps}
    for step in np.random.default_rng(0).permutation(steps).tolist():
        again, _ = both((500, 200), 8)
        assert again.ids(step) == arranged.ids(step) == right[step]


def test_ranks_and_micro_batches_divide_the_same_samples():
    arranged, _ = both((500,), 8)
    for step in range(20):
        parts = [rank_slices(arranged.ids(step), rank, 3, 2) for rank in range(3)]
        ids = [identity for of_rank in parts for micro, padding in of_rank if not padding for identity in micro]
        assert ids == arranged.ids(step)


@pytest.mark.parametrize("changes", [[(10, 16)], [(3, 5)], [(64, 4)], [(10, 16), (11, 3), (40, 8)], [(100, 100), (101, 1)], [(1, 300)]])
def test_after_a_change_of_the_batch_size_nothing_is_lost_or_comes_twice(changes):
    sizes = (700, 90)
    arranged, plain = both(sizes, 8, changes)
    for epochs in (1, 2, 3):
        steps = plain.steps(epochs * sum(sizes))
        ids, right = drawn(arranged, steps), drawn(plain, steps)
        assert max(ids.values()) == 1
        missing = sum((right - ids).values())  # of an epoch's last batch, where a batch is large
        assert missing <= (0 if max(batch for _, batch in changes) <= 16 and steps > changes[-1][0] else 300)
    assert all(len(arranged.ids(step)) == len(plain.ids(step)) for step in range(120))
    before, _ = both(sizes, 8)
    assert [arranged.ids(step) for step in range(changes[0][0])] == [before.ids(step) for step in range(changes[0][0])]


def test_batches_are_of_similar_length_and_long_ones_come_all_through():
    arranged, plain = both((6400,), 8)
    lengths = lengths_of(6400)
    assert padded_share(lengths, arranged, 800, 8) < 0.08
    assert padded_share(lengths, plain, 800, 8) > 0.4
    longest = [max(lengths[0][identity.index] for identity in arranged.ids(step)) for step in range(800)]
    quarters = [np.mean(longest[i : i + 200]) for i in range(0, 800, 200)]
    assert max(quarters) < 1.15 * min(quarters)
    assert BLOCK_STEPS == 64


def test_the_share_of_padding_is_that_of_rows_padded_to_the_longest():
    class Fixed(Order):
        def ids(self, step):
            return super().ids(0)

    order = Order([4], [1.0], 0, 4)
    lengths = [np.zeros(4, np.float32)]
    for place, identity in enumerate(order.ids(0)):
        lengths[0][identity.index] = (10, 4, 6, 6)[place]
    assert padded_share(lengths, order, 1, 2) == pytest.approx(1 - 26 / (20 + 12))
    assert padded_share(lengths, order, 1, 4) == pytest.approx(1 - 26 / 40)


def test_samples_whose_length_is_not_known_count_as_short():
    lengths = lengths_of(100)
    lengths[0][7] = np.nan
    order = LengthOrder(lengths, [1.0], 0, 4)
    assert any(identity.index == 7 for identity in order.ids(next(s for s in range(25) if any(i.index == 7 for i in order.ids(s))))[:1])


def test_other_lengths_make_another_order():
    orders = [LengthOrder(lengths_of(100, seed=seed), [1.0], 0, 4) for seed in (0, 0, 1)]
    assert orders[0].arranged == orders[1].arranged != orders[2].arranged
    assert orders[0].ids(3) == orders[1].ids(3) != orders[2].ids(3)
