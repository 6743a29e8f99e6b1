"""Compare the answers to the same samples with an input, without it and with another sample's: differences, and what they say.

Differences are paired: each set of samples that the bootstrap draws is scored in all three ways. A gain is positive where the model does
better with its own input, also where lower figures are better. Rows are those of an ablated bench (families/ablation.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plait.engine.evaluation import Bench, Row, usable
from plait.families.ablation import WAYS, Ablated, of_way
from plait.training.figures.intervals import percentiles, resampled, shown


@dataclass(frozen=True)
class Difference:
    """How much better one way does than another in a figure, with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """Return 1 for a sure gain, -1 for a sure loss, and 0 where these samples do not tell."""
        return (self.low > 0) - (self.high < 0)

    def text(self, *, points: bool) -> str:
        """Return the difference with its interval, such as "+3.1 points [+1.2, +5.0]"; without `points` as "+0.0310 [+0.0120, +0.0500]"."""
        low, value, high = (f"{100 * number:+.1f}" if points else f"{number:+.4f}" for number in (self.low, self.value, self.high))
        return f"{value}{' points' * points} [{low}, {high}]"


@dataclass(frozen=True)
class Comparison:
    """A figure in the three ways, by way, and its differences: "on-off", "on-shuffled" and "shuffled-off"."""

    figure: str
    values: Mapping[str, float]
    differences: Mapping[str, Difference]
    points: bool
    """Whether the figure is a share of right answers, whose differences are told in percentage points."""


def compare(ablated: Ablated, rows: Sequence[Row]) -> list[Comparison]:
    """Return the comparison of each figure of an ablated bench, the main one first. [] where no row can be used, or nothing is measured."""
    used, bench = usable(rows), ablated.single
    if not used:
        return []
    ways = {way: of_way(bench, used, way) for way in ("on", "off", "shuffled")}
    if not ways["on"]:
        return []  # a bench that draws, and measures nothing
    now, drawn = _gains(bench, used), resampled(used, lambda chosen: _gains(bench, chosen))
    compared = []
    for figure in ways["on"]:
        names = [f"{figure} {pair}" for pair in _PAIRS]
        if all(name in now and drawn.get(name) for name in names) and any(now[name] or any(drawn[name]) for name in names):
            differences = {pair: Difference(now[name], *percentiles(drawn[name])) for pair, name in zip(_PAIRS, names, strict=True)}
            points = any("correct" in row for row in used) and all(0 <= values[figure] <= 1 for values in ways.values())
            compared.append(Comparison(figure, {way: values[figure] for way, values in ways.items()}, differences, points))
    return compared or [_no_difference(ways, used)]


_PAIRS = ("on-off", "on-shuffled", "shuffled-off")


def _gains(bench: Bench, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return {"FIGURE PAIR": how much better its first way does} of these rows, for figures that all ways have."""
    ways = {way: of_way(bench, rows, way) for way in ("on", "off", "shuffled")}
    better = -1.0 if bench.lower else 1.0
    figures = [figure for figure in ways["on"] if all(figure in values for values in ways.values())]
    pairs = [(pair, *pair.split("-")) for pair in _PAIRS]
    return {f"{figure} {pair}": better * (ways[a][figure] - ways[b][figure]) for figure in figures for pair, a, b in pairs}


def _no_difference(ways: Mapping[str, Mapping[str, float]], rows: Sequence[Row]) -> Comparison:
    """Return the comparison of the main figure of ways that are all equal."""
    figure = next(iter(ways["on"]))
    same = {pair: Difference(0.0, 0.0, 0.0) for pair in _PAIRS}
    return Comparison(figure, {way: values[figure] for way, values in ways.items()}, same, any("correct" in row for row in rows))


def verdict(name: str, comparison: Comparison, samples: int) -> str:
    """Return in a sentence what the comparison of a bench's main figure says of the input `name`, measured on so many samples."""
    gain, content, presence = (comparison.differences[pair] for pair in _PAIRS)
    told = {pair: difference.text(points=comparison.points) for pair, difference in comparison.differences.items()}
    parts = [
        f"on {_verb(gain)} off ({told['on-off']})",
        f"on {_verb(content)} shuffled ({told['on-shuffled']})",
        f"shuffled {_verb(presence)} off ({told['shuffled-off']})",
    ]
    return f"{comparison.figure}: {'; '.join(parts)}: {_meaning(name, gain.sign, content.sign, samples)}"


def _verb(difference: Difference) -> str:
    return {1: "beats", -1: "loses to", 0: "is level with"}[difference.sign]


def _meaning(name: str, gain: int, content: int, samples: int) -> str:
    """Return what the signs of on against off (`gain`) and of on against shuffled (`content`) mean."""
    if gain > 0:
        return f"the content of {name} is used" if content > 0 else f"{name} helps, but another sample's does as well: not its content"
    if gain < 0:
        return f"{name} hurts" + (", though its content is read" if content > 0 else "")
    if content > 0:
        return f"the content of {name} is read (another's misleads), but nothing is gained over having none"
    return f"no use of {name} shows in {samples:,} samples"


def lines(name: str, compared: Sequence[Comparison], samples: int) -> list[str]:
    """Return a table of all figures in the three ways with their differences, and the verdict; [] without a comparison."""
    if not compared:
        return []
    rows: list[tuple[str, ...]] = [("", "on", "off", "shuffled", "on - off", "on - shuffled")]
    for one in compared:
        values = [shown(one.figure, one.values[way]) for way in ("on", "off", "shuffled")]
        gains = [one.differences[pair].text(points=one.points) for pair in ("on-off", "on-shuffled")]
        rows.append((one.figure, *values, *gains))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*table, verdict(name, compared[0], samples)]


def names(name: str | None) -> tuple[str, ...]:
    """Return the ends of the names of an ablated bench's figures that are not of samples as they are: ("world_off", "world_shuffled")."""
    return tuple(f"{name}_{way}" for way in WAYS)


def as_json(compared: Sequence[Comparison]) -> dict[str, Any]:
    """Return the comparisons as JSON values: {figure: {"on": value, ..., "on-off": {"value", "low", "high"}, ...}}."""
    return {one.figure: {**one.values, **{pair: asdict(difference) for pair, difference in one.differences.items()}} for one in compared}
