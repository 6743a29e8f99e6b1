"""List the runs below a folder side by side: what `plait runs` prints. Reads their files only; no checkpoint is verified.

`plait compare` goes into two or more of them.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plait.assembly.run_configuration import open_run_config
from plait.commands.actions import compare, stages
from plait.commands.actions.findings import gigabytes
from plait.commands.actions.runs import find, prune
from plait.commands.actions.stages import Figure
from plait.config.resolved import Resolved
from plait.engine.checkpoints import checkpoint
from plait.engine.monitoring import screen
from plait.engine.monitoring.json_output import show_json
from plait.errors import PlaitError

log = logging.getLogger(__name__)

_MOST_SETTINGS = 8
"""Settings that differ, of runs of one family, that are listed; more are counted."""


@dataclass(frozen=True)
class ListedRun:
    """A run in the list. `state`: running, done, stopped, or new (no step yet); `stage`: the name of the one it is in; `of`: of how many.

    `loss`: the last of training, None before a step; `figures`: those held out, of the newest stage that has any; `seconds`: trained;
    `size`: bytes of its checkpoints; `time_s`: when it last recorded something (Unix time), None if it never did.
    """

    path: Path
    resolved: Resolved
    state: str
    stage: str
    number: int
    step: int
    loss: float | None
    figures: Sequence[Figure]
    seconds: float
    size: int
    time_s: float | None

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "run": str(self.path),
            "family": self.resolved.config.family,
            "state": self.state,
            "stage": self.stage,
            "stages": len(self.resolved.stages),
            "step": self.step,
            "loss": self.loss,
            "held_out": [figure._asdict() for figure in self.figures],
            "seconds": round(self.seconds, 3),
            "checkpoint_bytes": self.size,
            "time_s": self.time_s,
        }


def show(folder: Path, *, by: str | None = None, as_json: bool = False) -> None:
    """Print a line per run below `folder`, then the settings in which runs of one family differ.

    `by`: a held-out figure, such as loss, by which they are ordered, the best first; None: by path. `as_json`: as one JSON object. A run
    that cannot be read has a line with the reason. Raises PlaitError where there is no run, and for a figure that none has.
    """
    runs, faults = list[ListedRun](), dict[Path, str]()
    for path in find.runs_below(folder):
        try:
            runs.append(look(path))
        except (PlaitError, OSError) as error:
            faults[path] = str(error)
    if not runs and not faults:
        raise PlaitError(f"{folder} holds no run; plait runs DIR looks into folders of DIR, and their folders")
    if by is not None:
        runs = _ordered(runs, by)
    if as_json:
        told = {"runs": [run.plain() for run in runs], "unreadable": {str(path): fault for path, fault in faults.items()}}
        show_json(told)
        return
    log.info("\n".join(_table(runs, folder)))
    for fault in faults.values():
        log.info(f"cannot be read: {fault}")
    for line in _settings(runs, folder):
        log.info(line)


def look(path: Path) -> ListedRun:
    """Return what the files of the run directory `path` say. Raises PlaitError for a configuration that cannot be read."""
    resolved = open_run_config(path)
    rows = stages.rows_of(path)
    folders = checkpoint.published(path)
    manifests = stages.manifests_by_stage(folders)
    number = max([*manifests, *(row["stage"] for row in rows if "stage" in row), 1])
    reached = {view.index: stages.progress(view, rows, manifests.get(view.index)) for view in resolved.stages[:number]}
    trained = [row for row in rows if "loss" in row]
    figures = next((reached[index].figures for index in sorted(reached, reverse=True) if reached[index].figures), [])
    seconds = sum(stages.hours([row for row in trained if row.get("stage") == index], of.start) for index, of in reached.items()) * 3600
    done = number in manifests and manifests[number]["state"]["stage_done"] and number >= len(resolved.stages)
    begun = bool(trained or manifests)
    times = [float(row["time_s"]) for row in rows if isinstance(row.get("time_s"), int | float)]
    return ListedRun(
        path=path,
        resolved=resolved,
        state="running" if stages.is_locked(path) else "done" if done else "stopped" if begun else "new",
        stage=resolved.stages[min(number, len(resolved.stages)) - 1].name,
        number=number,
        step=max([0, *(row["step"] for row in trained), *(manifest["state"]["step"] for manifest in manifests.values())]),
        loss=_loss(trained),
        figures=figures,
        seconds=seconds,
        size=sum(map(prune.size_of, folders)),
        time_s=max(times) if times else None,
    )


def _loss(trained: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the last loss of training, which a row has as text where it is not finite; None before a step."""
    for row in reversed(trained):
        if isinstance(row["loss"], int | float) or row["loss"] in ("nan", "inf", "-inf"):
            return float(row["loss"])
    return None


def _ordered(runs: Sequence[ListedRun], by: str) -> list[ListedRun]:
    """Return the runs, the best by a held-out figure first, those without it last. Raises PlaitError for a figure that none has."""
    known = {figure.name: figure for run in runs for figure in run.figures}
    if by not in known:
        raise PlaitError(f"no run has a held-out figure {by!r}; they have {', '.join(sorted(known)) or 'none'}")
    sign = 1 if known[by].lower else -1

    def place(run: ListedRun) -> float:
        best = next((figure.best for figure in run.figures if figure.name == by), math.nan)
        return sign * best if math.isfinite(best) else math.inf

    return sorted(runs, key=place)


def _table(runs: Sequence[ListedRun], folder: Path) -> list[str]:
    """Return the lines of the table, aligned. Runs are named by their paths below `folder`."""
    head = ["run", "family", "state", "stage", "step", "loss", "best held out", "time", "checkpoints", "last record"]
    rows = [head, *(_cells(run, folder) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = {"step", "loss", "time", "checkpoints"}
    aligned = [str.rjust if name in right else str.ljust for name in head]
    return ["  ".join(put(cell, wide) for put, cell, wide in zip(aligned, row, widths, strict=True)).rstrip() for row in rows]


def _cells(run: ListedRun, folder: Path) -> list[str]:
    count = len(run.resolved.stages)
    figures = [f"{one.name} {one.best:.4g} at {one.step:,}" for one in run.figures[:2]]
    return [
        name_of(run.path, folder),
        run.resolved.config.family,
        run.state,
        run.stage + (f" ({run.number} of {count})" if count > 1 else ""),
        f"{run.step:,}",
        "-" if run.loss is None else f"{run.loss:.4g}",
        ", ".join(figures) or "-",
        screen.clock(run.seconds),
        gigabytes(run.size) if run.size else "-",
        "-" if run.time_s is None else f"{datetime.fromtimestamp(run.time_s, UTC):%Y-%m-%d %H:%M} UTC",
    ]


def name_of(path: Path, folder: Path) -> str:
    """Return a run's path below `folder`, or its own name where it is that folder."""
    below = path.relative_to(folder)
    return str(below) if below.parts else path.resolve().name


def _settings(runs: Sequence[ListedRun], folder: Path) -> list[str]:
    """Return lines on the settings in which the runs of each family differ."""
    lines = []
    for family, count in Counter(run.resolved.config.family for run in runs).items():
        of_family = [run for run in runs if run.resolved.config.family == family]
        changed = compare.differing([run.resolved for run in of_family]) if count > 1 else []
        if not changed:
            continue
        lines.append(f"set differently among the {count} runs of {family}")
        lines += [f"  {key:<28} {_values(cells, of_family, folder)}" for key, cells in changed[:_MOST_SETTINGS]]
        more = [key for key, _ in changed[_MOST_SETTINGS:]]
        lines += [f"  and {len(more)} more, such as {more[0]}: plait compare RUN RUN shows all of some runs"] if more else []
    return lines


def _values(cells: Sequence[str], runs: Sequence[ListedRun], folder: Path) -> str:
    """Return the values of a setting with the runs that have each; the most frequent one without."""
    by_value: Mapping[str, list[str]] = {value: [] for value in cells}
    for value, run in zip(cells, runs, strict=True):
        by_value[value].append(name_of(run.path, folder))
    ranked = sorted(by_value.items(), key=lambda item: -len(item[1]))
    (first, owners), *others = ranked
    shown = [first if len(owners) > 2 else f"{first} ({', '.join(owners)})"]
    shown += [f"{value} ({', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''})" for value, names in others]
    return ", ".join(shown)
