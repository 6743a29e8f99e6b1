"""Make the table of what made the steps of a run slow, with the cures of `plait why`."""

from plait.commands.actions.report.record import RunRecord
from plait.commands.pages.report import Table
from plait.training.monitor.causes import Cause, causes
from plait.training.monitor.window import window_of


def table(record: RunRecord) -> Table | None:
    """Return the table of causes by stage, the costliest first; None where none takes a twentieth of a step."""
    rows = [[stage, cause.what, f"{cause.share:.1%}", cause.text, cause.cure] for stage, cause in found(record)]
    return Table("What made steps slow", ["stage", "cause", "of a step", "what was found", "cure"], rows, frozenset({2})) if rows else None


def found(record: RunRecord) -> list[tuple[str, Cause]]:
    """Return each cause with the name of its stage, the costliest of a stage first."""
    pairs = list[tuple[str, Cause]]()
    for view in record.resolved.stages:
        window = window_of([row for row in record.trained if row.get("stage") == view.index])
        pairs += [(view.name, cause) for cause in (causes(window, view, record.resolved) if window is not None else [])]
    return pairs
