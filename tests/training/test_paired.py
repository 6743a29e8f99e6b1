"""Differences between ways of answering the same samples: what pairing is worth, and which way counts as better."""

import math

import pytest

from plait.keys import rng
from plait.training.figures.intervals import behind
from plait.training.figures.paired import Difference, differences

COUNT = 400
HARD, NOISE = rng("hard").normal(0, 10, COUNT), rng("noise").normal(0, 1, COUNT)
SAMPLES = [{"a": hard + noise + 0.5, "b": hard, "c": hard} for hard, noise in zip(HARD, NOISE, strict=True)]


def mean(samples, way):
    return {"score": sum(sample[way] for sample in samples) / len(samples), "samples": float(len(samples))}


def none(figure):
    """No figure is a mean of values from 0 to 1."""
    return None


@pytest.mark.parametrize("lower", [False, True])
def test_a_difference_is_as_sure_as_that_of_each_sample_whatever_is_common_to_the_ways(lower):
    one = differences(SAMPLES, {"a-b": ("a", "b")}, mean, lower=lower, behind=none)["score"]["a-b"]
    sign = -1 if lower else 1
    assert one.value == pytest.approx(sign * (NOISE.mean() + 0.5)) and one.sign == sign
    error = NOISE.std() / math.sqrt(COUNT)  # unpaired it would be that of HARD, ten times as wide
    assert (one.high - one.low) == pytest.approx(2 * 1.96 * error, rel=0.15)  # 400 draws know a percentile to about 7 %


def test_ways_that_are_equal_have_no_interval_and_counts_are_no_figures():
    found = differences(SAMPLES, {"a-b": ("a", "b"), "b-c": ("b", "c")}, mean, lower=False, behind=none)
    assert found.keys() == {"score"} and found["score"]["b-c"] == Difference(0.0, None, None, COUNT)
    assert found["score"]["b-c"].text(points=False) == "no difference on 400 samples" and found["score"]["b-c"].sign == 0
    assert found["score"]["a-b"].alike == 0 and "alike" not in found["score"]["a-b"].plain()


@pytest.mark.parametrize(
    ("own", "other", "lower", "ends"),
    [  # of at most 1 - 0.05 ** (1 / 20) = 0.1391 of all samples nothing is known: they differ by -1 to 1
        (1.0, 1.0, False, (-0.1391, 0.1391)),
        (1.0, 0.0, False, (1 - 2 * 0.1391, 1.0)),
        (1.0, 0.0, True, (-1.0, 2 * 0.1391 - 1)),
        (0.75, 0.25, False, (0.5 - 0.1391 * 1.5, 0.5 + 0.1391 * 0.5)),
    ],
)
def test_a_share_that_differs_alike_on_all_samples_has_the_exact_interval(own, other, lower, ends):
    found = differences([{"a": own, "b": other}] * 20, {"a-b": ("a", "b")}, mean, lower=lower, behind=lambda figure: 20)
    assert (found["score"]["a-b"].low, found["score"]["a-b"].high) == pytest.approx(ends, abs=1e-4)


def test_one_sample_that_differs_leaves_both_signs_open():
    """Agresti and Min: (1 + 0.5 - 0.5) / 22 is the centre, and two of 22 samples differ."""
    one = differences([{"a": 1.0, "b": 1.0}] * 19 + [{"a": 1.0, "b": 0.0}], {"a-b": ("a", "b")}, mean, lower=False, behind=lambda name: 20)
    centre = 1 / 22
    reach = 1.96 * math.sqrt((2 / 22 - centre**2) / 22)
    assert one["score"]["a-b"].low == pytest.approx(centre - reach, abs=0.01) and one["score"]["a-b"].low < 0 < centre + reach
    assert one["score"]["a-b"].high >= centre + reach - 0.01


def test_a_loss_that_differs_alike_on_all_samples_has_no_interval():
    one = differences([{"a": 1.5, "b": 1.25}], {"a-b": ("a", "b")}, mean, lower=True, behind=none)["score"]["a-b"]
    assert one.text(points=False) == "-0.2500 on each of 1 sample" and one.plain() == {
        "value": -0.25,
        "low": None,
        "high": None,
        "alike": 1,
    }


@pytest.mark.parametrize(
    ("figure", "count"), [("accuracy", 12), ("accuracy/rare", 3), ("task_mean", 2 * 3), ("score", 12), ("score/count_3", 4)]
)
def test_a_figure_is_as_sure_as_the_rows_behind_it_are_many(figure, count):
    rows = [{"task": "rare" if i < 3 else "often", "score": 1.0, **({"score/count_3": 1.0} if i % 3 == 0 else {})} for i in range(12)]
    assert behind(figure, rows) == count


@pytest.mark.parametrize(("ends", "sign"), [((0.1, 0.3), 1), ((-0.3, -0.1), -1), ((-0.1, 0.3), 0), ((0.0, 0.3), 0)])
def test_a_sign_is_told_only_where_the_interval_leaves_out_zero(ends, sign):
    assert Difference(0.1, *ends).sign == sign
