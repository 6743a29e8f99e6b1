"""Rows of a bounded number of tokens: every sample once, all ranks alike, the same whoever asks, and work of both kinds balanced."""

import threading

import numpy as np
import pytest

from plait.data.loading.token_budget import TokenBudget, imbalance, shared_out
from plait.data.order import Order, SampleId, rank_slices


def measured(count, seed=0):
    """Log-normal lengths, and pixels of which every third sample has none and a few have many."""
    random = np.random.default_rng(seed)
    lengths = np.exp(random.normal(5, 0.7, count)).round().astype(np.float32)
    pixels = (random.integers(1, 9, count) * (np.arange(count) % 3 > 0) * 1024).astype(np.float32)
    return [lengths], [pixels]


def budget(tokens, count=200, **more):
    return TokenBudget(*measured(count), tokens, **more)


def rows_of(slicing, ids, ranks, micro_batch=None):
    return [slicing(ids, rank, ranks, micro_batch) for rank in range(ranks)]


def tokens_of(slicing, row):
    return slicing.work(row)[:, 0].sum()


IDS = [SampleId(0, i, 0) for i in range(64)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("tokens", [600, 2048, 1 << 20])
def test_every_sample_comes_once_in_rows_within_the_budget(ranks, tokens):
    slicing = budget(tokens)
    of_ranks = rows_of(slicing, IDS, ranks)
    assert len({len(rows) for rows in of_ranks}) == 1
    given = [one for rows in of_ranks for row, padding in rows if not padding for one in row]
    assert sorted(given) == IDS
    for row, padding in (pair for rows in of_ranks for pair in rows):
        assert tokens_of(slicing, row) <= tokens or len(row) == 1
        assert row == sorted(row) and (not padding or len(row) == 1)


def test_as_few_rows_as_hold_the_tokens():
    slicing = budget(4096)
    total = tokens_of(slicing, IDS)
    assert len(slicing(IDS, 0, 1, None)) == int(-(-total // 4096))
    assert len(budget(1 << 20)(IDS, 0, 4, None)) == 1


def test_tokens_and_pixels_are_both_alike_on_all_ranks():
    slicing = budget(2048)
    order = Order([200], [1.0], 3, 64)
    for step in range(4):
        ids = order.ids(step)
        beyond = {}
        for name, slicer in (("packed", slicing), ("plain", rank_slices)):
            of_ranks = [[one for row, padding in slicer(ids, rank, 4, None) if not padding for one in row] for rank in range(4)]
            beyond[name] = imbalance(np.array([slicing.work(members).sum(axis=0) for members in of_ranks]))
        assert (beyond["packed"] < 0.04).all(), beyond
        assert (beyond["plain"] > 0.04).any(), beyond


def test_the_rows_of_a_step_follow_from_its_samples_alone():
    order = Order([200], [1.0], 3, 16)
    right = {step: rows_of(budget(1024), order.ids(step), 2) for step in range(12)}
    shared, differ = budget(1024), []

    def ask(steps):
        differ.extend(step for step in steps for rank in (1, 0) if shared(order.ids(step), rank, 2, None) != right[step][rank])

    threads = [threading.Thread(target=ask, args=([(step * 5 + i) % 12 for step in range(12)],)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not differ


def test_a_row_has_at_most_the_configured_number_of_samples():
    slicing = budget(1 << 20, micro_batch=4)
    assert [len(row) for row, _ in slicing(IDS, 0, 2, 4)] == [4] * 8


@pytest.mark.parametrize("micro_batch", [None, 8])
def test_out_of_memory_a_row_has_as_much_fewer_tokens(micro_batch):
    slicing = budget(2048, micro_batch=micro_batch)
    full = micro_batch or 64
    for halved in (full // 2, full // 4):
        rows = slicing(IDS, 0, 1, halved)
        assert all(tokens_of(slicing, row) <= 2048 * halved / full or len(row) == 1 for row, _ in rows)
        assert all(len(row) <= halved for row, _ in rows)
    assert [len(row) for row, _ in slicing(IDS, 0, 1, 1)] == [1] * 64


def test_more_ranks_than_samples_get_rows_of_padding():
    slicing = budget(2048)
    of_ranks = rows_of(slicing, IDS[:3], 5)
    assert [len(rows) for rows in of_ranks] == [1] * 5
    padding = [row for rows in of_ranks for row, is_padding in rows if is_padding]
    shortest = min(IDS[:3], key=lambda one: slicing.lengths[0][one.index])
    assert padding == [[shortest]] * 2


def test_lengths_are_those_after_the_cut_and_unread_samples_count_as_the_mean():
    lengths, pixels = [np.array([100, 300, np.nan], np.float32)], [np.array([10, 30, np.nan], np.float32)]
    slicing = TokenBudget(lengths, pixels, 1000, longest=200)
    assert slicing.work(IDS[:3]).tolist() == [[100, 10], [200, 30], [200, 20]]
    assert slicing.work(IDS[2:3]).tolist() == [[1, 0]]


def test_items_are_shared_out_from_the_largest():
    work = np.array([[5.0, 0], [4, 0], [3, 0], [3, 0], [3, 0]])
    assert shared_out(work, 2, most=5) == [[0, 3], [1, 2, 4]]
    assert shared_out(work, 2, most=2) is None and shared_out(work, 2, most=3, tokens=9) is None
    assert shared_out(work, 3, most=2, tokens=7) == [[0], [1, 4], [2, 3]]
    assert shared_out(np.array([[9.0, 0], [1, 0]]), 2, most=1, tokens=4) == [[0], [1]]
    of_two_kinds = np.array([[4.0, 0], [4, 0], [0, 4], [0, 4]])
    assert sorted(map(sorted, shared_out(of_two_kinds, 2, most=4))) in ([[0, 2], [1, 3]], [[0, 3], [1, 2]])


def test_imbalance_is_the_largest_above_the_mean():
    assert imbalance(np.array([[3.0, 0], [1, 0]])).tolist() == [0.5, 0.0]


def test_the_description_tells_how_full_rows_are_and_how_unlike_ranks():
    lengths = [np.array([60, 40, 30, 70, 500, 100], np.float32)]
    slicing = TokenBudget(lengths, [np.zeros(6, np.float32)], 100)

    class Fixed(Order):
        def ids(self, step):
            return (IDS[:4], IDS[2:6])[step]

    order = Fixed([6], [1.0], 0, 4)
    told = slicing.describe(order, range(1), 2, None)
    assert told == (
        "rows of at most 100 tokens: 1 a step on each of 2 ranks, 100% full; the busiest rank has 0.0% more tokens and 0.0% more pixels "
        "than the mean (0.0% and 0.0% in slices of as many samples)"
    )
    told = slicing.describe(order, range(2), 1, None)
    assert told == "rows of at most 100 tokens: 2.5 a step, 100% full; 1 of 8 samples are longer, and alone in their rows"
