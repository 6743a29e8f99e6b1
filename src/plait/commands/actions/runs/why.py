"""Print where the time of a stage's steps went and what made them slow, for `plait why`.

A stage is a part of a run. All is from the rows of metrics.jsonl; nothing is computed again, but for a trace.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plait.assembly.run_configuration import open_run_config
from plait.commands.actions.stages import Row, rows_of
from plait.config.resolved import Resolved, StageView
from plait.engine.monitoring.json_output import show_json
from plait.errors import PlaitError
from plait.training.monitor import source_rule
from plait.training.monitor.causes import Cause, causes
from plait.training.monitor.window import PARTS, Window, window_of
from plait.training.planning import trace

log = logging.getLogger(__name__)

_BAR = 32
_WORDS = {
    "data": "wait for data",
    "start": "begin of the step",
    "copy": "copy to the device",
    "record": "metrics, callbacks",
    "evaluate": "evaluations",
    "save": "checkpoints",
    "other": "set-up",
}
_OF_RANKS = "wait for other ranks"
"""What the begin of a step is, where there are several: there the denominators are added."""


def show(run: Path, stage: str | None, *, profile: int | None = None, as_json: bool = False) -> None:
    """Print where the time of a stage's steps went and the causes of slow ones.

    `stage` None: the stage that has trained last. `profile`: train so many steps again, and write a trace of
    them. Raises PlaitError where `run` is no run directory, has no such stage, or has recorded nothing of it, and for what keeps the steps
    from starting.
    """
    resolved = open_run_config(run)
    view, rows = _stage_of(resolved, rows_of(run), stage, run)
    path = _profiled(run, view, profile) if profile is not None else None
    window = window_of(rows)
    if window is None:
        off = " (track.monitor is off)" if not view.config.track.monitor else ""
        raise PlaitError(
            f"{run} has no row that says where the time of stage {view.name} went{off}: rows come every track.every_steps = "
            f"{view.config.track.every_steps} steps, from runs of this version on"
        )
    found = causes(window, view, resolved)
    if as_json:
        show_json(as_dict(run, view, window, found, path))
    else:
        log.info("\n".join([*lines(view, window, found), *_of_sources(view, rows_of(run))]))


def _stage_of(resolved: Resolved, rows: Sequence[Row], stage: str | None, run: Path) -> tuple[StageView, list[Row]]:
    """Return the stage that is asked for, or the last with a step, and its rows of steps."""
    steps = [row for row in rows if "loss" in row and "stage" in row]
    names = [view.name for view in resolved.stages]
    if stage is not None and stage not in names:
        raise PlaitError(f"{run} has no stage {stage!r}: its stages are {', '.join(names)}")
    last = max((row["stage"] for row in steps if 0 < row["stage"] <= len(names)), default=1)
    view = resolved.stages[last - 1] if stage is None else resolved.stages[names.index(stage)]
    return view, [row for row in steps if row["stage"] == view.index]


def lines(view: StageView, window: Window, found: Sequence[Cause]) -> list[str]:
    """Return what is printed: a line of totals, one for each part of a step, and the causes."""
    rates = [f"{window.samples_per_s:,.4g} samples/s"]
    rates += [f"{window.tflop_per_s:,.3g} TFLOP/s of a device"] if window.tflop_per_s is not None else []
    rates += [f"MFU {window.mfu:.1%}"] if window.mfu is not None else []
    told = [
        f"stage {view.index} {view.name}, steps {window.first + 1:,} to {window.last:,}: {window.total:.3g} s a step; {', '.join(rates)}"
    ]
    told += [_line(name, seconds, window.total) for name, seconds in _parts(window)]
    slow = dict(sorted(window.prepare.items(), key=lambda item: -item[1][0]))
    if slow:
        shown = ", ".join(f"{name} {seconds * 1e3:,.3g} ms" for name, (seconds, _) in [*slow.items()][:8])
        told.append(f"  to read and encode a sample takes a worker: {shown}")
    if window.monitor is not None and window.total:
        told.append(f"  watching (track.monitor) takes {window.monitor / window.total:.2%}, which is in other parts")
    if window.compiling is not None:
        told.append(f"  compiling took {window.compiling[0]:.3g} s of the stage so far, {window.compiling[1]:.1%} of the time of its steps")
    told += ["", "causes, the costliest first" if found else "no known cause takes 5 % of a step"]
    for cause in found:
        told.append(f"  {cause.share:>4.0%}  {cause.what}: {cause.text}")
        told += [f"        {cause.cure}"] if cause.cure else []
    return told


def _of_sources(view: StageView, rows: Sequence[Row]) -> list[str]:
    """Return a line for each source and task whose loss was measured on the same samples, and the warnings of those."""
    looks = [row for row in rows if row.get("stage") == view.index and source_rule.is_row(row)]
    if not looks:
        return []
    told = ["", "loss by source, each of the same samples"]
    for name in (name for name in looks[0] if name.startswith(source_rule.PREFIX)):
        known = [(row["step"], row[name]) for row in (looks[0], looks[-1]) if isinstance(row.get(name), float)]
        shown = ", ".join(f"{value:.4g} at step {step:,}" for step, value in dict.fromkeys(known))
        told.append(f"  {name.removeprefix(source_rule.PREFIX)}: {shown}")
    return told + [f"  {line}" for row in looks for line in row.get("warnings", ())]


def _parts(window: Window) -> Iterator[tuple[str, float]]:
    """Yield (what is shown, seconds) of each part of a step, that of each component below the forward pass."""
    for part in PARTS:
        if not window.seconds[part]:
            continue
        yield _OF_RANKS if part == "start" and window.ranks else _WORDS.get(part, part), window.seconds[part]
        if part == "forward":
            yield from ((f"  {name}", seconds) for name, seconds in window.forward.items())


def _line(name: str, seconds: float, total: float) -> str:
    share = seconds / total if total else 0.0
    return f"  {name:<22} {share:>6.1%}  {seconds:>10.4f} s  {'#' * round(_BAR * share)}".rstrip()


def as_dict(run: Path, view: StageView, window: Window, found: Sequence[Cause], trace_file: Path | None) -> dict[str, Any]:
    """Return what `plait why --json` prints; `window` has the seconds per step by part, and what was measured beside them."""
    return {
        "run": str(run),
        "stage": view.name,
        "seconds_per_step": window.total,
        "window": asdict(window),
        "causes": [asdict(one) for one in found],
        "trace": None if trace_file is None else str(trace_file),
    }


def _profiled(run: Path, view: StageView, steps: int) -> Path:
    """Train some steps of a stage again, in a folder that is removed; return RUN/profile/stage-N-NAME.json, a trace for Perfetto."""
    path = run / "profile" / f"stage-{view.index}-{view.name}.json"
    table = trace.write(view, steps, path)
    log.info(f"{path}: the trace of {steps} steps, for https://ui.perfetto.dev; what took longest:\n{table}")
    return path
