"""The order of data: permutations, mixtures, seeks and shares, against brute force and counting."""

import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from plait.data.order import Order, SampleId, block_counts, digest, interleave, largest_remainder, permute, rank_slices
from plait.errors import PlaitError
from plait.keys import key

SIZES = [1, 2, 3, 4, 5, 7, 16, 17, 97, 100, 256, 1009, 4096, 10007, 65537]


@pytest.mark.parametrize("n", SIZES)
def test_permute_is_a_bijection(n):
    for epoch in range(3):
        assert np.array_equal(np.sort(permute(np.arange(n), n, 0, "order", epoch)), np.arange(n))


@pytest.mark.parametrize("n", [999_999_937, 1_000_000_000, 2**40 + 15])
def test_permute_of_a_huge_range_stays_inside_without_collision(n):
    positions = np.random.default_rng(0).choice(n, 20_000, replace=False)
    images = permute(positions, n, 0, "order", 0)
    assert images.min() >= 0
    assert images.max() < n
    assert len(np.unique(images)) == len(positions)
    assert abs(images.mean() / n - 0.5) < 5 * 12**-0.5 / 20_000**0.5  # five standard errors of a uniform mean


def test_permute_of_one_number_equals_the_array():
    array = permute(np.arange(50), 1009, 3, "x")
    assert [permute(i, 1009, 3, "x") for i in range(50)] == array.tolist()


@pytest.mark.parametrize("n", [2, 3, 4, 6, 10])
def test_permute_sends_every_position_everywhere_equally_often(n):
    draws = 2000
    table = np.zeros((n, n))
    for k in range(draws):
        table[np.arange(n), permute(np.arange(n), n, "uniform", k)] += 1
    chi2 = ((table - draws / n) ** 2 / (draws / n)).sum()
    freedom = (n - 1) ** 2
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5  # mean and deviation of chi-squared


def test_permute_reaches_all_orders_of_four_equally_often():
    seen = Counter(tuple(permute(np.arange(4), 4, "orders", k).tolist()) for k in range(4800))
    assert len(seen) == 24
    assert sum((c - 200) ** 2 / 200 for c in seen.values()) < 23 + 5 * 46**0.5


def test_permute_neighbours_land_apart():
    n = 10_000
    image = permute(np.arange(n), n, 0)
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 5 / n**0.5
    assert (np.abs(np.diff(image)) == 1).mean() < 0.002  # 2/n by chance


def test_order_shows_every_sample_once_per_epoch_across_batch_borders():
    order = Order([10], [1.0], seed=1, global_batch=4)
    drawn = [i for step in range(15) for i in order.ids(step)]  # 60 draws: 6 epochs, none of a whole number of batches
    for epoch in range(6):
        assert sorted(i.index for i in drawn[epoch * 10 : epoch * 10 + 10]) == list(range(10))
        assert {i.epoch for i in drawn[epoch * 10 : epoch * 10 + 10]} == {epoch}


def test_order_differs_between_epochs_and_seeds():
    def first(seed, epoch):
        order = Order([1000], [1.0], seed=seed, global_batch=1000)
        return [i.index for i in order.ids(epoch)]

    assert first(0, 0) == first(0, 0)
    same = [np.mean(np.array(first(0, 0)) == np.array(other)) for other in (first(0, 1), first(1, 0))]
    assert max(same) < 0.01  # 1/1000 by chance


def test_mixture_honours_the_weights_and_each_source_walks_its_own_epochs():
    order = Order([7, 100, 33], [3, 1, 0.5], seed=0, global_batch=9)
    drawn = [i for step in range(300) for i in order.ids(step)]
    assert [sum(i.source == s for i in drawn) for s in range(3)] == [1800, 600, 300]
    for source, size in enumerate(order.sizes):
        mine = [i for i in drawn if i.source == source]
        for epoch in range(len(mine) // size):
            walk = mine[epoch * size : (epoch + 1) * size]
            assert sorted(walk) == [SampleId(source, index, epoch) for index in range(size)]


@pytest.mark.parametrize("weights", [[0.9, 0.07, 0.03], [1, 2**0.5, 3.14159], [1, 1, 1], [1000, 1]])
def test_mixture_is_apportioned_within_a_thousandth_and_evenly_in_time(weights):
    order = Order([50] * len(weights), weights, seed=0, global_batch=16)
    total = sum(order.counts)
    assert total % 16 == 0
    np.testing.assert_allclose(np.array(order.counts) / total, np.array(weights) / sum(weights), rtol=1e-3)
    drawn = np.array([i.source for step in range(40) for i in order.ids(step)])
    for source, weight in enumerate(weights):  # quota: no prefix strays from its share by as much as one sample per source
        walked = np.cumsum(drawn == source) - weight / sum(weights) * np.arange(1, len(drawn) + 1)
        assert np.abs(walked).max() < len(weights)


def test_order_seeks_a_billion_samples_in_constant_work_and_memory(calls):
    order = Order([1_000_000_000], [1.0], seed=0, global_batch=256)
    order.ids(0)
    tracemalloc.start()
    for step in (3_000_000, 5, 3_906_249, 10**9):
        order.ids(step)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20
    near, far = (calls(lambda first=first: [order.ids(first + k * 10_007) for k in range(100)]) for first in (0, 10**12))
    assert far < 1.1 * near  # the cycle walked past n has a random length


def test_epoch_and_steps_agree():
    order = Order([10], [1.0], seed=0, global_batch=4)
    assert [order.steps(e * 10) for e in (0.5, 1, 2, 0.4, 0.01)] == [2, 3, 5, 1, 1]
    assert order.samples(5) == 20
    assert Order([60, 40], [1, 1], 0, 10).steps(100) == 10


@pytest.mark.parametrize(("sizes", "weights"), [([64], [1.0]), ([1000], [1.0]), ([40, 9], [3.0, 1.0])])
@pytest.mark.parametrize(("first", "changes"), [(4, [(8, 8)]), (8, [(3, 4), (9, 1)]), (5, [(0, 7)]), (3, [(1000, 2000)])])
def test_a_changed_batch_slices_the_same_sequence_of_samples_otherwise(sizes, weights, first, changes):
    order, plain = Order(sizes, weights, 7, first, changes), Order(sizes, weights, 7, first)
    steps = changes[-1][0] + 20
    drawn = [i for step in range(steps) for i in order.ids(step)]
    assert drawn == [i for step in range(math.ceil(len(drawn) / first)) for i in plain.ids(step)][: len(drawn)]
    assert len(drawn) == order.samples(steps)
    assert [order.ids(step) for step in reversed(range(steps))][::-1] == [order.ids(step) for step in range(steps)]  # any step first


def test_the_steps_of_a_budget_count_those_before_the_batch_was_changed():
    order = Order([64], [1.0], 7, 4, [(8, 8)])
    assert [order.steps(samples) for samples in (64, 128, 33, 40, 41)] == [12, 20, 9, 9, 10]


@pytest.mark.parametrize(
    ("sizes", "weights", "words"),
    [
        ([], [], "no data to order"),
        ([5, 0], [1, 1], "source 1 of the mixture is empty"),
        ([5], [-1.0], "has weight -1.0"),
        ([5, 5], [1, 1e-9], "raise it"),
    ],
)
def test_order_refuses_what_cannot_be_mixed(sizes, weights, words):
    with pytest.raises(PlaitError, match=words):
        Order(sizes, weights, 0, 8)


@pytest.mark.parametrize(
    ("batch", "world_size", "micro"), [(16, 1, 16), (16, 4, 4), (16, 1, 1), (7, 3, 2), (5, 2, 2), (2, 4, 1), (8, 3, None), (5, 3, 8)]
)
def test_shares_cover_the_batch_once_with_equal_counts(batch, world_size, micro):
    ids = [SampleId(0, i, 0) for i in range(batch)]
    cuts = [rank_slices(ids, rank, world_size, micro) for rank in range(world_size)]
    assert len({len(cut) for cut in cuts}) == 1
    assert [i for cut in cuts for part, padding in cut if not padding for i in part] == ids
    assert all(len(part) >= 1 and (micro is None or len(part) <= micro) for cut in cuts for part, _ in cut)
    assert all(part[0] in ids for cut in cuts for part, padding in cut if padding)


def test_a_rank_without_work_gets_a_void_micro_batch():
    ids = [SampleId(0, i, 0) for i in range(2)]
    assert rank_slices(ids, 0, 3, 1) == [([ids[0]], True)]
    assert rank_slices(ids, 2, 3, 1) == [([ids[1]], False)]


def test_digests_of_parts_add_up_whatever_the_cut_and_tell_samples_apart():
    ids = Order([40, 9], [2.0, 1.0], seed=3, global_batch=16).ids(5)
    assert digest(ids) == digest(ids[:5]) + digest(reversed(ids[5:]))
    assert digest(ids) != digest([*ids[:-1], ids[-1]._replace(epoch=ids[-1].epoch + 1)])
    assert digest([SampleId(0, 1, 0)]) != digest([SampleId(1, 0, 0)])


def finalised(z):
    """SplitMix64's finaliser in whole numbers (Steele, Lea and Flood 2014, figure 16)."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def permuted(position, n, *parts):
    """The permutation in whole numbers: four rounds for each coordinate of a rectangle of about sqrt(n) rows, past n once more."""
    height = math.ceil(math.sqrt(n))
    width = -(-n // height)
    keys = [finalised((number * 0x9E3779B97F4A7C15 + key(*parts)) % 2**64) for number in range(8)]
    cell, walked = position, False
    while not walked or cell >= n:
        row, column = divmod(cell, width)
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            row = (row + finalised((column + even) % 2**64) % height) % height
            column = (column + finalised((row + odd) % 2**64) % width) % width
        cell, walked = row * width + column, True
    return cell


@pytest.mark.parametrize("n", [1, 2, 3, 5, 97, 1009, 65537, 10**9])
def test_permute_is_its_definition_in_whole_numbers(n):
    positions = sorted({0, n // 3, n // 2, n - 1})
    assert permute(np.array(positions), n, 7, "order", 2, 5).tolist() == [permuted(position, n, 7, "order", 2, 5) for position in positions]


def test_the_finaliser_of_the_definition_is_splitmix64s():
    state, drawn = 1234567, []  # the sequence that the authors' code gives for this seed
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        drawn.append(finalised(state))
    assert drawn == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_an_order_permutes_each_epoch_of_each_source_by_its_own_key():
    order = Order([10, 7], [2.0, 1.0], seed=4, global_batch=3)
    drawn = [identity for step in range(20) for identity in order.ids(step)]
    for source, size in enumerate(order.sizes):
        mine = [identity for identity in drawn if identity.source == source]
        wanted = [SampleId(source, permute(i % size, size, 4, "order", source, i // size), i // size) for i in range(len(mine))]
        assert mine == wanted


@pytest.mark.parametrize(
    ("shares_", "batch", "counts"),
    [
        ([0.5, 0.5], 2, (1, 1)),
        ([0.5, 0.5], 3, (3, 3)),  # a batch of 3 has no half: two batches have
        ([0.75, 0.25], 8, (6, 2)),
        ([0.6, 0.2, 0.2], 7, (21, 7, 7)),
        ([1 / 3, 2 / 3], 4, (4, 8)),
    ],
)
def test_a_block_is_the_smallest_number_of_batches_that_honours_the_shares(shares_, batch, counts):
    assert block_counts(shares_, batch) == counts


def test_a_block_that_no_size_makes_exact_is_within_a_thousandth_of_every_share():
    shares_ = [0.5, 0.5 - 1e-4, 1e-4]
    counts = block_counts(shares_, 16)
    assert max(abs(count / sum(counts) - share) / share for count, share in zip(counts, shares_, strict=True)) <= 1e-3
    assert sum(counts) % 16 == 0


def test_the_block_of_a_rare_source_is_looked_for_finely_and_then_in_steps_of_a_sixteenth():
    tried = list(range(1, 1025))
    while tried[-1] < 1 << 20:
        tried.append(tried[-1] + tried[-1] // 16)
    for batch, rare in ((1, 2e-4), (1, 4e-4), (2, 7e-4), (3, 5.5e-4)):
        sizes = [batch * multiple for multiple in tried]
        fitting = next(size for size in sizes if abs(round(size * rare) / size - rare) <= 1e-3 * rare)
        assert block_counts([1 - rare, rare], batch) == (fitting - round(fitting * rare), round(fitting * rare))


def test_a_block_has_at_most_a_million_samples_or_those_of_one_batch():
    common, rare = block_counts([1 - 1e-5, 1e-5], 16)
    assert common + rare <= 1 << 20 and (common + rare) % 16 == 0 and rare / (common + rare) == pytest.approx(1e-5, rel=0.05)
    assert block_counts([0.75, 0.25], 1 << 21) == (3 << 19, 1 << 19)


@pytest.mark.parametrize(
    ("parts", "total", "counts"),
    [([0.5, 0.5], 3, [2, 1]), ([0.2, 0.5, 0.3], 4, [1, 2, 1]), ([0.1, 0.2, 0.7], 10, [1, 2, 7]), ([0.34, 0.33, 0.33], 2, [1, 1, 0])],
)
def test_what_is_left_goes_to_the_largest_fractions_and_in_a_tie_to_the_first(parts, total, counts):
    assert largest_remainder(parts, total) == counts


@pytest.mark.parametrize(
    ("counts", "sources", "turns"),
    [((2, 1), [0, 1, 0], [0, 0, 1]), ((1, 1), [0, 1], [0, 0]), ((4, 2), [0, 1, 0, 0, 1, 0], [0, 0, 1, 2, 1, 3])],
)
def test_turns_are_spread_evenly_over_a_block(counts, sources, turns):
    source, turn = interleave(counts)  # turn k of c comes at (k + 1/2) / c
    assert (source.tolist(), turn.tolist()) == (sources, turns)


def test_an_epoch_that_ends_with_a_batch_takes_no_step_more():
    order = Order([3], [1.0], seed=0, global_batch=3)
    assert [order.steps(3 * epochs) for epochs in (1, 0.1 * 3 / 0.3, 1.001, 7 * (1 / 7) * 3)] == [1, 1, 2, 3]
