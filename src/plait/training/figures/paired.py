"""Compare several ways of answering the same samples: differences of their figures, with intervals by a paired bootstrap (Efron 1979).

Paired: each set of samples that the bootstrap draws is scored in all ways. A figure is a number that is computed from many samples; a gain
is positive where the first way of a pair does better, also where lower figures are better.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.training.figures.intervals import percentiles, resampled


@dataclass(frozen=True)
class Difference:
    """How much better one way of answering the same samples does than another in a figure (accuracy, loss, ...).

    `value`: positive for a gain, also where lower figures are better; from `low` to `high` is its 95 % confidence interval.
    """

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """Return 1 for a sure gain, -1 for a sure loss, and 0 where these samples do not tell. Then the interval holds 0."""
        return (self.low > 0) - (self.high < 0)

    def text(self, *, points: bool) -> str:
        """Return the difference with its interval, such as "+0.0310 [+0.0120, +0.0500]".

        `points`: the figure is a share, whose difference is shown in percentage points: "+3.1 points [+1.2, +5.0]".
        """
        low, value, high = (f"{100 * number:+.1f}" if points else f"{number:+.4f}" for number in (self.low, self.value, self.high))
        return f"{value}{' points' * points} [{low}, {high}]"


NONE = Difference(0.0, 0.0, 0.0)
"""The difference of ways that are equal."""


def differences(
    samples: Sequence[Any],
    pairs: Mapping[str, tuple[str, str]],
    figures_of: Callable[[Sequence[Any], str], Mapping[str, float]],
    *,
    lower: bool,
) -> dict[str, dict[str, Difference]]:
    """Compare ways of answering the same samples; return {figure: {pair: difference}} by a paired bootstrap.

    Left out are figures that a way does not have, or that differ in no pair. `samples`: one item per sample with its results in all ways,
    in any form. `pairs`: names of two ways such as "on-off", whose difference is positive where "on" does better.
    `figures_of(samples, way)`: figures by name of some of the samples in one way. `lower`: whether lower figures are the better ones.
    """

    def gains(chosen: Sequence[Any]) -> dict[str, float]:
        ways = {way: figures_of(chosen, way) for way in dict.fromkeys(way for pair in pairs.values() for way in pair)}
        common = [figure for figure in next(iter(ways.values())) if all(figure in values for values in ways.values())]
        better = -1.0 if lower else 1.0
        return {f"{figure} {name}": better * (ways[a][figure] - ways[b][figure]) for figure in common for name, (a, b) in pairs.items()}

    now, drawn = gains(samples), resampled(samples, gains)
    compared = {}
    first = next(iter(pairs))
    for figure in [name.removesuffix(f" {first}") for name in now if name.endswith(f" {first}")]:
        names = {pair: f"{figure} {pair}" for pair in pairs}
        if all(drawn.get(name) for name in names.values()) and any(now[name] or any(drawn[name]) for name in names.values()):
            compared[figure] = {pair: Difference(now[name], *percentiles(drawn[name])) for pair, name in names.items()}
    return compared
