"""Return the figures of a report as JSON values: what `plait report --json` prints. Curves are whole, not thinned to a screen."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plait.commands.actions import compare
from plait.commands.actions.report import against_plan, comparison, slow, tables
from plait.commands.actions.report.record import RunRecord, is_number
from plait.commands.actions.runs import prune
from plait.engine.checkpoints import checkpoint


def as_dict(records: Sequence[RunRecord], page: Path | None, *, plan: bool) -> dict[str, Any]:
    """Return the figures of some runs, and of several what sets them apart. `page`: the HTML file that was written beside, if any.

    `plan`: whether one run is held against its plan, which builds the model without weights.
    """
    several = len(records) > 1
    return {
        "page": None if page is None else str(page),
        "runs": [of_run(record, plan=plan and not several) for record in records],
        "settings": dict(compare.differing([record.resolved for record in records])) if several else {},
        "verdict": comparison.verdict(records) if several else [],
    }


def of_run(record: RunRecord, *, plan: bool) -> dict[str, Any]:
    """Return the figures of one run: those of `plait runs`, and what its page shows."""
    steps = {folder: checkpoint.step_of(folder) for folder in record.checkpoints}
    forecast, unknown = against_plan.figures(record) if plan else ([], {})
    return {
        **record.listed.plain(),
        "name": record.name,
        "stages_begun": [{"stage": index, "name": _name(record, index), **of.as_dict()} for index, of in record.progress.items()],
        "series": {name: [[int(step), value] for step, value in record.series(name)] for name in _names(record)},
        "intervals": [{"step": row["step"], **row["intervals"]} for row in record.held_out if isinstance(row.get("intervals"), Mapping)],
        "seconds_by_part": tables.seconds_by_part(record),
        "causes": [{"stage": stage, **asdict(cause)} for stage, cause in slow.found(record)],
        "plan": forecast,
        "plan_unknown": unknown,
        "measured": [{"folder": str(folder), **row} for folder, row in record.measured],
        "ledger": list(record.ledger),
        "events": [{"step": step, "kind": kind, "text": text} for step, kind, text in tables.events(record)],
        "starts": list(record.starts),
        "lineage": record.lineage,
        "checkpoints": [{"stage": folder.parent.name, "step": step, "bytes": prune.size_of(folder)} for folder, step in steps.items()],
        "unusable_samples": list(record.quarantine),
        "left_out": list(record.left_out),
    }


def _name(record: RunRecord, index: int) -> str:
    return next(view.name for view in record.resolved.stages if view.index == index)


def _names(record: RunRecord) -> list[str]:
    """Return the names of all figures in the rows, in the order in which they come."""
    names = dict.fromkeys(name for row in record.rows for name, value in row.items() if is_number(value))
    return [name for name in names if name not in ("step", "stage")]
