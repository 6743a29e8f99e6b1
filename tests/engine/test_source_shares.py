"""What each source of a mixture gave: shares of samples, tokens and loss weight, of one stage, over as many micro-batches as there are."""

import pytest

from plait.engine import source_shares

from .toy import Id, SquaredError, make_config, make_state, micro, step_batch


def mixed(indices, padding=False):
    found = micro(indices, padding)
    found.ids = [Id(i % 2, i, 0) for i in indices]
    return found


def test_shares_are_parts_of_each_quantity_and_say_what_loss_weight_went_where(make_loop):
    config = make_config()
    state = make_state(config)
    loop = make_loop(state, config)
    loop.sources = ["even", "odd"]
    for step, micros in enumerate(([mixed([0, 1, 2]), mixed([5, 8])], [mixed([3, 4, 6]), mixed([7], padding=True)])):
        loop.step(state.model, step_batch(step, micros), 100, audit=False)
    odd, every = [1, 5, 3], [0, 1, 2, 5, 8, 3, 4, 6]
    weight = sum(1 + i % 3 for i in odd) / sum(1 + i % 3 for i in every)  # the toy's weights
    found = source_shares.shares(state.totals)
    assert found["share/odd/samples"] == found["share/odd/tokens"] == 3 / 8
    assert found["share/odd/error"] == pytest.approx(weight, abs=1e-12)
    assert found["share/even/error"] == pytest.approx(1 - weight, abs=1e-12)


def test_a_stage_counts_from_its_own_start():
    state = make_state(make_config())
    state.count({"samples": 8, "drawn/a/samples": 8})
    state.enter(1, 4, 100)
    assert source_shares.shares(state.totals) == {"share/a/samples": 1.0}
    state.enter(2, 4, 100)
    assert source_shares.shares(state.totals) == {}
    assert state.totals["samples"] == 8


def test_a_quantity_that_nobody_gave_is_left_out():
    assert source_shares.shares({"drawn/a/samples": 3.0, "drawn/b/samples": 1.0, "drawn/a/loss": 0.0, "drawn/b/loss": 0.0}) == {
        "share/a/samples": 0.75,
        "share/b/samples": 0.25,
    }


def test_of_one_source_nothing_is_counted():
    assert source_shares.amounts(SquaredError(), [micro([1, 2])], ["alone"]) == {}
