"""Print runs side by side, for `plait compare`: the settings that differ, and the steps, held-out figures and time of stages.

Reads the runs' files only; no model is built, and no checkpoint is verified. Weights are compared by `plait ckpt diff`.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plait.assembly.run_configuration import open_run_config
from plait.commands.actions import stages
from plait.config.resolved import ABSENT, Resolved, difference
from plait.engine.checkpoints import checkpoint
from plait.errors import PlaitError

log = logging.getLogger(__name__)

_WIDEST = 40
"""Characters of a value; a longer one is cut in the middle."""


def show(runs: Sequence[Path]) -> None:
    """Print a table of the run directories `runs`, a column each: settings that differ; and steps, held-out figures and time by stage.

    Raises PlaitError for a path that is no run directory, or is given twice.
    """
    if twice := next((run for number, run in enumerate(runs) if run.resolve() in [other.resolve() for other in runs[:number]]), None):
        raise PlaitError(f"{twice} is given twice: a run is compared with others")
    resolved = [open_run_config(run) for run in runs]
    rows: list[tuple[str, Sequence[str]]] = [("", [str(run) for run in runs])]
    settings = differing(resolved)
    rows += settings or [("settings", ["the same"] * len(runs))]
    progress = [_progress(run, config) for run, config in zip(runs, resolved, strict=True)]
    for name in dict.fromkeys(name for of_run in progress for name in of_run):
        rows.append((name, [of_run.get(name, "-") for of_run in progress]))
    widths = [max(map(len, column)) for column in zip(*([name, *cells] for name, cells in rows), strict=True)]
    for name, cells in rows:
        log.info("  ".join(f"{cell:<{width}}" for cell, width in zip([name, *cells], widths, strict=True)).rstrip())


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


def _progress(run: Path, resolved: Resolved) -> dict[str, str]:
    """Return the rows of one run for stages that began, as {"projection best loss": "6.217 at step 6"}."""
    rows = stages.rows_of(run)
    manifests = stages.manifests_by_stage(checkpoint.published(run))
    now = max([*manifests, *(row["stage"] for row in rows if "stage" in row), 0])
    cells = {}
    for view in resolved.stages[:now]:
        progress = stages.progress(view, rows, manifests.get(view.index))
        cells[f"{view.name} steps"] = progress.steps
        for figure in progress.figures:
            cells[f"{view.name} best {figure.name}"] = f"{figure.best:.4g} at step {figure.step:,}"
            cells[f"{view.name} last {figure.name}"] = f"{figure.last:.4g}"
        cells[f"{view.name} time"] = progress.time
    return cells
