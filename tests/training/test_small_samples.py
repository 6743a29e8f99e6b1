"""Intervals of figures of few samples that are no shares: how wide they are, how often they hold the truth, and where there are none."""

import math
from dataclasses import replace

import numpy as np
import pytest

from plait.engine.evaluation import Bench
from plait.errors import PlaitError
from plait.keys import rng
from plait.training.figures import forgetting
from plait.training.figures.intervals import bootstrap
from plait.training.figures.paired import Difference, differences
from plait.training.figures.small_samples import interval, t_quantile, without_each


def mean(samples, way):
    return {"loss": sum(sample[way] for sample in samples) / len(samples)}


def gain(values, **given):
    rows = [{"a": 0.0, "b": float(value)} for value in values]
    return differences(rows, {"a-b": ("a", "b")}, given.get("figures", mean), lower=True, behind=lambda name: None)["loss"]["a-b"]


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (3, 3.1824), (5, 2.5706), (7, 2.3646), (15, 2.1314), (63, 1.9983)])
def test_the_quantiles_are_those_of_the_tables_of_students_t(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, abs=1e-3)


def test_an_interval_of_few_samples_is_at_least_students():
    values = np.array([0.1, 0.4, 0.2, 0.7, 0.3])
    reach = 2.7764 * values.std(ddof=1) / math.sqrt(5)
    one = gain(values)
    assert one.low <= values.mean() - reach + 1e-9 and one.high >= values.mean() + reach - 1e-9


@pytest.mark.parametrize(("samples", "least"), [(4, 0.93), (8, 0.93), (16, 0.93)])  # 200 trials: the standard error of 95 % is 1.5 points
def test_intervals_of_normal_differences_hold_the_truth_in_95_of_100_cases(samples, least):
    found = [gain(rng("held", samples, number).normal(0.5, 1, samples)) for number in range(200)]
    assert sum(one.low <= 0.5 <= one.high for one in found) / 200 >= least


def test_an_interval_of_skewed_differences_reaches_further_to_where_the_tail_is():
    values = np.exp(rng("skewed").normal(0, 1, 16))
    one = gain(values)
    assert one.high - one.value > 1.3 * (one.value - one.low)


@pytest.mark.parametrize("count", [2, 3])
def test_under_four_samples_a_loss_has_no_interval_and_no_verdict(count):
    one = gain([0.5, 0.51, 0.52][:count])
    assert (one.low, one.high, one.sign, one.ends) == (None, None, 0, None)
    assert one.text(points=False).endswith("(too few samples for an interval)") and one.plain().keys() == {"value", "low", "high"}


def test_a_figure_of_three_of_many_samples_has_none_either_and_one_of_four_has():
    def of_first(count):
        return lambda samples, way: {"loss": float(np.mean([one[way] for one in samples if one["b"] < count] or [0.0]))}

    assert gain(range(20), figures=of_first(3)).low is None and gain(range(20), figures=of_first(4)).low is not None


def test_what_is_not_computed_without_a_sample_has_no_value():
    def figures(samples):
        if 2 not in samples:
            raise PlaitError("no sample can be used")
        return {"loss": float(sum(samples))} | ({"rare": 1.0} if 3 in samples else {})

    assert without_each([1, 2, 3, 4], figures) == {"loss": [9.0, 7.0, 6.0], "rare": [1.0, 1.0]} and without_each([2, 3, 4], figures) == {}
    assert interval(1.0, [0.0, 2.0, 3.0, 4.0], 5, (0.0, 1.0)) is None


def test_of_many_samples_the_percentiles_are_the_interval():
    values = rng("many").normal(0, 1, 401)
    one, fewer = gain(values), gain(values[:400])
    assert one.high - one.low == pytest.approx(2 * 1.96 / math.sqrt(401), rel=0.15) and fewer.high - fewer.low < 1.4 * (one.high - one.low)


def test_the_text_of_a_difference_of_two_samples():
    assert Difference(0.031, None, None).text(points=False) == "+0.0310 (too few samples for an interval)"


def test_the_ledger_is_not_sure_of_a_loss_of_three_samples_and_sure_of_one_of_four():
    bench = Bench(lambda *_, **__: [], lambda rows: {"loss": sum(row["loss"] for row in rows) / len(rows)}, means=True, lower=True)
    before = [{"id": str(number), "loss": 2.0} for number in range(4)]
    after = [{"id": str(number), "loss": 1.0 + 0.01 * number} for number in range(4)]
    few, enough = (forgetting.entries("s", "loss", bench, before[:n], after[:n], against="x", on="y")[0] for n in (3, 4))
    assert (few.low, few.verdict, enough.verdict) == (None, "not sure", "better") and enough.high < 0


def test_the_ledger_compares_no_figures_that_only_describe():
    rows = [{"id": str(number), "change": float(number)} for number in range(8)]
    bench = Bench(lambda *given, **named: [], lambda rows: {"change": sum(row["change"] for row in rows) / len(rows)}, means=True)
    told = [
        forgetting.entries("s", "edit", one, rows[:4], rows[:4], against="x", on="y") for one in (bench, replace(bench, describes=True))
    ]
    assert [len(listed) for listed in told] == [1, 0]


@pytest.mark.parametrize(("samples", "least"), [(4, 0.93), (16, 0.93)])
def test_the_interval_of_a_single_loss_of_few_samples_holds_the_truth_too(samples, least):
    bench = Bench(lambda *given, **named: [], lambda rows: {"loss": sum(row["loss"] for row in rows) / len(rows)}, means=True, lower=True)
    held = 0
    for number in range(200):
        values = rng("single", samples, number).normal(0.5, 1, samples)
        low, high = bootstrap(bench, [{"id": str(place), "loss": float(value)} for place, value in enumerate(values)])["loss"]
        held += low <= 0.5 <= high
    assert held / 200 >= least
    assert bootstrap(bench, [{"id": str(number), "loss": float(number)} for number in range(3)]) == {}
