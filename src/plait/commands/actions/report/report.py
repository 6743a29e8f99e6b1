"""Write the page of one run, or of several: what `plait report` does. Only the runs' files are read."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from plait import files
from plait.commands.actions.report import against_plan, comparison, curves, figures, measured, record, shown, slow, tables
from plait.commands.actions.report.record import RunRecord
from plait.commands.pages.report import Block, RunPart, render_report
from plait.engine.monitoring import screen
from plait.engine.monitoring.json_output import show_json
from plait.errors import PlaitError
from plait.training.figures import picture_use

log = logging.getLogger(__name__)

NAME = "report.html"
"""The page in a run's directory."""


def write(runs: Sequence[Path], out: Path | None = None, *, plan: bool = True) -> Path:
    """Write the page of the run directories `runs`, and return its path.

    `out`: that path; None: report.html in the run, or here for several. `plan`: hold one run against its plan, which takes seconds.
    Raises PlaitError for a path that is no run directory, or is given twice.
    """
    return _write(_read(runs), out or (runs[0] / NAME if len(runs) == 1 else Path(NAME)), plan=plan)


def show(runs: Sequence[Path], out: Path | None = None, *, plan: bool = True) -> None:
    """Print the figures of the run directories `runs` as one JSON object, and write their page if `out` names one.

    Raises PlaitError for a path that is no run directory, or is given twice.
    """
    records = _read(runs)
    show_json(figures.as_dict(records, None if out is None else _write(records, out, plan=plan), plan=plan))


def _read(runs: Sequence[Path]) -> list[RunRecord]:
    """Read some runs, each once. Raises PlaitError for a path that is no run directory, or is given twice."""
    if twice := next((run for number, run in enumerate(runs) if run.resolve() in [other.resolve() for other in runs[:number]]), None):
        raise PlaitError(f"{twice} is given twice: a page shows each run once")
    return _apart([record.read(run) for run in runs])


def _write(records: Sequence[RunRecord], path: Path, *, plan: bool) -> Path:
    """Write the page of some runs to `path`, which is returned. Raises PlaitError where a page cannot be there."""
    if path.is_dir():
        raise PlaitError(f"{path} is a folder: name a file for the page, such as {path / NAME}")
    if path.is_symlink() and not path.exists():
        raise PlaitError(f"{path} is a link to nothing: give another name for the page, or remove it")
    html = page(records, plan=plan)
    files.write_whole(path, html)
    for each in records:
        for line in each.left_out:
            log.warning(f"{each.path}: {line}")
    log.info(f"written to {path} ({len(html.encode()) / 1e6:.2f} MB)")
    return path


def _apart(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the records, those of runs whose folders have the same name called by their paths."""
    names = [each.name for each in records]
    return [replace(each, name=str(each.path)) if names.count(each.name) > 1 else each for each in records]


def page(records: Sequence[RunRecord], *, plan: bool) -> str:
    """Return the HTML of the page. `plan`: whether one run is held against its plan."""
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    if len(records) == 1:
        part = run_part(records[0], 0, plan=plan)
        return render_report(part.name, [*part.lines, f"This page was written on {now}."], None, [part])
    above = RunPart("", "all", [], [], comparison.frame_of(records), list(comparison.blocks(records)))
    *names, last = (each.name for each in records)
    title = f"{', '.join(names)} and {last}" if len(records) < 4 else f"{len(records)} runs"
    parts = [run_part(each, i, folded=True) for i, each in enumerate(records)]
    return render_report(title, [f"This page was written on {now}."], above, parts)


def run_part(each: RunRecord, number: int, *, folded: bool = False, plan: bool = False) -> RunPart:
    """Return the part of a page that is of one run. `number`: its place among the runs; `plan`: whether it is held against its plan."""
    frame = curves.frame_of(each)
    return RunPart(
        name=each.name,
        anchor=f"run{number}",
        lines=[_sentence(each)],
        tiles=tables.tiles(each),
        frame=frame,
        blocks=list(_blocks(each, plan=plan)),
        folded=folded,
        colour=number % 8,
    )


def _sentence(each: RunRecord) -> str:
    """Return a line on how far a run is."""
    listed = each.listed
    many = len(each.resolved.stages)
    where = f"stage {listed.stage}, {listed.number} of {many}; " if many > 1 else ""
    parts = f"{each.resolved.config.family}, {listed.state}; {where}{each.last_step:,} steps in {screen.clock(listed.seconds)}"
    return f"{parts}." if each.trained else f"{each.resolved.config.family}, {listed.state}: no step is recorded yet."


def _blocks(each: RunRecord, *, plan: bool) -> Iterator[Block]:
    """Yield the blocks of a run in their order; those without content are left out when they are laid out."""
    yield Block("Stages", "stages", note="" if len(each.resolved.stages) > 1 else "One stage.", tables=[tables.stage_table(each)])
    for section in curves.sections(each):
        table = tables.held_out_table(each) if section.anchor == "held-out" else None
        table = slow.table(each) if section.anchor == "throughput" else table
        looked = each.looks[-1:] if section.anchor == "held-out" else []
        said = [f"Pictures make {picture_use.verdict(row)} at step {row['step']:,}: {picture_use.sentence(row)}." for row in looked]
        yield Block(
            section.title,
            section.anchor,
            " ".join(filter(None, [section.note, *said])),
            section.wide,
            section.charts,
            parts=tables.time_parts(each) if section.anchor == "throughput" else (),
            tables=[table] if table else (),
        )
    found = [measured.measured_table(each), tables.ledger_table(each)]
    yield Block("Measured", "measured", tables=[table for table in found if table])
    yield shown.answers(each)
    yield shown.pictures(each)
    if plan:
        table, told = against_plan.table(each)
        yield Block("Plan and reality", "plan", told, tables=[table] if table else ())
    yield Block("Data", "data", tables=[table for table in (tables.data_table(each), tables.quarantine_table(each)) if table])
    events = [tables.warnings_table(each), tables.starts_table(each), tables.disk_table(each)]
    yield Block("Warnings, starts, checkpoints", "events", tables=[table for table in events if table])
    left_out = " ".join(f"{line[0].upper()}{line[1:]}." for line in each.left_out)
    yield Block(
        "Environment and configuration",
        "environment",
        left_out,
        details=tables.details(each),
        summary="The whole configuration",
        text=each.resolved.yaml,
    )
