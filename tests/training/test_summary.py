"""What a stage says of its mixture: the share asked of each source beside the share its order gives, which the order itself counts out."""

from collections import Counter
from types import SimpleNamespace

from plait.assembly.data import TrainingData
from plait.data.order import Order
from plait.training.summary import planned_shares, realised


def data(names, weights):
    """Training data of sources with these names."""
    return TrainingData([SimpleNamespace(name=name) for name in names], weights)


def test_the_shares_said_are_those_that_a_block_of_the_order_draws():
    weights, batch = [3.0, 1.0, 1.0], 7  # a batch of 7 cannot hold 60, 20 and 20 %
    order = Order([50, 9, 400], weights, seed=0, global_batch=batch)
    steps = sum(order.counts) // batch
    drawn = Counter(identity.source for step in range(steps) for identity in order.ids(step))
    said = planned_shares(["a", "b", "c"], weights, order.counts)
    for source, (line, asked) in enumerate(zip(said, ("60.00%", "20.00%", "20.00%"), strict=True)):
        assert line.split()[:3] == ["abc"[source], "asked", asked]
        assert line.endswith(f"gets {drawn[source] / (steps * batch):.2%}")


def test_a_share_that_no_block_can_give_is_said_as_it_is():
    assert planned_shares(["a", "b"], [1, 2], [1, 3]) == [
        f"{'a':<18} asked 33.33% of the samples, gets 25.00%",
        f"{'b':<18} asked 66.67% of the samples, gets 75.00%",
    ]


def test_the_end_of_a_stage_says_what_each_source_gave_beside_what_was_asked():
    totals = {"drawn/a/samples": 30, "drawn/b/samples": 10, "drawn/a/supervised_tokens": 5, "drawn/b/supervised_tokens": 15}
    totals |= {"drawn/a/loss": 1.0, "drawn/b/loss": 1.0, "samples": 40}
    assert realised(data(["a", "b"], [3.0, 1.0]), totals) == [
        f"{'a':<18} asked 75.00% of the samples; gave 75.00% of samples, 25.00% of supervised tokens, 50.00% of loss weight",
        f"{'b':<18} asked 25.00% of the samples; gave 25.00% of samples, 75.00% of supervised tokens, 50.00% of loss weight",
    ]
    assert realised(data(["a"], [1.0]), {"samples": 40}) == []


def test_sources_of_one_name_are_told_apart():
    assert data(["a", "b", "a", "a"], [1.0] * 4).names() == ["a", "b", "a (2)", "a (3)"]


def test_one_source_alone_has_no_shares_to_tell():
    assert planned_shares(["a"], [2.0], [16]) == []
