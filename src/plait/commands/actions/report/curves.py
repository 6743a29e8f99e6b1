"""Choose the charts of a run: which rows of its metrics belong beside each other, and how each is drawn.

Names that nobody foresaw, as of another family or a callback, are drawn too, grouped by the parts of their names.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from plait.commands.actions.report.record import RunRecord, is_number, memory_of
from plait.commands.pages.chart import Chart, Frame, Line
from plait.engine.evaluation import LOSS, is_count

_APART = {"step", "stage", "samples", "tokens", "supervised_tokens", "time_s", "epoch", "ids", "step_s", "skipped", "loss", "data_wait_s"}
"""Names of a row that are counters, or are drawn in a chart of their own."""
_SPEED = {
    "samples_per_s": ("samples per second", "samples/s"),
    "tflop_per_s": ("computation", "TFLOP/s"),
    "mfu": ("MFU", "share of the peak"),
}
_TITLES = {
    "grad_norm": "gradient norm by component",
    "lr": "learning rate",
    "loss_by": "loss by source, of the same samples",
    "blind": "loss with own and with other pictures",
    "update": "norm of a step's update over that of the weights",
    "moved": "distance from the stage's start, over the norm there",
    "activation": "scale of what each component puts out",
    "dead": "share of units that are constant",
    "idle": "largest share, of a layer, of units without a gradient",
    "ema_decay": "decay of the average",
    "recompiles": "graphs compiled again",
    "compile_s": "seconds of compiling so far",
    "features_read": "features read from the cache",
}
_LEARNING = ("update/", "moved/", "activation/", "dead/", "idle/")
"""Beginnings of the names of what is measured of each component as it learns."""
_SHARES = {_TITLES["dead"], _TITLES["idle"], _TITLES["ema_decay"], _TITLES["features_read"]}
"""Titles of charts whose values are from 0 to 1."""
_MOST_LINES = 8


@dataclass(frozen=True)
class Section:
    """Charts under one heading, with the sentence below it. `anchor`: its name in links; `wide`: the chart that stands alone, or None."""

    title: str
    anchor: str
    charts: Sequence[Chart]
    wide: Chart | None = None
    note: str = ""


def frame_of(record: RunRecord) -> Frame:
    """Return what all charts of a run share."""
    many = len(record.resolved.stages) > 1
    names = {view.index: view.name for view in record.resolved.stages}
    stages = [(float(of.start), names[index]) for index, of in record.progress.items()] if many else []
    times = [(row["time_s"], row["step"]) for row in record.trained if is_number(row.get("time_s"))]
    starts = []
    for row in record.starts:
        began = row.get("time_s")
        before = [step for time_s, step in times if is_number(began) and time_s < began]
        if before:
            starts.append((float(max(before)), f"continued after step {max(before):,}"))
    return Frame(float(record.last_step), stages, starts)


def sections(record: RunRecord) -> list[Section]:
    """Return the sections with charts of a run, without those that would be empty."""
    names = list(dict.fromkeys(name for row in record.rows for name, value in row.items() if is_number(value)))
    loss = Chart("loss", [line for line in (_line(record, "loss", "training", noisy=True), _held_out_loss(record)) if line.points])
    terms, unused = _terms(record, [name for name in names if name.startswith("loss/")])
    listed = [
        Section("Loss", "loss", terms, loss if loss.lines else None, f"Always 0: {', '.join(unused)}." if unused else ""),
        Section("Held out", "held-out", [*_held_out(record, names), *_looks(record)]),
        Section("Optimisation", "optimisation", list(_optimisation(record, names))),
        Section("Learning", "learning", list(_grouped(record, [name for name in names if name.startswith(_LEARNING)]))),
        Section("Throughput", "throughput", list(_throughput(record, names))),
        Section("Sources", "sources", list(_grouped(record, [name for name in names if name.startswith("share/")]))),
        Section("More figures", "more", list(_grouped(record, _others(names)))),
    ]
    return [section for section in listed if section.charts or section.wide]


def _line(record: RunRecord, name: str, label: str, *, noisy: bool = False, marks: bool = False) -> Line:
    """Return the line of a row's figure, with the intervals that evaluations recorded of it."""
    own = name.removeprefix("eval/")
    intervals = {
        float(row["step"]): (float(row["intervals"][own][0]), float(row["intervals"][own][1])) for row in record.rows if _has(row, own)
    }
    return Line(label, record.series(name), noisy, marks, intervals if marks else {})


def _has(row: object, own: str) -> bool:
    """Return whether a row has an interval, two finite numbers, of the figure `own`."""
    intervals = row.get("intervals") if isinstance(row, dict) else None
    pair = intervals.get(own) if isinstance(intervals, dict) else None
    return isinstance(pair, list) and len(pair) == 2 and all(is_number(end) and abs(end) < float("inf") for end in pair)


def _held_out_loss(record: RunRecord) -> Line:
    return _line(record, "eval/loss", "held out", marks=True)


def _terms(record: RunRecord, names: Sequence[str]) -> tuple[list[Chart], list[str]]:
    """Return a chart for each group of the loss's terms, and the names of those that were always 0.

    Terms with the same first or last word of their names share a chart; the one that is the loss itself has none.
    """
    whole = record.series("loss")
    series = {name.removeprefix("loss/"): record.series(name) for name in names}
    unused = [term for term, points in series.items() if not any(value for _, value in points)]
    shown = [term for term, points in series.items() if term not in unused and points != whole]
    charts = []
    while shown:
        first = shown[0]
        words = (first.partition("_")[0], first.rpartition("_")[2])
        group = [term for term in shown if words[0] == term.partition("_")[0] or ("_" in first and words[1] == term.rpartition("_")[2])]
        shown = [term for term in shown if term not in group]
        title = f"loss: {first.replace('_', ' ')}" if len(group) == 1 else f"loss: {', '.join(term.replace('_', ' ') for term in group)}"
        charts.append(Chart(title, [_line(record, f"loss/{term}", term.replace("_", " "), noisy=True) for term in group]))
    return charts, unused


def _held_out(record: RunRecord, names: Sequence[str]) -> Iterator[Chart]:
    """Yield charts of the figures of each bench, counts left out, and those whose values are the loss itself.

    Where some figures of a bench have intervals, those without are of another kind, and have a chart of their own, if any ever changes.
    """
    groups: dict[tuple[str, bool], list[Line]] = {}
    whole = record.series("eval/loss")
    for name in names:
        figure = name.removeprefix("eval/")
        bench, points = figure.partition("/")[0], record.series(name)
        if not name.startswith("eval/") or is_count(figure) or points == whole or not any(value for _, value in points):
            continue
        line = _line(record, name, _short(name, bench), marks=True)
        groups.setdefault((bench, not line.intervals), []).append(line)
    groups = {key: lines for key, lines in groups.items() if not (key[1] and (key[0], False) in groups and _constant(lines))}
    for (bench, plain), lines in groups.items():
        other = ", other figures" if plain and (bench, False) in groups else ""
        for first in range(0, len(lines), _MOST_LINES):
            title = f"{bench}{other}{' (more)' if first else ''}, held out"
            yield Chart(title, lines[first : first + _MOST_LINES], log=None if bench == LOSS else False)


def _constant(lines: Sequence[Line]) -> bool:
    """Return whether none of the lines ever changes."""
    return all(len({y for _, y in line.points}) == 1 for line in lines)


def _short(name: str, bench: str) -> str:
    """Return the name of a figure in the chart of its bench: eval/accuracy/colour gives colour, eval/accuracy accuracy."""
    return name.removeprefix("eval/").removeprefix(f"{bench}/").replace("_", " ")


def _looks(record: RunRecord) -> Iterator[Chart]:
    """Yield the chart of the loss with the samples' own pictures and with others'."""
    lines = [_line(record, f"blind/{name}", label, marks=True) for name, label in (("own", "own pictures"), ("other", "another sample's"))]
    if all(len(line.points) > 1 for line in lines):
        yield Chart(_TITLES["blind"], lines)


def _optimisation(record: RunRecord, names: Sequence[str]) -> Iterator[Chart]:
    """Yield the charts of learning rates, gradient norms and the average's decay."""
    rates = [Line(name.removeprefix("lr/"), record.series(name)) for name in names if name.startswith("lr/")]
    by_step: dict[float, set[float]] = {}
    for step, value in (point for line in rates for point in line.points):
        by_step.setdefault(step, set()).add(value)
    alike = all(len(values) == 1 for values in by_step.values())
    if rates:
        together = Line("all that trains", sorted((step, max(values)) for step, values in by_step.items()))
        yield Chart(_TITLES["lr"], [together] if alike else rates, log=False)
    if norm := record.series("grad_norm"):
        yield Chart("gradient norm", [Line("all that trains", norm, noisy=True)])
    parts = [Line(name.removeprefix("grad_norm/"), record.series(name), noisy=True) for name in names if name.startswith("grad_norm/")]
    if parts:
        yield Chart(_TITLES["grad_norm"], parts)


def _throughput(record: RunRecord, names: Sequence[str]) -> Iterator[Chart]:
    """Yield the charts of speed, of the time of a step, and of memory."""
    for name, (title, unit) in _SPEED.items():
        if name in names:
            yield Chart(title, [Line("all ranks", record.series(name), noisy=True)], unit, log=False)
    steps, waits = record.series("step_s"), record.series("data_wait_s")
    if steps:
        lines = [
            Line("step", [(x, 1000 * y) for x, y in steps], noisy=True),
            Line("wait for data", [(x, 1000 * y) for x, y in waits], noisy=True),
        ]
        yield Chart("time of a step", [line for line in lines if line.points], "ms")
    memory = [(float(row["step"]), used) for row in record.trained if (used := memory_of(row)) is not None]
    if memory:
        yield Chart("most memory in use", [Line("rank 0", memory)], "GB")


def _others(names: Sequence[str]) -> list[str]:
    """Return the names of figures that no other chart has."""
    prefixes = ("loss/", "weight/", "eval/", "lr/", "grad_norm", "share/", "blind/")
    return [name for name in names if name not in _APART and name not in _SPEED and not name.startswith((*prefixes, *_LEARNING))]


def _grouped(record: RunRecord, names: Sequence[str]) -> Iterator[Chart]:
    """Yield a chart per group of figures, at most eight lines each: share/SOURCE/QUANTITY by quantity, others by all but the last part."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if name.startswith("share/"):
            _, _, rest = name.partition("/")
            source, _, quantity = rest.rpartition("/")
            groups.setdefault(f"share of {quantity.replace('_', ' ')}, by source", []).append((name, source))
        else:
            group, _, own = name.rpartition("/")
            title = (
                _TITLES.get(name, name.replace("_", " ")) if not group else _TITLES.get(group, group.replace("_", " ").replace("/", ", "))
            )
            groups.setdefault(title, []).append((name, own))
    for title, members in groups.items():
        shown = [(name, own) for name, own in members if any(value for _, value in record.series(name))]
        for first in range(0, len(shown), _MOST_LINES):
            lines = [Line(own, record.series(name), noisy=True) for name, own in shown[first : first + _MOST_LINES]]
            yield Chart(
                f"{title}{' (more)' if first else ''}", lines, log=False if title in _SHARES or title.startswith("share of") else None
            )
