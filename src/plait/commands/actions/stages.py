"""Print, for `plait stages`, how far each stage of a run is, its best evaluation results, and the ledger.

Reads the run's files only; no model is built. The newest checkpoint is verified, as by `plait train`; if it is damaged, the one before.
"""

import contextlib
import fcntl
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plait import files
from plait.assembly import held_out
from plait.assembly.run_configuration import open_run_config
from plait.config.resolved import StageView
from plait.config.schema import RunConfig
from plait.engine.checkpoints import checkpoint, integrity
from plait.engine.evaluation import Bench, is_count
from plait.engine.monitoring import screen
from plait.engine.monitoring.json_output import show_json
from plait.errors import PlaitError
from plait.training.figures import forgetting, picture_use

log = logging.getLogger(__name__)

_GAP_S = 600.0
"""Without word of a start, as in older runs: a gap between rows longer than this (and than ten steps) counts as a stop of the run."""

Row = Mapping[str, Any]
"""A row of metrics.jsonl: metrics by name."""
_NUMBER = int | float | None
_KINDS = {
    **files.STEP_KINDS,
    "time_s": _NUMBER,
    "step_s": _NUMBER,
    "loss": _NUMBER | str,
    "intervals": dict | None,
    "warnings": list | None,
}
"""The types of what is read of a row; one with others counts as damaged."""


def show(run: Path, *, as_json: bool = False) -> None:
    """Print for each stage of the run directory `run` steps, what trains, hours and best results; and the ledger.

    `as_json`: as one JSON object. Raises PlaitError if `run` is no run directory, and, after printing, if it has checkpoints of which
    none is intact.
    """
    resolved = open_run_config(run)
    rows = rows_of(run)
    running = is_locked(run)
    damaged = {} if running else _damaged(run)
    intact = [folder for folder in checkpoint.published(run) if folder not in damaged]
    manifests = manifests_by_stage(intact)
    now = max([*manifests, *(row["stage"] for row in rows if "stage" in row), 0])
    newest = manifests.get(max(manifests, default=0))
    ending = "running" if running else "stopped; `plait train` goes on" if intact or not damaged else "stopped; no checkpoint is intact"
    for fault in () if as_json else damaged.values():
        log.info(f"passed over: {fault}")
    ledger = forgetting.of_run(run)
    stages = list[dict[str, Any]]()
    for view in resolved.stages:
        manifest = manifests.get(view.index)
        state, trains = _state(view.index, now, manifest, ending), _trains(view.config, manifest, newest)
        lines = _progress_lines(view, rows, manifest) if view.index <= now else []
        told = progress(view, rows, manifest).as_dict() if lines else {}
        stages.append({"stage": view.index, "name": view.name, "state": state, "trains": trains, **told})
        if not as_json:
            log.info(
                "\n".join(
                    [f"stage {view.index} {view.name}: {state}", *(f"  {name:<10} {text}" for name, text in [("trains", trains), *lines])]
                )
            )
    if as_json:
        show_json({"run": str(run), "stages": stages, "ledger": ledger, "passed_over": list(damaged.values())})
    elif ledger:
        log.info("\n".join(["gained and forgotten, on the same held-out samples", *(f"  {line}" for line in forgetting.table(ledger))]))
    if damaged and not intact:
        raise PlaitError(integrity.none_intact(run, list(damaged), next(iter(damaged.values()))))


def rows_of(run: Path) -> list[Row]:
    """Return the rows of RUN/metrics.jsonl; the first of a step after the run was continued has `continued`: True."""
    starts = [row["time_s"] for row in files.read_rows(run / "migrations.jsonl", {"time_s": float | None}) if "time_s" in row]
    rows, before = list[Row](), 0.0
    for row in files.read_rows(run / "metrics.jsonl", _KINDS):
        now = row.get("time_s") or before
        rows.append({**row, "continued": True} if any(before < start < now for start in starts) else row)
        before = now
    return rows


class Figure(NamedTuple):
    """A held-out figure of a stage: its name, its best value with the run's step of that, and its last value.

    `interval`: that of the best value, with 95 % confidence, where there is one. `lower`: whether lower values are better. `bench`: the
    name of what measures it.
    """

    name: str
    best: float
    step: int
    last: float
    interval: tuple[float, float] | None
    lower: bool
    bench: str


class StageProgress(NamedTuple):
    """How far a stage is. `start`: the run's step at which it began; `planned`: its steps, None where not known; `seconds`: trained."""

    done: int
    planned: int | None
    start: int
    figures: list[Figure]
    seconds: float

    @property
    def steps(self) -> str:
        """Return the steps that are done and planned, as "6 of 6"."""
        return f"{self.done:,} of {self.planned:,}" if self.planned else f"{self.done:,}"

    @property
    def time(self) -> str:
        """Return the time trained, as h:mm:ss."""
        return screen.clock(self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values: `done`, `planned`, `start`, `seconds` and `held_out`, a list of figures."""
        numbers = {"done": self.done, "planned": self.planned, "start": self.start, "seconds": self.seconds}
        return {**numbers, "held_out": [figure._asdict() for figure in self.figures]}


def progress(view: StageView, rows: Sequence[Row], manifest: Mapping[str, Any] | None) -> StageProgress:
    """Return how far the stage of `view`, its configuration, is. `rows`: those of metrics.jsonl, of all stages.

    `manifest`: of the stage's newest checkpoint; None if it has none.
    """
    stage_rows = [row for row in rows if row.get("stage") == view.index]
    trained = [row for row in stage_rows if "loss" in row]
    before = max((row["step"] for row in rows if row.get("stage", view.index) < view.index), default=0)
    start = manifest["state"]["stage_start"] if manifest else before
    done = max([manifest["state"]["step"] if manifest else start, *(row["step"] for row in trained)]) - start
    planned = manifest["steps"] if manifest else view.config.train.steps
    return StageProgress(done, planned, start, _figures(stage_rows, view.config), 3600 * hours(trained, start))


def _progress_lines(view: StageView, rows: Sequence[Row], manifest: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the lines about steps, held-out figures, pictures and time, as (name, text)."""
    of_stage = progress(view, rows, manifest)
    last = f"last saved at {manifest['state']['step']:,}" if manifest else "none saved here"
    figures = [f"best {one.name} {one.best:.4g} at step {one.step:,}, last {one.last:.4g}" for one in of_stage.figures]
    lines = [("steps", f"{of_stage.steps}, from step {of_stage.start:,}; {last}")]
    lines += [("held out", text) for text in figures or ["no held-out figure yet"]]
    looks = [row for row in rows if row.get("stage") == view.index and picture_use.is_row(row)]
    shown = [f"make {picture_use.verdict(row)} at step {row['step']:,}: {picture_use.sentence(row)}" for row in looks[-1:]]
    lines += [("pictures", text) for text in shown]
    return [*lines, ("time", of_stage.time)]


def _damaged(run: Path) -> dict[Path, str]:
    """Verify a run's checkpoints from the newest on until one is intact. Returns the damaged ones before it, each with its first fault."""
    damaged: dict[Path, str] = {}
    for folder in checkpoint.published(run):
        faults = integrity.verify(folder)
        if not faults:
            break
        damaged[folder] = faults[0]
    return damaged


def _state(index: int, now: int, manifest: Mapping[str, Any] | None, ending: str) -> str:
    """Return what became of a stage. `now`: the stage that the run is in; `ending`: what is said of that one where it is not done."""
    if manifest is not None and manifest["state"]["stage_done"]:
        return f"done: {manifest['state']['stage_done']}"
    if index != now:
        return "not begun" if index > now else "done in the run it was forked from, or its checkpoints were removed"
    return ending


def manifests_by_stage(folders: Sequence[Path]) -> dict[int, dict[str, Any]]:
    """Return {number of a stage: its newest manifest}. `folders`: those of checkpoints, newest first.

    A checkpoint whose manifest cannot be read is passed over, with a line in the log.
    """
    manifests: dict[int, dict[str, Any]] = {}
    for folder in folders:
        try:
            manifest = checkpoint.read(folder).manifest
        except PlaitError as error:
            log.info(f"passed over: {error}")
            continue
        manifests.setdefault(int(manifest["state"]["stage"]), manifest)
    return manifests


def _trains(config: RunConfig, manifest: Mapping[str, Any] | None, newest: Mapping[str, Any] | None) -> str:
    """Return the components that train with their numbers of values.

    From the stage's own manifest; for a stage without one, all values of its components by the `newest` manifest.
    """
    if manifest is not None:
        components = manifest["components"]
        total = sum(component["values"] for component in components.values())
        counts = {name: component["trains"] for name, component in components.items() if component["trains"]}
        shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        return f"{shown} ({sum(counts.values()) / total:.2%} of {total:,})"
    sizes = {name: component["values"] for name, component in newest["components"].items()} if newest else {}
    return ", ".join(f"{name} {sizes[name]:,}" if name in sizes else name for name in config.trainable)


def _figures(rows: Sequence[Row], config: RunConfig) -> list[Figure]:
    """Return the held-out loss, the figure of `checkpoint.best` and the main one of each bench of `evaluate`: those that were measured."""
    wanted = {"loss": (True, "loss")}
    if best := config.checkpoint.best:
        wanted[best] = (config.checkpoint.better == "lower", best.partition("/")[0])
    known: Mapping[str, Bench] = {}
    with contextlib.suppress(PlaitError):  # a bench that this installation does not have: its figures are in metrics.jsonl
        known = held_out.benches(config, config.evaluate)
    names = dict.fromkeys(name.removeprefix("eval/") for row in rows for name in row if name.startswith("eval/") and not is_count(name))
    for entry in config.evaluate:
        main = next((name for name in names if name == entry.bench or name.startswith(f"{entry.bench}/")), None)
        if main is not None and entry.title in known:
            wanted.setdefault(main, (known[entry.title].lower, entry.bench))
    figures = []
    for name, (lower, bench) in wanted.items():
        values = [(row[f"eval/{name}"], row["step"], row) for row in rows if isinstance(row.get(f"eval/{name}"), float)]
        if values:
            value, step, row = min(values, key=lambda item: (item[0] if lower else -item[0], item[1]))
            pair = (row.get("intervals") or {}).get(name)
            sound = isinstance(pair, list) and len(pair) == 2 and all(isinstance(end, int | float) for end in pair)
            ends = (pair[0], pair[1]) if pair and sound else None
            figures.append(Figure(name, value, step, last=values[-1][0], interval=ends, lower=lower, bench=bench))
    return figures


def hours(rows: Sequence[Row], start: int) -> float:
    """Return the hours that a stage has trained, with evaluations and saves, without the time while the run was stopped.

    `rows`: those of `rows_of` for the stage that have a loss; `start`: the run's step at which it began. One without a time counts for
    nothing.
    """
    seconds, before = 0.0, None
    for row in rows:
        if row.get("step_s") is None or row.get("time_s") is None:
            continue
        in_steps = float(row["step_s"]) * (row["step"] - (before["step"] if before else start))
        passed = row["time_s"] - before["time_s"] if before else in_steps
        seconds += passed if passed <= max(_GAP_S, 10 * in_steps) and "continued" not in row else in_steps
        before = row
    return seconds / 3600


def is_locked(run: Path) -> bool:
    """Return whether a process holds the lock of the run, and so trains it now."""
    path = run / "lock"
    if not path.is_file():
        return False
    with path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
