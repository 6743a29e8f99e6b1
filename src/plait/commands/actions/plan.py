"""Forecast each stage (part of a run), judge it, and print both, for `plait plan`. Nothing is trained or downloaded, but by a probe.

The figures are those of plait.training.planning; the weights and the disk that a run needs are looked at as by `plait doctor`.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from plait.assembly import data_look
from plait.assembly.data import open_validation
from plait.assembly.model import ModelBundle
from plait.commands.actions import doctor, findings, hub_access, plan_page, run_needs
from plait.commands.actions.plan_page import PlannedStage
from plait.config.resolved import Resolved
from plait.engine.monitoring.json_output import show_json
from plait.errors import PlaitError
from plait.training.planning import judge, meta_model, probe, search
from plait.training.planning.entries import held_out_entries, on_hub
from plait.training.planning.findings import Finding, Judge, Unsound
from plait.training.planning.forecast import StageForecast, forecast
from plait.training.planning.hardware import Hardware, gpu_of
from plait.training.planning.pace import Pace, pace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What a plan is asked for. `gpu`: kind of the GPUs, None: this machine; `only`: one stage, None: all."""

    gpu: str | None = None
    ranks: int = 1
    only: str | None = None
    search: bool = False
    probe: bool = False

    def check(self, resolved: Resolved) -> None:
        """Raise PlaitError for a stage that there is not, and for options that do not belong together."""
        names = [view.name for view in resolved.stages]
        if self.only is not None and self.only not in names:
            raise PlaitError(f"there is no stage {self.only!r}: the stages are {', '.join(names)}")
        if self.search and self.gpu is None:
            raise PlaitError("--search weighs the time of a step against what a rank sends, for GPUs that are named: add --gpu NAME")
        if self.probe and (self.gpu is not None or self.ranks > 1):
            raise PlaitError("--probe measures one rank on this machine, and --gpu and --ranks plan for others: leave one of them out")


def show(resolved: Resolved, asked: Asked, *, as_json: bool) -> None:
    """Print the plan of a run as text or JSON.

    Raises PlaitError for an unknown GPU or stage and for settings that do not fit the model; Unsound, after printing, if there are errors.
    """
    asked.check(resolved)
    hardware = Hardware(None if asked.gpu is None else gpu_of(asked.gpu), asked.ranks)
    probed = probe.probe(resolved, asked.only) if asked.probe else {}
    with meta_model.assets_of(resolved) as assets:
        bundle = meta_model.meta_bundle(resolved.config, assets)
        stages = list(planned(resolved, bundle, hardware, asked, probed))
    needs = list(run_wants(resolved))
    found = [Finding("warning", "", "configuration", line) for line in resolved.warnings]
    for need in needs:
        if need.cure is not None:
            here = need.what == "disk" and hardware.gpu is None
            found.append(Finding("error" if here else "warning", "", need.what, f"{need.result}: {need.cure}"))
    found += [finding for stage in stages for finding in stage.findings]
    if as_json:
        show_json(plan_page.as_dict(resolved, stages, found, needs, hardware))
    else:
        log.info("\n".join(plan_page.lines(stages, found, needs, hardware)))
    errors = [finding for finding in found if finding.level == "error"]
    if errors:
        more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise Unsound(f"the plan has errors: {errors[0].stage + ': ' if errors[0].stage else ''}{errors[0].text}{more}")


def planned(
    resolved: Resolved, bundle: ModelBundle, hardware: Hardware, asked: Asked, probed: Mapping[str, Pace]
) -> Iterator[PlannedStage]:
    """Yield each stage of the run that is asked for, forecast and judged. `bundle`: the model on the meta device; `probed`: paces."""
    for stage in forecast(resolved, bundle, hardware, only=asked.only):
        judging = Judge(resolved, stage.view, bundle.section)
        said = [*judge.judge(stage, judging), *judge.ranks(stage, hardware, judging), *judge.fits(stage, hardware, judging)]
        said += _looked(stage, bundle, judging)
        if asked.search:
            said += search.advise(stage, bundle, hardware, judging)
        known = probed.get(stage.view.name) or pace(stage, hardware, Path(str(resolved.config.run)))
        yield PlannedStage(stage, known, said)


def _looked(stage: StageForecast, bundle: ModelBundle, judging: Judge) -> Iterator[Finding]:
    """Look at some samples, as the run does before its first step: unusable ones, components without input, held-out ones."""
    config, plan = stage.view.config, stage.plan
    if plan is None or stage.batch is None or stage.batch.assumed is not None:
        return
    limits, remote = bundle.family.limits(bundle.section), any(map(on_hub, held_out_entries(config)))
    held_out = [] if remote else open_validation(config)
    found = data_look.look(plan.data.sources, bundle.inputs(config, train=True), limits, held_out, plan.data_seed)
    for text in data_look.unusable(found):
        yield judging.find("error", "data", text)
    for text in data_look.without_input(found, limits, config.trainable):
        yield judging.find("error" if config.guard.no_input == "stop" else "warning", "data", text)
    for one in found:
        overlap = one.overlap
        if overlap is not None and (overlap.same or overlap.pictures or overlap.clips):
            text = f"{one.source.name}: of its samples {overlap.text(len(one.source))}, so that figures on held-out data tell too much"
            copies = "; `plait data dedup CONFIG copies.jsonl` lists copies, filter: {dedup: copies.jsonl} on its source leaves them out"
            shares = bool(config.data.shares)
            cure = "" if shares else "--data.validation=1%"  # of all stages, which would differ else
            yield Finding("warning", stage.view.name, "held-out", text + copies * shares, cure)


def run_wants(resolved: Resolved) -> Iterator[findings.Finding]:
    """Yield what the run needs besides its settings, as `plait doctor` finds it: weights, data, licences, and the disk."""
    here, wanted = run_needs.weights(resolved)
    yield from here
    asked, download = hub_access.examine([*wanted, *run_needs.datasets(resolved)])
    yield from asked
    yield from doctor.room(resolved, Path(str(resolved.config.run)), download)
