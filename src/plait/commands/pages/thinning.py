"""Thin the points of a curve to what a chart can show, with the smallest and largest value of every column."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Points = Sequence[tuple[float, float]]
"""(x, y) of each point, x rising."""


class Band(NamedTuple):
    """What the points of one column of a chart span: its middle `x`, and the smallest and largest y in it."""

    x: float
    low: float
    high: float


def thin(points: Points, columns: int) -> list[tuple[float, float]]:
    """Return the first, lowest, highest and last point of each of so many equal columns, in order.

    All of them where there are no more. A line through them covers the same pixels as one through all points.
    """
    if len(points) <= 4 * columns:
        return [*points]
    kept: list[tuple[float, float]] = []
    for first, last in _columns(points, columns):
        ys = [y for _, y in points[first:last]]
        wanted = {first, first + int(np.argmin(ys)), first + int(np.argmax(ys)), last - 1}
        kept += [points[i] for i in sorted(wanted)]
    return kept


def bands(points: Points, columns: int) -> list[Band]:
    """Return the smallest and largest y of each of so many equal columns, without those that hold no point."""
    found = []
    for first, last in _columns(points, columns):
        xs, ys = zip(*points[first:last], strict=True)
        found.append(Band((xs[0] + xs[-1]) / 2, min(ys), max(ys)))
    return found


def smooth(points: Points, window: int, breaks: Sequence[float] = ()) -> list[tuple[float, float]]:
    """Return the mean of each point and its neighbours, `window` points in all; fewer of them, symmetrically, near both ends.

    `breaks`: values of x at which something else begins: no mean is of points on both sides of one, a point at it being before it.
    """
    xs, ys = (np.asarray(values, dtype=np.float64) for values in zip(*points, strict=True))
    count = len(ys)
    part = np.searchsorted(np.asarray(sorted(breaks), dtype=np.float64), xs, side="left")
    first, last = np.searchsorted(part, part, side="left"), np.searchsorted(part, part, side="right") - 1
    places = np.arange(count)
    reach = np.minimum(window // 2, np.minimum(places - first, last - places))
    sums = np.concatenate([[0.0], np.cumsum(ys)])
    means = (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)
    return [(x, float(mean)) for (x, _), mean in zip(points, means, strict=True)]


def _columns(points: Points, columns: int) -> list[tuple[int, int]]:
    """Return (first index, index after the last) of the points in each column that has any."""
    xs = np.asarray([x for x, _ in points], dtype=np.float64)
    span = xs[-1] - xs[0]
    column = np.minimum((xs - xs[0]) * columns / span if span > 0 else xs * 0, columns - 1).astype(int)
    starts = [0, *(np.flatnonzero(np.diff(column)) + 1).tolist()]
    return list(zip(starts, [*starts[1:], len(points)], strict=True))
