"""Judge the settings of a stage (part of a run) by what they mean, with the override that cures each finding."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import torch

from plait.assembly import passes
from plait.config.resolved import StageView
from plait.config.schema import Component, Optim, Train
from plait.engine import averages, schedule
from plait.families.planning import planner
from plait.training.planning.findings import Finding, Judge, Level
from plait.training.planning.forecast import StageForecast
from plait.training.planning.hardware import SPARE, Hardware
from plait.training.stage_plan import steps_of

_LONG_WARMUP, _USUAL_WARMUP = 0.5, 0.05
"""A warm-up of more than this share of a stage is told; and the share that is proposed."""
_MANY_PASSES = 100
"""Passes over a source in a stage above which it is told."""
_RATE_FACTOR = 10.0 * (1 + 1e-9)
"""A learning rate that is so many times another one is told."""


def judge(stage: StageForecast, findings: Judge) -> Iterator[Finding]:
    """Yield what is to be said of a stage's settings. `findings` makes each."""
    yield from _data(stage, findings)
    yield from _passes(stage, findings)
    yield from _schedule(stage, findings)
    yield from _rates(stage, findings)
    yield from _muon(stage, findings)
    yield from _average(stage, findings)
    yield from _plateau(stage, findings)
    yield from _intervals(stage, findings)


def _data(stage: StageForecast, findings: Judge) -> Iterator[Finding]:
    train = stage.view.config.train
    if stage.plan is None:
        reason = stage.faults["data"]
        key = reason.partition(" ")[0]
        if key.startswith("optim.") and key.endswith(".warmup_steps"):  # longer than the epochs or samples take
            yield findings.find("error", "schedule", reason, key, _usual_warmup(steps_of(_without_schedule(stage.view))))
        else:
            yield findings.find("advice" if ": not opened, " in reason else "error", "data", reason)
        return
    if "samples" in stage.faults:
        yield findings.find("error", "data", stage.faults["samples"])
    batch, samples = train.global_batch, sum(stage.plan.order.sizes)
    for text in passes.warnings(stage.plan.data.names(), stage.plan.order, stage.plan.steps, train.epochs):
        fitting = samples - samples % (train.micro_batch or 1) if batch > samples else 0
        yield findings.find("warning", "data", text, "train.global_batch" if fitting else "", fitting)


def _passes(stage: StageForecast, findings: Judge) -> Iterator[Finding]:
    """Say where a source is gone through so often that it is learned by heart, in a stage whose length is not told in passes over it."""
    train = stage.view.config.train
    if stage.plan is None or train.epochs is not None:
        return
    drawn = passes.samples_drawn(stage.plan.order, stage.plan.steps)
    rows = list(zip(stage.plan.data.names(), stage.plan.order.sizes, drawn, strict=True))
    most = max((samples / size for _, size, samples in rows), default=0.0)
    fitting = max(1, math.floor(stage.plan.steps * _MANY_PASSES / most)) if most else 0
    for name, size, samples in rows:
        if samples / size > _MANY_PASSES:
            text = f"{name} is gone through {samples / size:,.0f} times, {samples:,} samples drawn of {size:,}: it will be known by heart"
            text += "; fewer steps, more samples, or less of it in the mixture"
            yield findings.find("warning", "data", text, "train.samples" if train.samples else "train.steps", _length(train, fitting))


def _length(train: Train, steps: int) -> int:
    return steps * train.global_batch if train.samples else steps


def ranks(stage: StageForecast, hardware: Hardware, findings: Judge) -> Iterator[Finding]:
    """Say where a step has fewer samples than there are ranks, of which some would compute what counts for nothing."""
    train = stage.view.config.train
    if hardware.ranks > train.global_batch:
        size = train.micro_batch or 1
        text = f"a step has {train.global_batch:,} samples and there are {hardware.ranks:,} ranks: "
        text += f"{hardware.ranks - train.global_batch:,} of them have none"
        yield findings.find("error", "ranks", text, "train.global_batch", math.ceil(hardware.ranks / size) * size)


def _schedule(stage: StageForecast, findings: Judge) -> Iterator[Finding]:
    """Say where a warm-up takes most of the stage, so that it hardly trains at its rate."""
    optim, steps = stage.view.config.optim if stage.plan is None else stage.plan.config.optim, stage.steps
    if optim.schedule.units != "steps" or not steps:
        return
    for component in (None, *optim.components):
        warmup = schedule.warmup_of(optim, component)
        if warmup > _LONG_WARMUP * steps:
            key = "optim.schedule" if component is None else f"optim.components.{component}"
            text = f"the warm-up{'' if component is None else f' of {component}'} takes {warmup:,} of {steps:,} steps"
            text += ", so that most of the stage is below its rate"
            yield findings.find("warning", "schedule", text, f"{key}.warmup_steps", _usual_warmup(steps))


def _usual_warmup(steps: int) -> int:
    return max(1, round(_USUAL_WARMUP * steps))


def _without_schedule(view: StageView) -> StageView:
    """Return a stage with the default schedule, whose steps can be counted whatever its warm-up is."""
    return dataclasses.replace(view, config=view.config.model_copy(update={"optim": Optim()}))


def _rates(stage: StageForecast, findings: Judge) -> Iterator[Finding]:
    config = stage.view.config
    family = planner(config.family)
    usual: Mapping[str, float] = {} if family is None else family.usual_rates(findings.section)
    for component, size in stage.sizes.items():
        if not size.trained or component not in usual:
            continue
        own = config.optim.components.get(component, Component()).lr
        rate = config.optim.lr if own is None else own
        ratio = rate / usual[component]
        if not 1 / _RATE_FACTOR < ratio < _RATE_FACTOR:
            text = f"{component} trains at {rate:g}, {_times(ratio)} than the {usual[component]:g} with which it has been trained well"
            yield findings.find("warning", "rate", text, f"optim.components.{component}.lr", usual[component])


def _muon(stage: StageForecast, findings: Judge) -> Iterator[Finding]:
    if stage.orthogonalised is not None and not stage.orthogonalised.matrices:
        components = [component for component, size in stage.sizes.items() if size.trained]
        text = f"no matrix of {', '.join(components)} is in a block, so there is none for Muon"
        yield findings.find("error", "optimizer", text, f"optim.components.{components[0]}.muon", True)


def fits(stage: StageForecast, hardware: Hardware, findings: Judge) -> Iterator[Finding]:
    """Say where the stage's peak is more than the memory of a rank, with the first change that would make it fit."""
    settings, peak = stage.view.config.distributed, stage.chosen.peak
    memory = hardware.memory(settings)
    if peak is None or peak <= memory * SPARE:
        return
    certain = hardware.gpu is not None or settings.memory_gb is not None or torch.cuda.is_available()
    text = f"a rank holds {peak / 1e9:.1f} GB at its peak, and has {memory / 1e9:.1f} GB"
    text += "" if certain else " on this machine; name the GPUs it is for, as --gpu H100"
    level: Level = "error" if certain else "warning"
    for other in stage.others:
        if other.peak is not None and other.peak <= memory * SPARE:
            same = other.layout.strategy == stage.chosen.layout.strategy
            key, value = ("activation_checkpointing", other.checkpointing) if same else ("strategy", other.layout.strategy)
            yield findings.find(level, "memory", text, f"distributed.{key}", value)
            return
    smaller = next((size for size in range(stage.micro_batch - 1, 0, -1) if _with_micro_batch(stage, size) <= memory * SPARE), None)
    yield findings.find(level, "memory", text, "train.micro_batch" if smaller else "", smaller)


def _with_micro_batch(stage: StageForecast, size: int) -> float:
    """Return about the peak with micro-batches of `size`: what grows with them is taken to be proportional to their size."""
    config = stage.view.config
    if stage.chosen.step is None or (config.data.pack_tokens is None and config.train.global_batch % size):
        return math.inf
    return stage.chosen.state.total + stage.chosen.passes * size / stage.micro_batch


def _times(ratio: float) -> str:
    return f"{ratio:,.3g} times more" if ratio > 1 else f"{1 / ratio:,.3g} times less"


def _average(stage: StageForecast, findings: Judge) -> Iterator[Finding]:
    ema, steps = stage.view.config.optim.ema, stage.steps
    if ema is not None and steps and (text := averages.half_life_warning(ema.decay, steps)):
        yield findings.find("warning", "average", text, "optim.ema.decay", averages.fitting_decay(steps))


def _plateau(stage: StageForecast, findings: Judge) -> Iterator[Finding]:
    """Say where the rule that ends a stage early can never do so, or would at the first look."""
    config, steps = stage.view.config, stage.steps
    rule = config.train.plateau
    if rule is None or not steps:
        return
    bench = rule.metric.partition("/")[0]
    entries = [(i, entry) for i, entry in enumerate(config.evaluate) if entry.bench == bench]
    looks = [(i, entry.every_steps) for i, entry in entries if entry.every_steps is not None]
    if entries and not looks:
        text = f"train.plateau looks at {rule.metric}, which is measured at the end of the stage only: the rule never ends it"
        every = max(1, min(rule.patience_steps, steps) // 4)
        yield findings.find("warning", "plateau", text, f"evaluate.{entries[0][0]}.every_steps", every)
        return
    first = max(rule.min_steps, min(rule.patience_steps, rule.window_steps))
    if first >= steps:
        text = f"train.plateau can end the stage from step {first:,} on, and it has {steps:,}: the rule never ends it"
        yield findings.find("warning", "plateau", text, "train.plateau", None)
    for i, every in looks:
        if rule.patience_steps < 2 * every:
            text = f"train.plateau waits {rule.patience_steps:,} steps and {rule.metric} is measured every {every:,}: one figure ends it"
            yield findings.find("advice", "plateau", text, f"evaluate.{i}.every_steps", max(1, rule.patience_steps // 4))


def _intervals(stage: StageForecast, findings: Judge) -> Iterator[Finding]:
    config, steps = stage.view.config, stage.steps
    if not steps:
        return
    every = config.checkpoint.every_steps
    if every is not None and every >= steps:
        text = f"checkpoint.every_steps is {every:,} and the stage has {steps:,}: only its end is saved, and a kill before loses all"
        yield findings.find("advice", "checkpoints", text, "checkpoint.every_steps", max(1, steps // 4))
    for i, entry in enumerate(config.evaluate):
        if entry.every_steps is not None and entry.every_steps >= steps:
            text = f"{entry.title} is measured every {entry.every_steps:,} steps and the stage has {steps:,}: only at its end"
            yield findings.find("advice", "evaluation", text, f"evaluate.{i}.every_steps", max(1, steps // 4))
