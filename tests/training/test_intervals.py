"""How sure figures are: the bootstrap's intervals against what is known of them."""

import math

import pytest

from plait.engine.evaluation import Bench
from plait.training.figures.intervals import bootstrap, of_small_sample, shown


def accuracy(rows):
    return {"accuracy": sum(row["correct"] for row in rows) / len(rows), "samples": float(len(rows))}


BENCH = Bench(lambda *_, **__: [], accuracy)


@pytest.mark.parametrize(("count", "right"), [(100, 50), (400, 100), (1000, 900)])
def test_an_interval_is_about_four_standard_errors_wide(count, right):
    found = bootstrap(BENCH, [{"correct": i < right} for i in range(count)])
    share = right / count
    error = math.sqrt(share * (1 - share) / count)
    low, high = found.pop("accuracy")
    assert found == {}  # a count has none
    assert low == pytest.approx(share - 1.96 * error, abs=0.35 * error) and high == pytest.approx(share + 1.96 * error, abs=0.35 * error)


def test_two_rows_have_an_interval():
    assert bootstrap(BENCH, [{"correct": True}, {"correct": False}]) == {"accuracy": (0.0, 1.0)}


def test_the_same_rows_give_the_same_interval():
    rows = [{"correct": i % 3 == 0} for i in range(50)]
    assert bootstrap(BENCH, rows) == bootstrap(BENCH, rows)


@pytest.mark.parametrize("rows", [[], [{"correct": True}], [{"distance": 1.0}] * 30])
def test_rows_that_are_not_judged_one_by_one_have_no_interval(rows):
    assert bootstrap(BENCH, rows) == {}


def test_counts_are_whole_numbers():
    names = {"samples": 1200.0, "accuracy/samples": 8.0, "bad_samples": 1.0, "world_tokens": 16.0, "accuracy": 1.0, "mean": 1.5}
    assert [shown(name, value) for name, value in names.items()] == ["1,200", "8", "1", "16", "1.0000", "1.5000"]


@pytest.mark.parametrize(("correct", "ends"), [(False, (0.0, 0.3085)), (True, (0.6915, 1.0))])
def test_answers_that_are_all_alike_have_the_exact_interval(correct, ends):
    rows = [{"correct": correct, "task": "colour"}] * 10
    assert bootstrap(BENCH, rows)["accuracy"] == pytest.approx(ends, abs=1e-4)  # Clopper and Pearson: 1 - 0.025 ** (1 / 10)


def test_an_interval_of_a_task_is_as_wide_as_its_answers_are_few():
    def by_task(rows):
        return {"accuracy": 0.0, "accuracy/colour": 0.0}

    found = bootstrap(Bench(lambda *_, **__: [], by_task), [{"correct": False, "task": ("colour", "shape")[i > 2]} for i in range(10)])
    assert found["accuracy/colour"][1] == pytest.approx(1 - 0.025 ** (1 / 3)) and found["accuracy"][1] == pytest.approx(1 - 0.025**0.1)


def test_a_bench_of_means_has_intervals_without_right_answers():
    bench = Bench(lambda *_, **__: [], lambda rows: {"loss": sum(row["loss"] for row in rows) / len(rows)}, means=True)
    low, high = bootstrap(bench, [{"loss": float(i % 2)} for i in range(100)])["loss"]
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02) and high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)


def test_a_figure_that_is_the_same_for_any_rows_has_no_interval():
    constant = Bench(lambda *_, **__: [], lambda rows: {**accuracy(rows), "world_tokens": 16.0})
    assert bootstrap(constant, [{"correct": i < 5} for i in range(10)]).keys() == {"accuracy"}


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_count_that_is_the_same_in_every_row_has_no_interval_though_it_is_0_or_1(tokens):
    bench = Bench(lambda *_, **__: [], lambda rows: {**accuracy(rows), "world_tokens": float(rows[0]["world_tokens"])})
    rows = [{"correct": i < 5, "world_tokens": tokens} for i in range(10)]
    assert bootstrap(bench, rows).keys() == {"accuracy"}
    assert bootstrap(bench, [{**row, "correct": True} for row in rows]).keys() == {"accuracy"}


def test_training_says_how_sure_figures_of_a_small_sample_are():
    assert of_small_sample(BENCH, [{"correct": True}, {"correct": False}] * 1000).keys() == {"accuracy"}
    assert of_small_sample(BENCH, [{"correct": True}, {"correct": False}] * 1001) == {}
