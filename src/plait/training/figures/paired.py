"""Compare several ways of answering the same samples: differences of their figures, with intervals by a paired bootstrap (Efron 1979).

Paired: each set of samples that the bootstrap draws is scored in all ways. A figure is a number that is computed from many samples; a gain
is positive where the first way of a pair does better, also where lower figures are better.

Where all samples differ alike, as where none does, a bootstrap draws nothing else, and says nothing. Of shares (means of values from 0 to
1) there is an exact interval then: at most 1 - 0.05^(1/n) of all samples behave otherwise than these n (Clopper and Pearson 1934), and
those differ by -1 to 1. Where few samples of a share differ, a bootstrap's interval is too narrow, and ends at 0 where all of them are of
one sign: there it is joined with that of two added samples, of which half a sample differs each way (Agresti and Min 2005). Figures that
are no shares, such as losses, have the interval of training/figures/small_samples.py up to 400 samples.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plait.engine.evaluation import is_count
from plait.training.figures.intervals import percentiles, resampled
from plait.training.figures.small_samples import MOST, interval, without_each

_EQUAL = 1e-12  # sums of the same numbers in another order
_FEW = 20  # samples that differ; of more, the two intervals hold the truth as often


@dataclass(frozen=True)
class Difference:
    """How much better one way of answering the same samples does than another in a figure (accuracy, loss, ...).

    `value`: positive for a gain, also where lower figures are better; from `low` to `high` is its 95 % confidence interval, None where
    none can be given. `alike`: the number of samples, where all of them have this difference, else 0: then, without an interval, they are
    too few for one.
    """

    value: float
    low: float | None
    high: float | None
    alike: int = 0

    @property
    def sign(self) -> int:
        """Return 1 for a sure gain, -1 for a sure loss, and 0 where these samples do not tell. Then the interval holds 0."""
        return 0 if self.low is None or self.high is None else (self.low > 0) - (self.high < 0)

    @property
    def ends(self) -> tuple[float, float] | None:
        """Return the ends of the interval, None where no sample differs or none can be given."""
        return None if self.low is None or self.high is None or (self.alike and not self.value) else (self.low, self.high)

    def plain(self) -> dict[str, Any]:
        """Return {"value", "low", "high"}, for JSON, and where all samples have this difference their number, "alike"."""
        return {"value": self.value, "low": self.low, "high": self.high} | ({"alike": self.alike} if self.alike else {})

    def text(self, *, points: bool) -> str:
        """Return the difference with its interval, such as "+0.0310 [+0.0120, +0.0500]".

        `points`: the figure is a share, whose difference is shown in percentage points: "+3.1 points [+1.2, +5.0]". Without an interval:
        "no difference on 20 samples", "+0.0310 on each of 20 samples", or "+0.0310 (too few samples for an interval)".
        """
        if self.low is None or self.high is None:
            if not self.alike:
                return f"{_told(self.value, points)} (too few samples for an interval)"
            on = f"{self.alike:,} sample{'s' * (self.alike != 1)}"
            return f"{_told(self.value, points)} on each of {on}" if self.value else f"no difference on {on}"
        low, high = (_told(end, points, unit="") for end in (self.low, self.high))
        return f"{_told(self.value, points)} [{low}, {high}]"


def _told(number: float, points: bool, unit: str = " points") -> str:
    return f"{100 * number:+.1f}{unit}" if points else f"{number:+.4f}"


def differences(
    samples: Sequence[Any],
    pairs: Mapping[str, tuple[str, str]],
    figures_of: Callable[[Sequence[Any], str], Mapping[str, float]],
    *,
    lower: bool,
    behind: Callable[[str], int | None],
) -> dict[str, dict[str, Difference]]:
    """Compare ways of answering the same samples; return {figure: {pair: difference}} by a paired bootstrap.

    Left out are counts, and figures that a way does not have. `samples`: one item per sample with its results in all ways, in any form.
    `pairs`: names of two ways such as "on-off", whose difference is positive where "on" does better. `figures_of(samples, way)`: figures
    by name of some of the samples in one way. `lower`: whether lower figures are the better ones. `behind(figure)`: of how many samples a
    figure is the mean, if it is one of values from 0 to 1; None for any other.
    """

    def gains(chosen: Sequence[Any]) -> dict[str, float]:
        ways = {way: figures_of(chosen, way) for way in dict.fromkeys(way for pair in pairs.values() for way in pair)}
        first = next(iter(ways.values()))
        common = [figure for figure in first if not is_count(figure) and all(figure in values for values in ways.values())]
        better = -1.0 if lower else 1.0
        return {f"{figure} {name}": better * (ways[a][figure] - ways[b][figure]) for figure in common for name, (a, b) in pairs.items()}

    now, drawn = gains(samples), resampled(samples, gains)
    without: dict[str, list[float]] | None = None
    compared = {}
    first = next(iter(pairs))
    for figure in [name.removesuffix(f" {first}") for name in now if name.endswith(f" {first}")]:
        names = {pair: f"{figure} {pair}" for pair in pairs}
        if all(drawn.get(name) for name in names.values()):
            count = behind(figure)
            if count is None and without is None and len(samples) <= MOST:
                without = without_each(samples, gains)
            compared[figure] = {
                pair: _of_share(now[name], drawn[name], count)
                if count is not None
                else _of_loss(now[name], drawn[name], len(samples), None if without is None else without.get(name, []))
                for pair, name in names.items()
            }
    return compared


def _varies(value: float, drawn: Sequence[float]) -> bool:
    """Return whether the sets of samples drawn have other differences than `value`."""
    return not max(drawn) - min(drawn) <= _EQUAL * max(1.0, abs(value))


def _of_share(value: float, drawn: Sequence[float], behind: int) -> Difference:
    """Return a share's difference with its interval. `drawn`: its values on the sets of samples drawn; `behind`: as of `differences`."""
    if _varies(value, drawn):
        low, high = percentiles(drawn)
        added = _of_few(value, float(np.var(drawn)), behind)
        return Difference(value, min(low, added[0]), max(high, added[1]))
    reach = 1 - 0.05 ** (1 / behind)
    return Difference(value, value - reach * (1 + value), value + reach * (1 - value), behind)


def _of_loss(value: float, drawn: Sequence[float], samples: int, without: Sequence[float] | None) -> Difference:
    """Return the difference of a figure that is no share, of so many samples. `without`: as of `without_each`; None for many."""
    if not _varies(value, drawn):
        return Difference(value, None, None, samples)
    ends = percentiles(drawn)
    if without is None or not math.isfinite(value):
        return Difference(value, *ends)
    held = interval(value, without, samples, ends)
    return Difference(value, None, None) if held is None else Difference(value, *held)


def _of_few(value: float, variance: float, count: int) -> tuple[float, float]:
    """Return Agresti and Min's 95 % interval of a share's difference, `value` on `count` samples; (`value`, `value`) where many differ.

    `variance`: of the difference, from which the mean of its square follows, for right and wrong answers the share that differs.
    """
    square = count * variance + value**2
    if count * square >= _FEW:
        return value, value
    total = count + 2
    centre, spread = count * value / total, (count * square + 1) / total
    reach = 1.96 * math.sqrt(max(spread - centre**2, 0.0) / total)
    return max(centre - reach, -1.0), min(centre + reach, 1.0)
