"""Choose of a record the figures of the files of a push: of their checkpoint, their weights, and what they hold.

An export may hold a part of the model, such as Gemma without its world; figures of the whole model are not its figures.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from plait.assembly import saved
from plait.commands.actions.publishing.outbox import Job
from plait.commands.actions.report import measured
from plait.commands.actions.report.record import Row, RunRecord, is_number
from plait.config.sections.adapters import LAYOUT, SUFFIX
from plait.errors import command
from plait.families import registry
from plait.families.ablation import WAYS
from plait.training.figures import picture_use


class Held(NamedTuple):
    """What is told of a push. `run`: the record with the figures of its files alone; `weights`: the name of those loaded by default.

    `part`: a sentence where the files are a part of the model, "" where they hold all.
    """

    run: RunRecord
    weights: str
    part: str


def of_push(whole: RunRecord, job: Job, folder: Path) -> Held:
    """Return what `whole`, the record of a run, tells of the files in `folder`, which are pushed as `job` says."""
    stage = next((number for number, view in enumerate(whole.resolved.stages, 1) if view.name == job.stage), 0)
    manifest = whole.manifests.get(stage)
    weights = measured.AVERAGES if measured.has_averages(manifest) else measured.LAST
    known = ("", weights) if job.layout else ("", measured.AVERAGES, measured.LAST)
    rows = [row for row in whole.rows if row["step"] <= job.step]  # uploads may lag behind training
    own = [(path, told) for path, told in whole.measured if measured.of_checkpoint(told, job.checkpoint, job.step)]
    run = replace(whole, rows=rows, measured=[pair for pair in own if measured.weights_of(pair[1], whole) in known], _series={})
    without, lost = _without(run, job), _lost(run, job, folder)
    if without is None and not lost:
        return Held(run, weights, "")
    run = _part(run, without)
    if without is None:
        what = ", ".join(lost)
        return Held(run, weights, f"The files leave out what the run trained of {what}: figures of the whole model are not theirs.")
    figures = any(told["figures"] for _, told in run.measured) or bool(run.held_out)
    cure = f"`{command('eval', 'RUN', '--bench', 'NAME', '--ablate', without)}`"
    told = f"Figures are of the model without its {without}." if figures else f"No figure was measured so, as {cure} does."
    return Held(run, weights, f"The layout {job.layout} leaves the {without} out: what its library loads is the model without it. {told}")


def _without(run: RunRecord, job: Job) -> str | None:
    """Return the input that the models of the job's layout do without; None where there is none, or this model has none of it."""
    config = run.resolved.config
    kind = registry.model_config(config.family)
    name = kind.without.get(job.layout or "")
    return None if name is None or name in kind.model_validate(config.model).absent() else name


def _lost(run: RunRecord, job: Job, folder: Path) -> list[str]:
    """Return the components of which the files lack weights that the run trained."""
    if job.layout != LAYOUT:
        return saved.left_out(folder)
    begun = [view for view in run.resolved.stages if view.index in run.progress]
    return list(dict.fromkeys(name for view in begun for name in view.config.trainable if not name.endswith(SUFFIX)))


def _part(run: RunRecord, without: str | None) -> RunRecord:
    """Return a record without the figures of the whole model. `without`: those without this input stay, under their plain names."""
    end = None if without is None else f"/{without}_{WAYS[0]}"
    rows = [_row(row, end) for row in run.rows if not picture_use.is_row(row)]
    found = [(path, {**told, "figures": figures}) for path, told, figures in ((p, t, _off(t.get("figures"), end)) for p, t in run.measured)]
    cut: dict[str, Any] = {"verdict": "", "ablation": {}}
    listed = [(path, {**told, **cut, "intervals": _off(told.get("intervals"), end)}) for path, told in found if told["figures"]]
    progress = {number: one._replace(figures=[]) for number, one in run.progress.items()}
    return replace(run, rows=rows, measured=listed, progress=progress, ledger=[], _series={})


def _row(row: Row, end: str | None) -> Row:
    """Return a row of metrics.jsonl without figures of the whole model."""
    rest = {name: value for name, value in row.items() if not name.startswith("eval/") and name != "intervals"}
    figures = _off({name: value for name, value in row.items() if name.startswith("eval/")}, end)
    return rest | figures | ({"intervals": _off(row["intervals"], end)} if figures and "intervals" in row else {})


def _off(figures: Any, end: str | None) -> dict[str, Any]:
    """Return the figures whose names end so, under their names without it."""
    if end is None or not isinstance(figures, Mapping):
        return {}
    return {name.removesuffix(end): value for name, value in figures.items() if name.endswith(end)}


def is_variant(run: RunRecord, figure: str) -> bool:
    """Return whether a figure is of samples of which an input was left out or exchanged, by its name: accuracy/world_off."""
    listed = registry.ablations(run.resolved.config.family)
    return figure.rpartition("/")[2] in {f"{name}_{way}" for name in listed for way in WAYS}


def is_of(told: Row, run: RunRecord, weights: str) -> bool:
    """Return whether a metrics.json tells figures of these weights, or does not say of which."""
    return measured.weights_of(told, run) in ("", weights) and isinstance(told.get("figures"), Mapping) and is_number(told.get("step"))
