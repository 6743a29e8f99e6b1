"""Compare the answers to the same samples with an input, without it and with another sample's: differences, and what they say.

A gain is positive where the model does better with its own input, also where lower figures are better (training/figures/paired.py). Rows
are those of an ablated bench (families/ablation.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.assembly import held_out
from plait.config.schema import RunConfig
from plait.engine.evaluation import Row, usable
from plait.errors import PlaitError
from plait.families.ablation import WAYS, Ablated, of_way
from plait.training.figures.intervals import behind, shown
from plait.training.figures.paired import Difference, differences


@dataclass(frozen=True)
class Comparison:
    """A figure in the three ways: `values` by "on", "off", "shuffled", and `differences` by "on-off", "on-shuffled", "shuffled-off"."""

    figure: str
    values: Mapping[str, float]
    differences: Mapping[str, Difference]
    points: bool
    """Whether the figure is a share of right answers, whose differences are told in percentage points."""
    samples: int
    """How many samples the figure is computed from."""
    task: bool = False
    """Whether the figure, MAIN/TASK, is that of the samples of one task or group, and no term of a loss."""

    @property
    def signs(self) -> tuple[int, int, int]:
        """Return the signs of the differences that are sure (0: not sure), in the order of `differences`."""
        gain, content, presence = (self.differences[pair].sign for pair in _PAIRS)
        return gain, content, presence


def named(config: RunConfig, text: str | None) -> list[str | None]:
    """Return the inputs that `--ablate` names, separated by commas; [None] without any.

    Raises PlaitError for one that the model of `config` has not, or that is named twice.
    """
    if text is None:
        return [None]
    listed = text.split(",")
    for number, name in enumerate(listed):
        if name in listed[:number]:
            raise PlaitError(f"--ablate names {name!r} twice")
        held_out.ablation_of(config, name)
    return [*listed]


def compare(ablated: Ablated, rows: Sequence[Row]) -> list[Comparison]:
    """Return the comparison of each figure of an ablated bench, the main one first. [] where no row can be used, or nothing is judged."""
    used, bench = usable(rows), ablated.single
    if not used or bench.describes:
        return []
    ways = {way: of_way(bench, used, way) for way in ("on", "off", "shuffled")}
    if not ways["on"]:
        return []  # a bench that draws, and measures nothing
    shares = shares_of(ways.values(), used)
    found = differences(
        used,
        _PAIRS,
        lambda chosen, way: of_way(bench, chosen, way),
        lower=bench.lower,
        behind=lambda figure: behind(figure, used) if figure in shares else None,
    )
    of_ways = {figure: {way: figures[figure] for way, figures in ways.items()} for figure in found}
    tasks = _tasks(used)
    return [
        Comparison(figure, of_ways[figure], pairs, figure in shares, behind(figure, used), figure.partition("/")[2] in tasks)
        for figure, pairs in found.items()
    ]


def _tasks(rows: Sequence[Row]) -> set[str]:
    """Return the names of the rows' tasks and groups, and of the figures NAME/GROUP that are in rows themselves."""
    named = {str(row[field]) for row in rows for field in ("task", "group") if row.get(field) is not None}
    return named | {name.partition("/")[2] for row in rows for name in row if "/" in name}


def shares_of(ways: Iterable[Mapping[str, float]], rows: Sequence[Row]) -> set[str]:
    """Return the names of the figures that are shares of right answers, or means of scores from 0 to 1.

    `ways`: the figures in each way, of which rows of the bench with `correct` are judged one by one.
    """
    if not all("correct" in row for row in rows):
        return set()
    known = [*ways]
    return {name for name in known[0] if all(0 <= figures.get(name, -1.0) <= 1 for figures in known)}


_PAIRS = {"on-off": ("on", "off"), "on-shuffled": ("on", "shuffled"), "shuffled-off": ("shuffled", "off")}


def verdict(name: str, comparison: Comparison) -> str:
    """Return in a sentence what the comparison of a bench's main figure says of the input `name`."""
    gain, content, presence = (comparison.differences[pair] for pair in _PAIRS)
    told = {pair: difference.text(points=comparison.points) for pair, difference in comparison.differences.items()}
    parts = [
        f"on {_verb(gain)} off ({told['on-off']})",
        f"on {_verb(content)} shuffled ({told['on-shuffled']})",
        f"shuffled {_verb(presence)} off ({told['shuffled-off']})",
    ]
    return f"{comparison.figure}: {'; '.join(parts)}: {_meaning(name, comparison.signs, f'{comparison.samples:,}')}"


def of_tasks(name: str, compared: Sequence[Comparison]) -> str | None:
    """Return a sentence on what the input `name` is to each task, where tasks differ in that; else None.

    `compared`: of one bench, as of `compare`. Tasks are the figures MAIN/TASK beside the main one, MAIN; terms of
    a loss are none.
    """
    main, *others = compared
    by_signs: dict[tuple[int, int, int], list[Comparison]] = {}
    for one in others:
        if one.task and one.figure.startswith(f"{main.figure}/"):
            by_signs.setdefault(one.signs, []).append(one)
    if len(by_signs) < 2:
        return None
    parts = []
    for signs, tasks in by_signs.items():
        counts = " and ".join(f"{one.samples:,}" for one in tasks)
        parts.append(f"{', '.join(one.figure.partition('/')[2] for one in tasks)}: {_meaning(name, signs, counts)}")
    return f"by task: {'; '.join(parts)}"


def _verb(difference: Difference) -> str:
    return {1: "beats", -1: "loses to", 0: "is level with"}[difference.sign]


def _meaning(name: str, signs: tuple[int, int, int], samples: str) -> str:
    """Return what the signs of on against off, of on against shuffled and of shuffled against off mean. `samples`: their number."""
    gain, content, presence = signs
    nothing = f"the content of {name} shows in {samples} samples" if presence else f"{name} shows in {samples} samples"
    meanings = {
        (1, 1): f"the content of {name} is used",
        (1, 0): f"{name} helps, but another sample's does as well: not its content"
        if presence > 0
        else f"{name} helps; whether by its content does not show in {samples} samples",
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


def lines(name: str, compared: Sequence[Comparison]) -> list[str]:
    """Return a table of all figures in the three ways with their differences; [] without a comparison."""
    if not compared:
        return []
    rows: list[tuple[str, ...]] = [("", "on", "off", "shuffled", "on - off", "on - shuffled")]
    for one in compared:
        values = [shown(one.figure, one.values[way]) for way in ("on", "off", "shuffled")]
        gains = [one.differences[pair].text(points=one.points) for pair in ("on-off", "on-shuffled")]
        rows.append((one.figure, *values, *gains))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def sentences(name: str, compared: Sequence[Comparison]) -> list[str]:
    """Return the verdict, and where tasks differ in theirs a sentence on them; [] without a comparison."""
    return [verdict(name, compared[0]), *filter(None, [of_tasks(name, compared)])] if compared else []


def names(name: str | None) -> tuple[str, ...]:
    """Return how the names of figures without input `name`, or with another sample's, end: ("world_off", "world_shuffled").

    None, where nothing is left out, gives ("None_off", "None_shuffled"), in which no figure ends.
    """
    return tuple(f"{name}_{way}" for way in WAYS)


def as_json(compared: Sequence[Comparison]) -> dict[str, Any]:
    """Return the comparisons as JSON values: {figure: {"on": value, ..., "on-off": {"value", "low", "high"}, ...}}."""
    return {one.figure: {**one.values, **{pair: difference.plain() for pair, difference in one.differences.items()}} for one in compared}
