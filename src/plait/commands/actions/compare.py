"""Print runs side by side, for `plait compare`: settings that differ; steps, held-out figures and time of stages; and which is better.

Reads the runs' files only; no model is built, and no checkpoint is verified. Weights are compared by `plait ckpt diff`.
"""

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.assembly.run_configuration import open_run_config
from plait.commands.actions import stages
from plait.config.resolved import ABSENT, Resolved, difference
from plait.config.schema import RunConfig
from plait.engine.checkpoints import checkpoint
from plait.engine.monitoring.json_output import show_json
from plait.engine.monitoring.wrapping import columns
from plait.errors import PlaitError, command

log = logging.getLogger(__name__)

_WIDEST = 40
"""Characters of a value; a longer one is cut in the middle."""


def show(runs: Sequence[Path], *, as_json: bool = False) -> None:
    """Print a table of the run directories `runs`, a column each: settings that differ; and steps, held-out figures and time by stage.

    Last comes which run is better, by which held-out figure, or why that cannot be said. `as_json`: as one JSON object. Raises PlaitError
    for a path that is no run directory, or is given twice.
    """
    if twice := next((run for number, run in enumerate(runs) if run.resolve() in [other.resolve() for other in runs[:number]]), None):
        raise PlaitError(f"{twice} is given twice: a run is compared with others")
    resolved = [open_run_config(run) for run in runs]
    settings = differing(resolved)
    reached = [_reached(run, config) for run, config in zip(runs, resolved, strict=True)]
    said = verdict([str(run) for run in runs], resolved, reached)
    if as_json:
        stages_of = [{stage: one.as_dict() for stage, one in of_run.items()} for of_run in reached]
        show_json({"runs": [str(run) for run in runs], "settings": dict(settings), "stages": stages_of, "verdict": said})
        return
    rows: list[tuple[str, list[str]]] = settings or [("settings", ["the same"] * len(runs))]
    cells = [_cells(of_run) for of_run in reached]
    names = dict.fromkeys(name for of_run in cells for name in of_run)
    rows += [(name, [of_run.get(name, "-") for of_run in cells]) for name in names]
    log.info("\n".join(_table([str(run) for run in runs], rows, columns(sys.stdout))))
    for line in said:
        log.info(line)


def _table(head: Sequence[str], rows: Sequence[tuple[str, list[str]]], width: int | None) -> list[str]:
    """Return the lines of a table with a column per run; or, where a terminal of `width` columns is too narrow, with a line per cell.

    `head`: names of the runs. `rows`: (name, a cell per run).
    """
    lines = [["", *head], *([name, *cells] for name, cells in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if width is None or sum(widths) + 2 * len(head) <= width:
        return ["  ".join(f"{cell:<{wide}}" for cell, wide in zip(cells, widths, strict=True)).rstrip() for cells in lines]
    wide = max(map(len, head))
    return [line for name, cells in rows for line in (name, *(f"  {run:<{wide}}  {cell}" for run, cell in zip(head, cells, strict=True)))]


def differing(resolved: Sequence[Resolved]) -> list[tuple[str, list[str]]]:
    """Return (dotted key, its value in each run) for every setting, except `run`, that is not the same in all runs.

    `resolved`: the runs' configurations, in order. Values are text, long ones cut to 40 characters; "-" if a run does not have the key.
    """
    first, *others = resolved
    changes = [{key: (old, new) for key, old, new in difference(first, other) if key != "run"} for other in others]
    keys = dict.fromkeys(key for changed in changes for key in changed)
    rows = []
    for key in keys:
        base = next(changed[key][0] for changed in changes if key in changed)
        rows.append((key, [_text(base), *(_text(changed[key][1] if key in changed else base) for changed in changes)]))
    return rows


def _text(value: Any) -> str:
    text = "-" if value is ABSENT else "none" if value is None else str(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST // 2 - 2]}...{text[-_WIDEST // 2 + 1 :]}"


def _reached(run: Path, resolved: Resolved) -> dict[str, stages.StageProgress]:
    """Return how far each stage of a run is that began, by its name."""
    rows = stages.rows_of(run)
    manifests = stages.manifests_by_stage(checkpoint.published(run))
    now = max([*manifests, *(row["stage"] for row in rows if "stage" in row), 0])
    return {view.name: stages.progress(view, rows, manifests.get(view.index)) for view in resolved.stages[:now]}


def _cells(reached: Mapping[str, stages.StageProgress]) -> dict[str, str]:
    """Return the rows of one run for its stages, as {"projection best loss": "6.217 at step 6"}."""
    cells = {}
    for stage, progress in reached.items():
        cells[f"{stage} steps"] = progress.steps
        for figure in progress.figures:
            cells[f"{stage} best {figure.name}"] = f"{figure.best:.4g} at step {figure.step:,}"
            cells[f"{stage} last {figure.name}"] = f"{figure.last:.4g}"
        cells[f"{stage} time"] = progress.time
    return cells


def verdict(names: Sequence[str], resolved: Sequence[Resolved], reached: Sequence[Mapping[str, stages.StageProgress]]) -> list[str]:
    """Return lines that say which run is better, by each held-out figure of the last stage in which all have one.

    Where nothing can be compared, the line says why. `names`, `resolved`, `reached`: of each run its name, its configuration, and its
    progress by stage.
    """
    families = dict.fromkeys(one.config.family for one in resolved)
    if len(families) > 1:
        return [f"nothing can be compared: the runs are of the families {' and '.join(families)}, whose figures are not of one kind"]
    first, *others = reached
    for stage in reversed([stage for stage in first if all(stage in other for other in others)]):
        by_run = [{figure.name: figure for figure in of_run[stage].figures} for of_run in reached]
        common = [name for name in by_run[0] if all(name in figures for figures in by_run)]
        if common:
            configs = [next(view.config for view in one.stages if view.name == stage) for one in resolved]
            return [_better(names, configs, [figures[name] for figures in by_run], stage) for name in common]
    return [
        "nothing can be compared: no stage has a held-out figure in all runs; evaluate: measures while training, plait eval RUN after it"
    ]


def _better(names: Sequence[str], configs: Sequence[RunConfig], figures: Sequence[stages.Figure], stage: str) -> str:
    """Return a line that says which run is better by one figure of a stage, and how surely; or why that cannot be said."""
    name, lower = figures[0].name, figures[0].lower
    what = f"{stage}, best {name}"
    if key := _measured_differently(configs, figures[0]):
        return f"{what}: cannot be compared, as it is not of the same held-out data: {key} differs; plait eval measures both on the same"
    if any(figure.lower != lower for figure in figures) or not all(math.isfinite(figure.best) for figure in figures):
        return f"{what}: cannot be compared: {', '.join(f'{figure.best:.4g}' for figure in figures)}"
    ranked = sorted(zip(names, figures, strict=True), key=lambda pair: pair[1].best if lower else -pair[1].best)
    (best, own), (second, other) = ranked[:2]
    gap = abs(own.best - other.best)
    if gap == 0:
        return f"{what}: {best} and {second} are level at {own.best:.4g}"
    line = f"{what}: {best} is better than {second} by {gap:.4g} ({own.best:.4g} against {other.best:.4g}"
    line += f"; {'lower' if lower else 'higher'} is better)"
    if own.interval is None or other.interval is None:
        return f"{line}; there is no interval, so another seed may say otherwise"
    sure = math.hypot(*(max(abs(end - figure.best) for end in figure.interval or ()) for figure in (own, other)))
    if gap > sure:
        return f"{line}, which is more than the 95 % interval of a difference, ±{sure:.2g}"
    more = command("eval", best, "--bench", own.bench, "--against", second)
    return (
        f"{line}, which is within the 95 % interval of a difference, ±{sure:.2g}: these samples do not tell; paired, they tell more: {more}"
    )


def _measured_differently(configs: Sequence[RunConfig], figure: stages.Figure) -> str | None:
    """Return the first setting that gives the runs other held-out samples for a figure, or other inputs for a loss; None if none does."""
    entries = [next((entry for entry in config.evaluate if entry.bench == figure.bench), None) for config in configs]
    chosen = [entry is not None and entry.samples is not None for entry in entries]
    shares = [bool(config.data.shares) for config in configs]
    facts: dict[str, list[Any]] = {
        "evaluate.data": [entry.data if entry else [] for entry in entries],
        "evaluate.samples": [entry.samples if entry else None for entry in entries],
        "data.validation": [config.data.validation for config in configs],
        "data.train, of which a share is held out,": [
            config.data.train if share else [] for config, share in zip(configs, shares, strict=True)
        ],
        "seed": [config.seed if share or few else None for config, share, few in zip(configs, shares, chosen, strict=True)],
        "data.max_tokens": [config.data.max_tokens if figure.name.startswith("loss") else None for config in configs],
    }
    return next((name for name, values in facts.items() if any(value != values[0] for value in values)), None)
