"""Write the text and the JSON of `plait plan`.

A paragraph per stage (part of a run), then what the run needs, then the findings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plait.assembly.data import TrainingData
from plait.commands.actions import findings as doctor
from plait.commands.actions.findings import gigabytes
from plait.config.resolved import Resolved
from plait.data.loading.bucketing import contents_of
from plait.data.sources.filtered import filtered_text
from plait.engine import averages, schedule
from plait.training import summary
from plait.training.changes import sampled_rates
from plait.training.planning import checkpoint_size
from plait.training.planning.findings import LEVELS, Finding
from plait.training.planning.forecast import StageForecast, StrategyMemory
from plait.training.planning.hardware import Hardware
from plait.training.planning.pace import Pace

_GB = 1e9
_BARS = "▁▂▃▄▅▆▇█"
_POINTS = 40
_COLUMNS = ("weights", "gradients", "moments", "averages", "gathered", "activations", "logits", "peak")


@dataclass(frozen=True)
class PlannedStage:
    """A stage's forecast, its pace (None: nothing tells it) and what is to be said of it."""

    forecast: StageForecast
    pace: Pace | None
    findings: Sequence[Finding]


def lines(stages: Sequence[PlannedStage], found: Sequence[Finding], needs: Sequence[doctor.Finding], hardware: Hardware) -> list[str]:
    """Return the plan as lines of text."""
    gpu = "this machine" if hardware.gpu is None else f"{hardware.gpu.device} ({hardware.gpu.memory / _GB:g} GB)"
    told = [f"planned for {hardware.ranks} rank{'s' * (hardware.ranks > 1)} of {gpu}"]
    for stage in stages:
        told += ["", f"stage {stage.forecast.view.index} {stage.forecast.view.name}"]
        told += [f"  {name:<12} {text}".rstrip() for name, text in _rows(stage, hardware)]
    kept = [stage.forecast.checkpoints for stage in stages if stage.forecast.checkpoints is not None]
    told += ["", "the run"]
    if kept:
        count, size = checkpoint_size.needed(kept)
        told.append(f"  {'checkpoints':<12} {count} of all stages and one being written take up to {gigabytes(size)}")
    hours = [stage.pace.hours(stage.forecast.samples) for stage in stages if stage.pace is not None and stage.forecast.samples is not None]
    if hours and len(hours) == len(stages):
        told.append(f"  {'time':<12} {sum(hours):,.3g} h of all stages")
    told += [f"  {need.what:<12} {need.result}" for need in needs if need.cure is None]
    told += ["", "findings" if found else "nothing to say against it"]
    for level in LEVELS:
        for finding in found:
            if finding.level == level:
                where = f"{finding.stage}: " if finding.stage else ""
                told.append(f"  {level:<8} {where}{finding.text}")
                told += [f"  {'':<8}   {finding.cure}"] if finding.cure else []
    return told


def _rows(stage: PlannedStage, hardware: Hardware) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each figure of a stage."""
    planned, config = stage.forecast, stage.forecast.view.config
    batch = config.train.global_batch
    steps = "as many as the data makes" if planned.steps is None else f"{planned.steps:,}"
    samples = "" if planned.samples is None else f", {planned.samples:,} samples"
    cut = f"{planned.micro_batches} micro-batch{'es' * (planned.micro_batches > 1)} of {planned.micro_batch} on each rank"
    yield "steps", f"{steps} of {batch} samples ({cut}){samples}"
    yield from _data_rows(planned)
    total = sum(size.total for size in planned.sizes.values())
    for i, (component, size) in enumerate((name, size) for name, size in planned.sizes.items() if size.total):
        yield "" if i else "parameters", f"{component:<14} {size.total:>15,}  {f'{size.trained:,} train' if size.trained else 'frozen'}"
    yield "", f"{'all':<14} {total:>15,}  {planned.trained:,} train ({planned.trained / total:.2%})"
    precision, kind = config.train.precision, planned.chosen.checkpointing
    yield "memory", f"of each rank, micro-batch {planned.micro_batch}, {precision}, activation checkpointing {kind}; {planned.reason}"
    yield "", f"{'':<28}" + "".join(f"{name:>12}" for name in _COLUMNS)
    for memory in (planned.chosen, *planned.others):
        yield "", f"{_title(memory, planned):<28}" + "".join(f"{_cell(value):>12}" for value in bytes_by_kind(memory).values())
    yield from _host_rows(planned)
    if planned.flops is not None:
        yield "FLOPs", f"{planned.flops / 1e12:,.4g} TFLOP a step, {planned.flops / batch / 1e12:,.4g} a sample"
    if planned.orthogonalised is not None:
        matrices, values, flops = planned.orthogonalised
        yield "", f"and {flops / 1e12:,.4g} TFLOP a step of Muon, which orthogonalises {matrices:,} matrices of {values:,} values together"
    if stage.pace is not None:
        hours = "" if planned.samples is None else f"{stage.pace.hours(planned.samples):,.3g} h; "
        yield "time", f"{hours}{stage.pace.samples_per_s:,.4g} samples/s, {stage.pace.origin}"
    else:
        unknown = (
            "--gpu NAME takes it from a table, --probe measures it here"
            if hardware.gpu is None
            else "the FLOPs or the GPU's peak are not known"
        )
        yield "time", f"not known: {unknown}"
    yield from _setting_rows(planned)


def _host_rows(planned: StageForecast) -> Iterator[tuple[str, str]]:
    """Yield the rows of the host's memory, as far as there is something in it."""
    host, told = planned.host, []
    if host.writers:
        size = "not known" if host.copies is None else gigabytes(host.copies)
        whose = "rank 0" if host.writers == 1 else f"each of {host.writers} ranks"
        told.append(f"{size} of {whose} for the copy that background saves are written from (checkpoint.async_save)")
    if host.moments:
        told.append(f"{gigabytes(host.moments)} of each rank for the optimizer's moments (optim.offload)")
    if host.unused:
        told.append(f"{gigabytes(host.unused)} of each rank for weights that nothing computes with")
    yield from (("" if i else "host memory", text) for i, text in enumerate(told))


def _data_rows(planned: StageForecast) -> Iterator[tuple[str, str]]:
    plan, config = planned.plan, planned.view.config
    if plan is None:
        yield "data", planned.faults["data"]
    else:
        yield "data", ", ".join(f"{name} {size:,} samples" for name, size in zip(plan.data.names(), plan.order.sizes, strict=True))
        named = zip(plan.data.names(), plan.data.sources, strict=True)
        yield from (("", f"{name}: {filtered_text(source)}") for name, source in named if source.filtered)
        yield from (("", text) for text in summary.planned_shares(plan.data.names(), plan.data.sampling_weights, plan.order.counts))
        yield from (("", f"{name:<18} {text}") for name, text in contents_of(plan.data.sources, config.train.global_batch))
        passes = planned.samples / sum(plan.order.sizes) if planned.samples else 0
        yield "", f"{passes:,.3g} passes; any of {config.data.workers} workers of any rank reads any sample, however many shards there are"
    if planned.batch is None:
        yield "batch", f"not known: {planned.faults['batch']}"
        return
    tokens = planned.batch.tokens_per_sample
    shown = f"{tokens:,.4g} tokens a sample" if tokens is not None else "no tokens are counted"
    if planned.batch.assumed is None:
        yield "batch", f"{shown}, in {planned.batch.samples} samples of the first steps; memory is that of the largest micro-batch"
    else:
        yield "batch", f"{shown}, of the usual shapes, as the data cannot be read here"
        if plan is not None:
            yield "", planned.batch.assumed


def _setting_rows(planned: StageForecast) -> Iterator[tuple[str, str]]:
    """Yield the rows of rates, averages, the rule that ends the stage, and checkpoints."""
    config, steps = planned.view.config, planned.steps
    optim = config.optim if planned.plan is None else planned.plan.config.optim
    if steps:
        optim = schedule.with_warmup(optim, steps)
        values, end, unit = sampled_rates(optim, steps, _POINTS)
        bars = "".join(_BARS[min(len(_BARS) - 1, round(value * (len(_BARS) - 1)))] for value in values)
        warmup = schedule.warmup_of(optim)
        share = f"{warmup:,} of {end:,.0f} {unit} ({warmup / max(1, end):.2%})"
        yield (
            "rate",
            f"{optim.lr:g} {bars} {values[-1] * optim.lr:.3g}, warm-up {share}",
        )
        rates = {name: part.lr for name, part in optim.components.items() if part.lr is not None}
        if rates:
            yield "", ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
    if optim.ema is not None:
        yield "average", f"half-life of {averages.half_life(optim.ema.decay):,.0f} steps{f' of {steps:,}' if steps else ''}"
    rule = config.train.plateau
    if rule is not None:
        first = max(rule.min_steps, min(rule.patience_steps, rule.window_steps))
        yield "plateau", f"{rule.metric} can end the stage from step {first:,} on"
    if planned.checkpoints is not None:
        kept, size, left, _ = planned.checkpoints
        more = f", and {gigabytes(left)} of averages of deleted ones" if left else ""
        yield "checkpoints", f"{kept} of {gigabytes(size)} at the end{more}"
    elif "checkpoints" in planned.faults:
        yield "checkpoints", f"not known: {planned.faults['checkpoints']}"


def bytes_by_kind(memory: StrategyMemory) -> dict[str, int | None]:
    """Return the bytes of a rank by kind, in the order of the table's columns; None where the activations are not known."""
    state, step = memory.state, memory.step
    of_step = (None, None) if step is None else (step.activations, step.logits)
    values: tuple[int | None, ...] = (*state, *of_step, memory.peak)
    return dict(zip(_COLUMNS, values, strict=True))


def _title(memory: StrategyMemory, planned: StageForecast) -> str:
    name = "single" if memory.layout.ranks == 1 else memory.layout.strategy
    other = memory.checkpointing != planned.chosen.checkpointing
    return ("* " if memory is planned.chosen else "  ") + name + (f", checkpointing {memory.checkpointing}" if other else "")


def _cell(value: int | None) -> str:
    return "not known" if value is None else gigabytes(value) if value else "-"


def as_dict(
    resolved: Resolved, stages: Sequence[PlannedStage], found: Sequence[Finding], needs: Sequence[doctor.Finding], hardware: Hardware
) -> dict[str, Any]:
    """Return the plan as JSON values: `run`, `ranks`, `gpu`, `stages`, `needs`, `findings`. Sizes are in bytes."""
    return {
        "run": resolved.config.run,
        "family": resolved.config.family,
        "ranks": hardware.ranks,
        "gpu": None if hardware.gpu is None else asdict(hardware.gpu),
        "stages": [_stage_dict(stage) for stage in stages],
        "needs": [asdict(need) for need in needs],
        "findings": [asdict(finding) for finding in found],
    }


def _filtered(data: TrainingData) -> dict[str, dict[str, int]]:
    """Return {source: {part of its filter: samples left out}}. Sources have the names that a run gives them: the second of one a number."""
    return dict(zip(data.names(), (dict(source.filtered) for source in data.sources), strict=True))


def _stage_dict(stage: PlannedStage) -> dict[str, Any]:
    planned = stage.forecast
    optim = planned.view.config.optim
    batch = None if planned.batch is None else planned.batch
    return {
        "name": planned.view.name,
        "steps": planned.steps,
        "samples": planned.samples,
        "filtered": None if planned.plan is None else _filtered(planned.plan.data),
        "global_batch": planned.view.config.train.global_batch,
        "micro_batch": planned.micro_batch,
        "micro_batches": planned.micro_batches,
        "parameters": {name: asdict(size) for name, size in planned.sizes.items()},
        "memory": [_memory_dict(memory, memory is planned.chosen) for memory in (planned.chosen, *planned.others)],
        "tokens_per_sample": None if batch is None else batch.tokens_per_sample,
        "assumed_batch": None if batch is None else batch.assumed is not None,
        "flops_per_step": planned.flops,
        "muon": None if planned.orthogonalised is None else planned.orthogonalised._asdict(),
        "samples_per_s": None if stage.pace is None else stage.pace.samples_per_s,
        "hours": None if stage.pace is None or planned.samples is None else stage.pace.hours(planned.samples),
        "pace_from": None if stage.pace is None else stage.pace.origin,
        "host_memory": asdict(planned.host),
        "checkpoints": None if planned.checkpoints is None else planned.checkpoints._asdict(),
        "rates": None if not planned.steps else sampled_rates(schedule.with_warmup(optim, planned.steps), planned.steps, _POINTS)[0],
        "not_known": dict(planned.faults),
    }


def _memory_dict(memory: StrategyMemory, chosen: bool) -> dict[str, Any]:
    title = "single" if memory.layout.ranks == 1 else memory.layout.strategy
    return {"strategy": title, "activation_checkpointing": memory.checkpointing, "chosen": chosen, **bytes_by_kind(memory)}
