"""Compare the answers to the same samples with an input, without it and with another sample's: differences, and what they say.

A gain is positive where the model does better with its own input, also where lower figures are better (training/figures/paired.py). Rows
are those of an ablated bench (families/ablation.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plait.engine.evaluation import Row, usable
from plait.families.ablation import WAYS, Ablated, of_way
from plait.training.figures import paired
from plait.training.figures.intervals import shown
from plait.training.figures.paired import Difference, differences


@dataclass(frozen=True)
class Comparison:
    """A figure in the three ways: `values` by "on", "off", "shuffled", and `differences` by "on-off", "on-shuffled", "shuffled-off"."""

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
    found = differences(used, _PAIRS, lambda chosen, way: of_way(bench, chosen, way), lower=bench.lower)
    scored = any("correct" in row for row in used)
    compared = []
    for figure, pairs in found.items() or [(next(iter(ways["on"])), dict.fromkeys(_PAIRS, paired.NONE))]:  # none: all ways are equal
        values = {way: figures[figure] for way, figures in ways.items()}
        points = scored and all(0 <= value <= 1 for value in values.values())
        compared.append(Comparison(figure, values, pairs, points))
    return compared


_PAIRS = {"on-off": ("on", "off"), "on-shuffled": ("on", "shuffled"), "shuffled-off": ("shuffled", "off")}


def verdict(name: str, comparison: Comparison, samples: int) -> str:
    """Return in a sentence what the comparison of a bench's main figure says of the input `name`, measured on so many samples."""
    gain, content, presence = (comparison.differences[pair] for pair in _PAIRS)
    told = {pair: difference.text(points=comparison.points) for pair, difference in comparison.differences.items()}
    signs = (gain.sign, content.sign, presence.sign)
    parts = [
        f"on {_verb(gain)} off ({told['on-off']})",
        f"on {_verb(content)} shuffled ({told['on-shuffled']})",
        f"shuffled {_verb(presence)} off ({told['shuffled-off']})",
    ]
    return f"{comparison.figure}: {'; '.join(parts)}: {_meaning(name, signs, samples)}"


def _verb(difference: Difference) -> str:
    return {1: "beats", -1: "loses to", 0: "is level with"}[difference.sign]


def _meaning(name: str, signs: tuple[int, int, int], samples: int) -> str:
    """Return what the signs of on against off, of on against shuffled and of shuffled against off mean."""
    gain, content, presence = signs
    nothing = f"the content of {name} shows in {samples:,} samples" if presence else f"{name} shows in {samples:,} samples"
    meanings = {
        (1, 1): f"the content of {name} is used",
        (1, 0): f"{name} helps, but another sample's does as well: not its content"
        if presence > 0
        else f"{name} helps; whether by its content does not show in {samples:,} samples",
        (1, -1): f"{name} helps, but another sample's helps more: not its content",
        (0, 1): f"the content of {name} is read (another's {'misleads' if presence < 0 else 'does worse'}), but nothing is gained over "
        "having none",
        (0, 0): f"no use of {nothing}",
        (0, -1): f"the content of {name} misleads: another sample's does better, and nothing is gained over having none",
        (-1, 1): f"{name} hurts, and another sample's hurts more: its content is read",
        (-1, 0): f"{name} hurts",
        (-1, -1): f"{name} hurts by its content: another sample's does better",
    }
    return meanings[gain, content]


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
    """Return how the names of figures without input `name`, or with another sample's, end: ("world_off", "world_shuffled").

    None, where nothing is left out, gives ("None_off", "None_shuffled"), in which no figure ends.
    """
    return tuple(f"{name}_{way}" for way in WAYS)


def as_json(compared: Sequence[Comparison]) -> dict[str, Any]:
    """Return the comparisons as JSON values: {figure: {"on": value, ..., "on-off": {"value", "low", "high"}, ...}}."""
    return {one.figure: {**one.values, **{pair: asdict(difference) for pair, difference in one.differences.items()}} for one in compared}
