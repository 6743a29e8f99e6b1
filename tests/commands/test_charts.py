"""Charts: what thinning keeps, how means are taken, where ticks stand, and what a reader is told."""

import math
import re

import numpy as np
import pytest

from plait.commands.pages import axes, chart, thinning
from plait.commands.pages.chart import Chart, Frame, Line

NOISE = np.random.default_rng(0)
LONG = [(float(step), float(value)) for step, value in enumerate(NOISE.standard_normal(10_000), 1)]


def pixels(path):
    """The points of SVG path data as chart.py writes it: the first absolute, the others relative to the one before."""
    numbers = [float(number) for number in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", path)]
    steps = np.asarray(numbers).reshape(-1, 2)
    return np.cumsum(steps, axis=0).round(1)


def test_thinning_keeps_the_first_lowest_highest_and_last_of_every_column():
    kept = thinning.thin(LONG, 100)
    assert len(kept) <= 400
    assert kept == sorted(set(kept)) and set(kept) <= set(LONG)
    for column in range(100):
        inside = [point for point in LONG if column == min(99, int((point[0] - 1) * 100 / 9999))]
        wanted = {inside[0], inside[-1], min(inside, key=lambda point: point[1]), max(inside, key=lambda point: point[1])}
        assert wanted == {point for point in kept if point in set(inside)}


def test_few_points_are_all_kept():
    assert thinning.thin(LONG[:40], 10) == LONG[:40]


def test_a_band_spans_what_its_column_holds_and_columns_without_points_have_none():
    points = [(0.0, 1.0), (1.0, 3.0), (1.5, 2.0), (100.0, -1.0)]
    assert thinning.bands(points, 10) == [(0.75, 1.0, 3.0), (100.0, -1.0, -1.0)]


@pytest.mark.parametrize("breaks", [(), (40.0,), (0.0, 17.0, 60.0)])
def test_a_mean_is_of_the_neighbours_in_its_own_stage(breaks):
    points = LONG[:100]
    parts = [sum(x > begin for begin in breaks) for x, _ in points]
    for i, (x, value) in enumerate(thinning.smooth(points, 9, breaks)):
        own = [j for j in range(100) if parts[j] == parts[i]]
        reach = min(4, i - own[0], own[-1] - i)
        near = [points[j][1] for j in range(i - reach, i + reach + 1)]
        assert (x, value) == (points[i][0], pytest.approx(sum(near) / len(near), abs=1e-12))  # cumulated sums round otherwise


@pytest.mark.parametrize(("low", "high"), [(0, 261), (0.31, 6.4), (-3, 3), (1e-7, 3e-3), (5, 5), (0, 0), (98_000, 1_200_000)])
def test_ticks_of_a_linear_axis_are_round_even_and_hold_all_values(low, high):
    axis = axes.linear(low, high, 200, 0)
    values = [value for value, _ in axis.ticks]
    steps = np.diff(values)
    assert axis.low <= low <= high <= axis.high and 2 <= len(values) <= 8
    assert np.allclose(steps, steps[0]) and float(f"{steps[0]:.2g}") == pytest.approx(steps[0])
    assert len({text for _, text in axis.ticks}) == len(values), "no two ticks read the same"
    assert axis.at(axis.low) == 200 and axis.at(axis.high) == 0


def test_an_axis_is_logarithmic_where_positive_values_span_ten_times():
    assert axes.of_values([0.4, 6.0], 100, 0).log and not axes.of_values([1.0, 6.0], 100, 0).log
    assert not axes.of_values([-1.0, 600.0], 100, 0).log and not axes.of_values([0.4, 60.0], 100, 0, log=False).log
    axis = axes.of_values([0.01, 1.0], 100.0, 0.0)
    assert [text for _, text in axis.ticks] == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]
    assert axis.at(0.1) == pytest.approx(50, abs=0.2) and axis.at(0) == 100


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (2000, "2k"), (1_500_000, "1.5M"), (0.25, "0.25"), (1e-5, "1e-5"), (2.5e-4, "0.00025"), (2.5e-6, "2.5e-6"), (-40, "-40")],
)
def test_ticks_are_short(value, text):
    assert axes.compact(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.32714, "0.3271"), (12430.4, "12,430"), (7.0, "7"), (3.2e-5, "3.2e-05"), (math.nan, "not finite")]
)
def test_figures_have_four_digits(value, text):
    assert axes.number(value) == text


def test_a_spike_among_ten_thousand_steps_is_in_the_chart():
    spiked = [(x, 40.0 if x == 5003 else y) for x, y in LONG]
    drawing = chart.draw(Chart("loss", [Line("training", spiked, noisy=True)], log=False), Frame(10_000.0))
    (line,) = drawing.lines
    spike = (drawing.x_axis.at(5003), drawing.y_axis.at(40.0))
    band = pixels(line.band)
    assert band[:, 1].min() == spike[1]
    assert abs(band[band[:, 1].argmin()][0] - spike[0]) <= 1
    assert len(line.band) + len(line.path) < 20_000
    assert drawing.note == "line: mean of 201 records; pale: all of them"


def test_a_thinned_line_reaches_the_extremes():
    drawing = chart.draw(Chart("rate", [Line("lr", LONG)]), Frame(10_000.0))
    ys = pixels(drawing.lines[0].path)[:, 1]
    values = [y for _, y in LONG]
    assert {ys.min(), ys.max()} == {drawing.y_axis.at(max(values)), drawing.y_axis.at(min(values))}


def test_values_that_are_not_finite_are_marked_and_told():
    points = [(1.0, 2.0), (2.0, math.nan), (3.0, math.inf), (4.0, 3.0)]
    drawing = chart.draw(Chart("loss", [Line("training", points)]), Frame(4.0))
    assert [text for _, text in drawing.lost] == ["training at step 2: nan", "training at step 3: inf"]
    assert drawing.note == "2 not finite, marked above"
    assert chart.draw(Chart("loss", [Line("training", [(1.0, math.nan)])]), Frame(1.0)) is None


def test_what_a_logarithmic_axis_cannot_show_is_told():
    drawing = chart.draw(Chart("norm", [Line("vision", [(1.0, 0.0), (2.0, 0.01), (3.0, 5.0)])]), Frame(3.0))
    assert drawing.note == "logarithmic; 0 stands at the lower edge"
    assert pixels(drawing.lines[0].path)[0][1] == drawing.y_axis.start


def test_a_ninth_line_takes_the_first_colour_again_dashed():
    lines = [Line(str(i), [(0.0, i), (1.0, i)]) for i in range(10)]
    drawn = chart.draw(Chart("many", lines), Frame(1.0)).lines
    assert [(line.colour, line.dashed) for line in drawn[7:]] == [(7, False), (0, True), (1, True)]


def test_a_single_record_is_a_dot_and_intervals_are_bars():
    drawing = chart.draw(Chart("accuracy", [Line("colour", [(5.0, 0.5)], marks=True, intervals={5.0: (0.25, 1.0)})]), Frame(10.0))
    (line,) = drawing.lines
    assert (line.path, len(line.dots), drawing.note) == ("", 1, "95 % intervals")
    assert line.bars == [(drawing.x_axis.at(5.0), drawing.y_axis.at(0.25), drawing.y_axis.at(1.0))]
