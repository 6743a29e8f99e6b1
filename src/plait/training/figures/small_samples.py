"""95 % confidence intervals of a figure of few samples that is no share, such as a difference of losses.

A bootstrap's percentiles (Efron 1979) are too narrow there: of 4 samples they hold the truth in 8 of 10 cases. They are joined with
Student's t interval and with a studentised bootstrap's (Efron and Tibshirani 1993, chapter 12), which follows skewed values, but may reach
half as far again as the former at most: of few samples some sets drawn hardly vary, and their ratios are without bound. Both take
the figure for a mean of its jackknife pseudo-values, which of a mean are the samples' own values.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from plait.errors import PlaitError
from plait.keys import rng

FEWEST = 4
"""Samples that move a figure, below which it has no interval, and so no verdict."""
MOST = 400
"""Samples up to which the figure is computed without each of them; of more a bootstrap's percentiles hold."""
_DRAWS = 400
_FURTHEST = 1.5  # times the reach of Student's interval
_EQUAL = 1e-12  # sums of the same numbers in another order
_NORMAL = 1.959964
_FIRST = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646)


def without_each(samples: Sequence[Any], figures_of: Callable[[Sequence[Any]], Mapping[str, float]]) -> dict[str, list[float]]:
    """Return {figure: its values without the first sample, without the second, ...}.

    A sample without which there is no such figure, or `figures_of` raises PlaitError, has no value in the list. Of fewer than 4 samples
    nothing is computed: {}.
    """
    values: dict[str, list[float]] = {}
    if len(samples) < FEWEST:
        return values
    for number in range(len(samples)):
        try:
            figures = figures_of([*samples[:number], *samples[number + 1 :]])
        except PlaitError:
            continue
        for name, value in figures.items():
            values.setdefault(name, []).append(value)
    return values


def interval(value: float, without: Sequence[float], samples: int, ends: tuple[float, float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a figure of `samples` samples, None where fewer than 4 of them move it.

    `without`: its values as of `without_each`; `ends`: the percentiles of a bootstrap, which the interval includes.
    """
    shifts = value - np.asarray(without, np.float64)
    moved = int((np.abs(shifts) > _EQUAL * max(1.0, abs(value))).sum())
    if moved < FEWEST or len(without) < samples:
        return None
    pseudo = value + (samples - 1) * shifts
    error = float(pseudo.std(ddof=1)) / math.sqrt(samples)
    reach = t_quantile(moved - 1) * error
    low, high = _studentised(pseudo)
    furthest = _FURTHEST * t_quantile(moved - 1)
    lowest = value - min(max(high, 0.0), furthest) * error
    highest = value - max(min(low, 0.0), -furthest) * error
    return float(min(ends[0], value - reach, lowest)), float(max(ends[1], value + reach, highest))


def _studentised(values: np.ndarray) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentiles of (drawn mean - mean) / its standard error, over 400 sets drawn by a fixed seed."""
    count = len(values)
    drawn = values[rng("studentised", count).integers(0, count, (_DRAWS, count))]
    shifts, errors = drawn.mean(1) - values.mean(), drawn.std(1, ddof=1) / math.sqrt(count)
    sure = errors > _EQUAL * max(1.0, float(np.abs(values).max()))
    ratios = np.where(sure, shifts / np.where(sure, errors, 1.0), np.copysign(np.finfo(np.float64).max, shifts))
    low, high = np.percentile(ratios, [2.5, 97.5], method="nearest")
    return float(low), float(high)


def t_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t with so many degrees of freedom, from 1 on.

    From 8 on by Cornish and Fisher's expansion (Abramowitz and Stegun 26.7.5), which is off by less than 0.001.
    """
    if freedom <= len(_FIRST):
        return _FIRST[freedom - 1]
    z = _NORMAL
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
