"""Differences between ways of answering the same samples: what pairing is worth, and which way counts as better."""

import math

import pytest

from plait.keys import rng
from plait.training.figures.paired import NONE, Difference, differences

COUNT = 400
HARD, NOISE = rng("hard").normal(0, 10, COUNT), rng("noise").normal(0, 1, COUNT)
SAMPLES = [{"a": hard + noise + 0.5, "b": hard, "c": hard} for hard, noise in zip(HARD, NOISE, strict=True)]


def mean(samples, way):
    return {"score": sum(sample[way] for sample in samples) / len(samples), "samples": float(len(samples))}


@pytest.mark.parametrize("lower", [False, True])
def test_a_difference_is_as_sure_as_that_of_each_sample_whatever_is_common_to_the_ways(lower):
    one = differences(SAMPLES, {"a-b": ("a", "b")}, mean, lower=lower)["score"]["a-b"]
    sign = -1 if lower else 1
    assert one.value == pytest.approx(sign * (NOISE.mean() + 0.5)) and one.sign == sign
    error = NOISE.std() / math.sqrt(COUNT)  # unpaired it would be that of HARD, ten times as wide
    assert (one.high - one.low) == pytest.approx(2 * 1.96 * error, rel=0.15)  # 400 draws know a percentile to about 7 %


def test_ways_that_are_equal_have_no_entry_and_counts_are_no_figures():
    assert differences(SAMPLES, {"b-c": ("b", "c")}, mean, lower=False) == {}
    found = differences(SAMPLES, {"a-b": ("a", "b"), "b-c": ("b", "c")}, mean, lower=False)
    assert found.keys() == {"score"} and found["score"]["b-c"] == NONE


@pytest.mark.parametrize(("ends", "sign"), [((0.1, 0.3), 1), ((-0.3, -0.1), -1), ((-0.1, 0.3), 0), ((0.0, 0.3), 0)])
def test_a_sign_is_told_only_where_the_interval_leaves_out_zero(ends, sign):
    assert Difference(0.1, *ends).sign == sign
