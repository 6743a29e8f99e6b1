"""Say what a stage (part of a run) gained and forgot, by figures of the same samples before and after it.

A ledger entry compares one figure of one bench (evaluation) at two moments. Nothing is measured here (training/ledger.py).
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plait.engine.evaluation import Bench, Row, label
from plait.families.ablation import of_way
from plait.training.figures.intervals import behind, shown
from plait.training.figures.paired import differences
from plait.training.figures.small_samples import FEWEST

log = logging.getLogger(__name__)

FOLDER = "ledger"
"""Folder in a run directory with a file per stage boundary."""
TEXT = "text only"
"""The name of the loss of texts without pictures among the benches."""
START, BASE, RUN_START = "the stage's start", "the untrained base", "the run's start"
_PAIR = {"gain": ("after", "before")}


class Entry(NamedTuple):
    """A row of the table: a figure of a bench before and after a stage, None where it is not finite.

    `against`: what `before` is: the stage's start, the run's, or the untrained base. `low`, `high`: 95 % interval of after - before, None
    where there is none. `lower`: whether lower figures are better; `samples`: their number; `on`: what they are.
    """

    stage: str
    bench: str
    figure: str
    against: str
    before: float | None
    after: float | None
    low: float | None
    high: float | None
    lower: bool
    samples: int
    on: str

    @property
    def difference(self) -> float | None:
        """Return after - before; None where one of them is not finite."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def loss(self) -> float:
        """Return the share of `before` by which `after` is worse.

        0.1 for an accuracy that fell from 0.5 to 0.45; 0 where it is no worse.
        """
        if self.before is None or self.difference is None:
            return 0.0
        worse = self.difference if self.lower else -self.difference
        return max(worse, 0.0) / max(abs(self.before), 1e-12)

    @property
    def verdict(self) -> str:
        """Return "better", "worse", "the same", or "not sure".

        It is not sure where the interval holds 0, a figure is not finite, or samples that differ are too few for an interval.
        """
        if self.difference is None:
            return "not sure"
        if self.low is None or self.high is None:
            if self.difference and self.samples < FEWEST:
                return "not sure"
            return "the same" if self.difference == 0 else self._direction(self.difference)
        return self._direction(self.difference) if self.low > 0 or self.high < 0 else "not sure"

    def _direction(self, difference: float) -> str:
        return "better" if (difference < 0) == self.lower else "worse"

    def cells(self) -> list[str]:
        """Return the row as text: stage, bench, what it is held against, before, after, difference, interval, verdict."""
        interval = "" if self.low is None else f"[{self.low:+.4f}, {self.high:+.4f}]"
        figures = ["not finite" if value is None else shown(self.figure, value) for value in (self.before, self.after)]
        difference = "" if self.difference is None else f"{self.difference:+.4f}"
        return [self.stage, title(self.bench, self.figure), self.against, *figures, difference, interval, self.verdict]

    def plain(self) -> dict[str, Any]:
        """Return the entry as JSON values, with its `difference` and `verdict`."""
        return {**self._asdict(), "difference": self.difference, "verdict": self.verdict}


def title(bench: str, figure: str) -> str:
    """Return the name of a figure in the table: such as "accuracy/count", "loss of vision" or "text only"."""
    name, _, stage = bench.partition(" of ")
    if bench == TEXT:
        return TEXT
    return f"{label(name, figure)} of {stage}" if stage else label(name, figure)


def path_of(run: Path, index: int, name: str) -> Path:
    """Return the file of the boundary after stage `index` (from 1) called `name`; that of the run's start for 0."""
    return run / FOLDER / (f"stage-{index}-{name}.json" if index else "start.json")


def read(path: Path) -> dict[str, Any] | None:
    """Return a boundary as it was written; None where there is none, or, with a warning, where it cannot be read."""
    boundary = read_object(path)
    parts = {"stage": int, "step": int, "benches": dict, "entries": list, "warnings": list}
    if boundary is None or not all(isinstance(boundary.get(name), kind) for name, kind in parts.items()):
        if path.exists():
            log.warning(f"{path} cannot be read: what it says of a stage's gains and losses is left out")
        return None
    return boundary


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None where there is none, or it cannot be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def entries(stage: str, name: str, bench: Bench, before: Sequence[Row], after: Sequence[Row], *, against: str, on: str) -> list[Entry]:
    """Compare the rows of a bench called `name` at two moments; returns an entry per figure.

    `against`: what `before` is; `on`: what the samples are. Returns [] where the rows are not of the same samples, and for a
    bench that only describes. Figures that judge no answers, such as counts, are left out.
    """
    if bench.describes or [row.get("id") for row in before] != [row.get("id") for row in after]:
        return []
    both = [{"before": one, "after": other} for one, other in zip(before, after, strict=True)]

    def figures_of(chosen: Sequence[Mapping[str, Row]], way: str) -> dict[str, float]:
        return of_way(bench, [row[way] for row in chosen if not row[way].get("unread")], "on")

    then, now = figures_of(both, "before"), figures_of(both, "after")
    has_intervals = len(both) > 1 and (bench.means or all("correct" in row or "bad" in row for row in (*before, *after)))
    judged = all("correct" in row for row in (*before, *after) if "bad" not in row)
    of_rows = (lambda figure: behind(figure, after)) if judged else lambda figure: None
    found = differences(both, _PAIR, figures_of, lower=False, behind=of_rows) if has_intervals and then != now else {}
    rows = []
    for figure in [figure for figure in now if figure in then]:
        ends = found[figure]["gain"].ends if figure in found else None
        pair = [value if math.isfinite(value) else None for value in (then[figure], now[figure])]
        low, high = (None, None) if ends is None or None in pair else ends
        rows.append(
            Entry(
                stage=stage,
                bench=name,
                figure=figure,
                against=against,
                before=pair[0],
                after=pair[1],
                low=low,
                high=high,
                lower=bench.lower,
                samples=len(both),
                on=on,
            )
        )
    return rows


def warning(entry: Entry, limit: float) -> str | None:
    """Return what to say where a figure is surely worse, by more than the share `limit`; None where it is not."""
    if entry.verdict != "worse" or entry.loss <= limit:
        return None
    _, name, against, before, after, difference, interval, _ = entry.cells()
    rest = (
        "rows of text alone in data.train, or the language model frozen,"
        if entry.bench == TEXT
        else "samples of earlier stages in data.train"
    )
    return (
        f"after stage {entry.stage} {name} is {after}, and was {before} at {against}: {entry.loss:.1%} worse, more than "
        f"guard.forgetting, {limit:.1%} ({entry.samples} samples, {' '.join(filter(None, (difference, interval)))}). A lower rate "
        f"(optim.lr, optim.components), fewer steps, or {rest} keep more; `plait stages` shows all, `plait fork` goes back"
    )


def of_run(run: Path) -> list[dict[str, Any]]:
    """Return the entries of all boundaries of a run as JSON values (`Entry.plain`), in the order of the stages."""
    boundaries = [boundary for path in (run / FOLDER).glob("stage-*.json") if (boundary := read(path))]
    return [entry for boundary in sorted(boundaries, key=lambda one: int(one["stage"])) for entry in boundary["entries"]]


def table(listed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table of entries, `Entry.plain`, in aligned columns; then what the texts are, if there are any."""
    heading = ["stage", "bench", "against", "before", "after", "difference", "95 % interval", ""]
    rows = [heading, *(Entry(**{name: entry[name] for name in Entry._fields}).cells() for entry in listed)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heading))]
    texts = [f"{TEXT}: the loss of {on}" for on in dict.fromkeys(entry["on"] for entry in listed if entry["bench"] == TEXT)]
    aligned = (str.ljust, str.ljust, str.ljust, str.rjust, str.rjust, str.rjust, str.ljust, str.ljust)
    return ["  ".join(put(text, width) for put, text, width in zip(aligned, row, widths, strict=True)).rstrip() for row in rows] + texts
