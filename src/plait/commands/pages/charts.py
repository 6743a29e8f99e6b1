"""Lay out histograms as SVG: bars, axes with units, and the median as a line. The template figures.html.j2 draws what is laid out here."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from plait.data.figures.series import Histogram, Series

WIDTH, HEIGHT = 360, 176
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 36
_TICKS = 6


class Bar(NamedTuple):
    """A bar: place and size in the units of the picture, and what it stands for."""

    x: float
    y: float
    width: float
    height: float
    text: str


class Chart(NamedTuple):
    """A histogram laid out: title, a line about it, bars, ticks as (place, label), and the place of the median."""

    title: str
    summary: str
    unit: str
    bars: list[Bar]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    median: float | None


def chart(title: str, series: Series, what: str) -> Chart:
    """Lay out the histogram of a series of numbers. `what`: what is counted, such as "pictures"."""
    histogram, show = series.histogram(), _writer(series.unit)
    place = _placer(histogram)
    middle = 0.5 if series.whole and not histogram.logarithmic and histogram.edges[1] - histogram.edges[0] == 1 else 0.0
    most = max(histogram.counts)
    y_most, y_values = _y_axis(most)
    bars = []
    for low, high, count in zip(histogram.edges, histogram.edges[1:], histogram.counts, strict=False):
        if count:
            left, right = place(low), place(high)
            height = max(1.0, (HEIGHT - TOP - BOTTOM) * count / y_most)
            end = f" to {show(high)}" if high - low > 1 or not series.whole else ""
            text = f"{show(low)}{end}: {count:,} {what}"
            bars.append(Bar(round(left + 0.5, 2), round(HEIGHT - BOTTOM - height, 2), round(max(1.0, right - left - 1), 2), height, text))
    summary = series.summary()
    points = ("min", "p5", "median", "p95", "max")
    told = ", ".join(f"{name.replace('p5', '5 %').replace('p95', '95 %')} {show(summary[name])}" for name in points) if summary else "none"
    shown_unit = "" if series.unit in ("bytes", "width / height") else f" {series.unit}"
    ticks = [value + middle for value in _x_values(histogram, series)]
    return Chart(
        title=title,
        summary=f"{len(series):,} {what}; {told}{shown_unit}",
        unit=series.unit,
        bars=bars,
        x_ticks=[(round(place(value), 2), show(value - middle)) for value in ticks if value <= histogram.edges[-1]],
        y_ticks=[(round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / y_most, 2), _short(value)) for value in y_values],
        median=round(place(min(summary["median"] + middle, histogram.edges[-1])), 2) if summary else None,
    )


def _placer(histogram: Histogram) -> Callable[[float], float]:
    low, high = histogram.edges[0], histogram.edges[-1]

    def scale(value: float) -> float:
        return math.log(value) if histogram.logarithmic else value

    def place(value: float) -> float:
        share = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    return place


def _y_axis(most: int) -> tuple[float, list[float]]:
    """Return the top of the axis of counts, and the values at its ticks: two or three round ones."""
    step = _round_step(most / 2.2)
    step = max(1.0, step)
    values = [step * k for k in range(int(most / step) + 1)]
    return max(float(most), values[-1]), values


def _round_step(rough: float) -> float:
    """Return the round number, 1, 2 or 5 times a power of ten, that is nearest below `rough`."""
    power: float = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next(factor * power for factor in (5, 2, 1) if factor * power <= rough * 1.0001)


def _x_values(histogram: Histogram, series: Series) -> list[float]:
    """Return round numbers for the ticks of the axis of values, at most six."""
    low, high = histogram.edges[0], histogram.edges[-1]
    if series.unit == "width / height":
        ratios = (1 / 8, 1 / 5, 1 / 3, 1 / 2, 2 / 3, 1, 3 / 2, 2, 3, 5, 8)
        return [ratio for ratio in ratios if low <= ratio <= high][:: 1 if high / low < 12 else 2] or [low]
    if not histogram.logarithmic:
        step = max(_round_step((high - low) / 3.2), 1.0 if series.whole else 0.0)
        first = math.ceil(low / step) * step
        return [first + k * step for k in range(int((high - first) / step) + 1) if first + k * step <= high][:_TICKS] or [low]
    if series.unit == "px":
        values = [2.0**k for k in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    else:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors: Sequence[int] = (1, 2, 5) if high / low < 200 else (1, 3) if high / low < 2000 else (1,)
        values = [factor * 10.0**k for k in decades for factor in factors]
        values = [value for value in values if low <= value <= high]
    every = -(-len(values) // _TICKS)
    return values[::every] if values else [low]


def _writer(unit: str) -> Callable[[float], str]:
    """Return a function that writes a value of a unit, short."""
    return {"bytes": _bytes, "width / height": _ratio}.get(unit, _short)


def _bytes(value: float) -> str:
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f} B"


def _ratio(value: float) -> str:
    known = {0.125: "1:8", 0.2: "1:5", 0.333: "1:3", 0.5: "1:2", 0.667: "2:3", 1.0: "1:1", 1.5: "3:2", 2.0: "2:1", 3.0: "3:1", 5.0: "5:1"}
    return known.get(round(value, 3), f"{value:.2f}" if value < 8 else f"{value:.3g}:1")


def _short(value: float) -> str:
    for size, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if name == 'k' else size):.4g}{name}"
    return f"{value:,.4g}"
