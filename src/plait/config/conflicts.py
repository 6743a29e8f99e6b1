"""What settings make impossible together, each of them legal alone (schema.py): found before a run, and told with what to do."""

from collections.abc import Mapping
from typing import Any

from plait.config.schema import LENGTH, Distributed, Optim, RunConfig, Source
from plait.config.source_rules import SourceRules, unknown_kind


def conflicts(config: RunConfig, kinds: Mapping[str, SourceRules]) -> list[tuple[tuple[str | int, ...], str]]:
    """What the settings of one stage make impossible together: (path of the setting to blame, what and what to do)."""
    train, optim = config.train, config.optim
    found: list[tuple[tuple[str | int, ...], str]] = []
    lengths = [name for name in LENGTH if getattr(train, name) is not None]
    if len(lengths) != 1:
        said = f"sets {' and '.join(lengths)}: keep one" if lengths else "does not say how long: set one of steps, epochs, samples"
        found.append((("train",), said))
    steps = train.steps or (-(-train.samples // train.global_batch) if train.samples else None)
    found += schedule_conflicts(optim, steps)
    if train.micro_batch and train.global_batch % train.micro_batch:
        near = train.global_batch - train.global_batch % train.micro_batch or train.micro_batch
        said = f"is {train.micro_batch}, not a divisor of train.global_batch {train.global_batch}: for example train.global_batch={near}"
        found.append((("train", "micro_batch"), said))
    if optim.schedule.min_lr > optim.lr:
        said = f"is {optim.schedule.min_lr}, above the peak optim.lr {optim.lr}: lower it"
        found.append((("optim", "schedule", "min_lr"), said))
    spread = config.distributed
    if spread.shard_size is not None and spread.strategy != "hsdp":
        found.append((("distributed", "shard_size"), f"is for strategy hsdp, not {spread.strategy}: leave it out, or set strategy=hsdp"))
    for name in ("frozen", "memory_gb") if spread.strategy == "ddp" else ():
        if getattr(spread, name) not in ("auto", None):
            found.append((("distributed", name), "says how to shard, but strategy ddp never does: leave it out, or set another strategy"))
    if not config.trainable:
        found.append((("trainable",), "is empty, so nothing would train: name components, or '*'"))
    return found + _device_conflicts(config.distributed) + _data_conflicts(config, kinds)


def schedule_conflicts(optim: Optim, steps: int | None) -> list[tuple[tuple[str | int, ...], str]]:
    schedule, units = optim.schedule, optim.schedule.units
    found: list[tuple[tuple[str | int, ...], str]] = []
    other = "tokens" if units == "steps" else "steps"
    places: list[tuple[tuple[str, ...], Any]] = [(("optim", "schedule"), schedule)]
    places += [(("optim", "components", name), own) for name, own in optim.components.items()]
    ends = [schedule.decay_tokens] if units == "tokens" else [schedule.decay_steps, steps]
    end = min((one for one in ends if one), default=None)
    for place, section in places:
        for key in (f"warmup_{other}", f"decay_{other}"):
            if getattr(section, key, None):
                said = f"is set, but optim.schedule.units is {units}: set {key.replace(other, units)}, or the units"
                found.append(((*place, key), said))
        warmup = getattr(section, f"warmup_{units}")
        if end and warmup and warmup >= end:
            until = f"the stage has {end} steps" if end == steps else f"the curve ends at {end} {units}"
            found.append(((*place, f"warmup_{units}"), f"is {warmup}, but {until}: warm up for fewer, or train longer"))
    if units == "tokens" and schedule.decay_tokens is None and schedule.name in ("linear", "cosine"):
        found.append((("optim", "schedule", "units"), f"is tokens, and a {schedule.name} curve needs its end: set decay_tokens"))
    return found


def _device_conflicts(distributed: Distributed) -> list[tuple[tuple[str | int, ...], str]]:
    found: list[tuple[str, str]] = []
    kind, one_in = distributed.activation_checkpointing, distributed.checkpoint_one_in
    if kind == "one_in_n" and one_in is None:
        found.append(("activation_checkpointing", "is 'one_in_n' without its n: set distributed.checkpoint_one_in, for example 4"))
    if kind != "one_in_n" and one_in is not None:
        found.append(("checkpoint_one_in", f"is {one_in}, but distributed.activation_checkpointing is {kind!r}: set that to one_in_n"))
    for name, unset in (("compile_mode", "default"), ("compile_dynamic", None), ("compile_backend", "inductor")):
        if not distributed.compile and (value := getattr(distributed, name)) != unset:
            found.append((name, f"is {value!r}, but nothing is compiled: set distributed.compile=true as well"))
    if distributed.compile_mode != "default" and distributed.compile_backend != "inductor":
        said = f"is {distributed.compile_mode!r}, which only inductor knows, and the backend is {distributed.compile_backend!r}: drop one"
        found.append(("compile_mode", said))
    return [(("distributed", name), said) for name, said in found]


def _data_conflicts(config: RunConfig, kinds: Mapping[str, SourceRules]) -> list[tuple[tuple[str | int, ...], str]]:
    found: list[tuple[tuple[str | int, ...], str]] = []
    if not config.data.train and config.data.mixture is None:
        found.append((("data", "train"), "names no source: for example data.train=[{source: scenes}]"))
    if config.data.train and config.data.mixture is not None:
        said = f"is {config.data.mixture!r}, but data.train lists sources too: keep one (a row of a mixture file may be any source)"
        found.append((("data", "mixture"), said))
    if config.data.without and config.data.mixture is None:
        found.append((("data", "without"), "leaves out datasets of a mixture, but data.mixture names none"))
    lists: list[tuple[tuple[str | int, ...], list[Source]]]
    lists = [(("data", "train"), config.data.train), (("data", "validation"), config.data.validation)]
    for index, bench in enumerate(config.evaluate):
        lists.append((("evaluate", index, "data"), bench.data))
        if ":" in bench.bench:
            if bench.data:
                said = f"is {bench.bench!r}, which brings its own data: take out evaluate.{index}.data, or name a rule such as 'vqa'"
                found.append((("evaluate", index, "bench"), said))
        elif not bench.data and not config.data.validation:
            said = f"measures {bench.bench!r} on nothing: name sources in data.validation or evaluate.{index}.data"
            found.append((("evaluate", index), said))
    for path, sources in lists:
        for index, source in enumerate(sources):
            found += [((*path, index, *below), what) for below, what in source_conflicts(source, kinds)]
    return found


def source_conflicts(source: Source, kinds: Mapping[str, SourceRules]) -> list[tuple[tuple[str, ...], str]]:
    """Return what one entry lacks or has too much for its kind: (path of the setting below the entry, what)."""
    rules = kinds.get(source.source)
    if rules is None:
        return [(("source",), unknown_kind(source.source, list(kinds)))]
    problems: list[tuple[tuple[str, ...], str]] = []
    if missing := rules.missing(source.path, source.name):
        problems.append(((), f"of source {source.source!r} {missing}"))
    if unknown := rules.unknown_option(source.options):
        name, hint = unknown
        problems.append((("options", name), f"is no option of source {source.source!r}: {hint}"))
    return problems
