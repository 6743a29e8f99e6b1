"""Compare runs on a page of several.

How good each is, what was set differently, and their curves in one chart each.
"""

from collections.abc import Iterator, Sequence

from plait.commands.actions import compare
from plait.commands.actions.report.record import RunRecord, is_number
from plait.commands.pages.axes import number
from plait.commands.pages.chart import Chart, Frame, Line
from plait.commands.pages.report import Block, Table
from plait.engine.evaluation import LOSS, is_count
from plait.engine.monitoring import screen

_CURVES = (("loss", "training loss", ""), ("grad_norm", "gradient norm", ""), ("samples_per_s", "samples per second", "samples/s"))
_MOST_FIGURES = 12
"""Held-out figures that have a chart of all runs."""


def frame_of(records: Sequence[RunRecord]) -> Frame:
    """Return what the charts of several runs share: the last step of the longest."""
    return Frame(float(max(record.last_step for record in records)))


def blocks(records: Sequence[RunRecord]) -> Iterator[Block]:
    """Yield the blocks that compare runs."""
    yield Block("Runs", "runs", ". ".join(verdict(records)) + ".", tables=[_results(records)])
    charts = [chart for chart in _curves(records) if chart.lines]
    yield Block("Curves", "curves", wide=charts[0] if charts else None, charts=charts[1:])
    differing = compare.differing([record.resolved for record in records])
    if len({record.resolved.config.family for record in records}) > 1:
        differing = [(key, cells) for key, cells in differing if not key.startswith("model.")]
    head = ["setting", *(record.name for record in records)]
    table = Table("", head, [[key, *cells] for key, cells in differing])
    note = "" if differing else "Every setting is the same."
    if len({record.resolved.config.family for record in records}) > 1:
        note = "The settings of the models are of different families, and are left out."
    yield Block("Set differently", "settings", note, tables=[table] if differing else ())


def verdict(records: Sequence[RunRecord]) -> list[str]:
    """Return the sentences of `plait compare` on which run is better."""
    reached = [
        {view.name: record.progress[view.index] for view in record.resolved.stages if view.index in record.progress} for record in records
    ]
    return compare.verdict([record.name for record in records], [record.resolved for record in records], reached)


def _results(records: Sequence[RunRecord]) -> Table:
    """Return the table of how far and how good each run is."""
    figures = list(dict.fromkeys(figure.name for record in records for figure in record.listed.figures))[:_MOST_FIGURES]
    rows = []
    for record in records:
        best = {figure.name: f"{number(figure.best)} at {figure.step:,}" for figure in record.listed.figures}
        loss = "" if record.listed.loss is None else number(record.listed.loss)
        own = [
            record.name,
            record.resolved.config.family,
            record.listed.state,
            f"{record.last_step:,}",
            screen.clock(record.listed.seconds),
        ]
        rows.append([*own, loss, *(best.get(name, "") for name in figures)])
    head = ["run", "family", "state", "steps", "time", "last loss", *(f"best {name}" for name in figures)]
    return Table("", head, rows, frozenset(range(3, len(head))), colours=[i % 8 for i in range(len(records))])


def _curves(records: Sequence[RunRecord]) -> Iterator[Chart]:
    """Yield a chart for each figure that two runs or more have, or that belongs to all; a run has the same colour in each."""
    for name, title, unit in _CURVES:
        lines = [Line(record.name, record.series(name), noisy=True, colour=i) for i, record in enumerate(records)]
        yield Chart(title, [line for line in lines if line.points], unit, log=False if unit else None)
    names = dict.fromkeys(name for record in records for row in record.held_out for name, value in row.items() if _is_figure(name, value))
    counted = {name: [record for record in records if record.series(name)] for name in names}
    several = [name for name, having in counted.items() if len(having) > 1 and any(y for record in having for _, y in record.series(name))]
    for name in several[:_MOST_FIGURES]:
        lines = [Line(record.name, record.series(name), marks=True, colour=i) for i, record in enumerate(records)]
        figure = name.removeprefix("eval/")
        yield Chart(f"{figure}, held out", [line for line in lines if line.points], log=None if figure == LOSS else False)


def _is_figure(name: str, value: object) -> bool:
    figure = name.removeprefix("eval/")
    return name.startswith("eval/") and is_number(value) and not is_count(figure) and not figure.startswith("loss/")
