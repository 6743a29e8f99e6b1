"""Conflicts between settings that are each legal alone (schema.py): checked before a run, each with its remedy.

A run is trained in stages, each with settings of its own. A source is one data set of `data.train`; its kind (`shards`, `jsonl`, ...) has
rules.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from plait.config.nodes import KeyPath
from plait.config.schema import LENGTH, Data, Distributed, Optim, RunConfig, SourceEntry
from plait.config.sections.adapters import SUFFIX, component_of
from plait.config.source_rules import SourceRules, unknown_kind
from plait.files import expanded

Conflict = tuple[KeyPath, str]
"""The path of the setting to change, and what is wrong with it and what to do, as the end of a sentence that begins with its key."""

HELD_OUT_LOSS = ("val_loss", "valid_loss", "validation_loss", "eval_loss")
"""Other trainers' names of the figure `loss`."""

_COMPONENT_SETTING = re.compile(r"(stages\.\d+\.)?optim\.components\.(?P<component>.+?)\.(?P<setting>[a-z_]+)(\.\d+)?")


def conflicts(config: RunConfig, kinds: Mapping[str, SourceRules]) -> list[Conflict]:
    """Return the conflicts between the settings of one stage, whose merged configuration is `config`; [] if it can be run.

    Each is (path of the setting to change, such as ("train",), what is wrong with it, as the end of a sentence that begins with its key).
    `kinds`: the rules of every kind of source, by name.
    """
    train, optim = config.train, config.optim
    result: list[Conflict] = []
    lengths = [name for name in LENGTH if getattr(train, name) is not None]
    if len(lengths) != 1:
        message = f"sets {' and '.join(lengths)}: keep one" if lengths else "does not say how long: set one of steps, epochs, samples"
        result.append((("train",), message))
    steps = train.steps or (-(-train.samples // train.global_batch) if train.samples else None)
    result += schedule_conflicts(optim, steps)
    if train.micro_batch and config.data.pack_tokens is None and train.global_batch % train.micro_batch:
        near = train.global_batch - train.global_batch % train.micro_batch or train.micro_batch
        message = f"is {train.micro_batch}, not a divisor of train.global_batch {train.global_batch}: for example train.global_batch={near}"
        result.append((("train", "micro_batch"), message))
    if optim.schedule.min_lr > optim.lr:
        message = f"is {optim.schedule.min_lr}, above the peak optim.lr {optim.lr}: lower it"
        result.append((("optim", "schedule", "min_lr"), message))
    if config.checkpoint.best in HELD_OUT_LOSS:
        message = f"is {config.checkpoint.best!r}, which is named loss here: checkpoint.best=loss"
        result.append((("checkpoint", "best"), message))
    if config.hub is not None and config.hub.push == "best" and config.checkpoint.best is None:
        result.append((("hub", "push"), "is best, but checkpoint.best names no figure: set it, such as checkpoint.best=loss"))
    for number, entry in enumerate(config.evaluate):
        if entry.bench in HELD_OUT_LOSS:
            result.append((("evaluate", number, "bench"), f"is {entry.bench!r}, which is named loss here: evaluate.{number}.bench=loss"))
    if not config.trainable:
        result.append((("trainable",), "is empty, so nothing would train: name components, or '*'"))
    for item in config.trainable:
        name = component_of(component := item.partition(":")[0])
        if name != component and name not in config.adapters:
            cure = f"for example --adapters.{name}.rank=16"
            result.append((("trainable",), f"names {component!r}, the adapters of {name}, and there are none: {cure}"))
    result += _mirror_conflicts(config) + _quantised_conflicts(config) + _optimizer_conflicts(config)
    if config.train.residual_dtype == "bfloat16" and config.train.precision in ("fp32", "fp16"):
        message = f"is 'bfloat16', but products are in {config.train.precision}: set train.precision=bf16, or leave it out"
        result.append((("train", "residual_dtype"), message))
    return result + _device_conflicts(config.distributed, config.train.precision) + _data_conflicts(config, kinds)


def _mirror_conflicts(config: RunConfig) -> list[Conflict]:
    """Return that a mirror is on this disk in the run's own directory, which is no copy."""
    address = config.checkpoint.mirror or ""
    if config.run is None or not address.startswith("file://"):
        return []
    run = expanded(config.run).resolve()
    folder = expanded(os.path.expandvars(address.removeprefix("file://"))).resolve()
    if folder != run and run not in folder.parents:
        return []
    inside = "the run's own directory" if folder == run else f"inside the run's own directory {config.run}"
    return [(("checkpoint", "mirror"), f"is {address}, {inside}, and is no copy there: give a folder elsewhere, best on another disk")]


def stage_conflicts(stages: Mapping[str, RunConfig]) -> list[Conflict]:
    """Return [(path, message)] for data that one stage trains on and another holds out, what no stage uses, and several mirrors.

    `stages`: {name: merged configuration}.
    """
    for name, config in stages.items():
        for other, theirs in stages.items():
            if config.checkpoint.mirror is not None and config.checkpoint.mirror != theirs.checkpoint.mirror:
                message = f"is {config.checkpoint.mirror} in stage {name}, and {theirs.checkpoint.mirror or 'none'} in stage {other}"
                return [(("checkpoint", "mirror"), f"{message}: write it once, outside of the stages")]
            ours, data = config.data, theirs.data
            same = ours.mixture is not None and ours.mixture == data.mixture and ours.held_out_share != data.held_out_share
            differ = same or any(_shares_of(ours)[place] != share for place, share in _shares_of(data).items() if place in _shares_of(ours))
            if ours.shares and differ:
                what = f"in stage {name}, and stage {other} trains on the same data without: write one share"
                if isinstance(ours.validation, str):
                    return [(("data", "validation"), f"holds out {ours.validation} {what} for all stages, outside of them")]
                return [(("data", "train"), f"holds out {ours.shares} {what} (held_out) in all stages")]
    return _idle_adapters(list(stages.values())) + _idle_muon(list(stages.values()))


def _idle_adapters(stages: Sequence[RunConfig]) -> list[Conflict]:
    """Return the adapters that no stage trains, of a run that does not start from weights that may have them."""
    named = {item.partition(":")[0] for config in stages for item in config.trainable}
    idle = {} if "*" in named else {name: None for config in stages if not config.from_ for name in config.adapters}
    return [
        (("adapters", name), f"is in no stage's trainable, so it would do nothing: name {name}{SUFFIX} there, or leave it out")
        for name in idle
        if f"{name}{SUFFIX}" not in named
    ]


def _quantised_conflicts(config: RunConfig) -> list[Conflict]:
    """Return the conflicts of adapters over weights in 4 bits: such weights do not train, and are not divided over ranks."""
    result: list[Conflict] = []
    named = {item.partition(":")[0] for item in config.trainable}
    for name in (name for name, adapter in config.adapters.items() if adapter.quantize is not None):
        if named & {name, "*"}:
            message = f"is set, and trainable names {name if name in named else '*'}: weights in 4 bits do not train, name {name}{SUFFIX}"
            result.append((("adapters", name, "quantize"), message))
        if config.distributed.strategy != "ddp":
            message = f"is set, and weights in 4 bits are whole on each rank: distributed.strategy=ddp, not {config.distributed.strategy}"
            result.append((("adapters", name, "quantize"), message))
    return result


def _optimizer_conflicts(config: RunConfig) -> list[Conflict]:
    """Return the settings that an optimizer besides AdamW cannot be together with."""
    name, result = config.optim.name, list[Conflict]()
    if name != "adamw" and config.optim.offload:
        result.append((("optim", "offload"), f"is for AdamW, and optim.name is {name}: leave one of them out"))
    if name == "adamw8bit" and (strategy := config.distributed.strategy) not in ("ddp", "auto"):
        message = f"is {strategy}, but moments of adamw8bit are whole on each rank: set distributed.strategy=ddp, or optim.name=adamw"
        result.append((("distributed", "strategy"), message))
    if name != "adamw" and config.train.precision == "pure_bf16":
        message = f"is pure_bf16, whose updates are rounded by chance, those of AdamW alone: set bf16, or optim.name=adamw, not {name}"
        result.append((("train", "precision"), message))
    return result


def _idle_muon(stages: Sequence[RunConfig]) -> list[Conflict]:
    """Return the settings of Muon in a run of which no stage has it."""
    if not stages or any(config.optim.name == "muon" for config in stages):
        return []
    cure = f"is set, but optim.name is {stages[0].optim.name}: set optim.name=muon as well, or leave it out"
    paths = dict[KeyPath, None]()
    for config in stages:
        paths |= {("optim", "muon"): None} if config.optim.muon is not None else {}
        paths |= {("optim", "components", name, "muon"): None for name, part in config.optim.components.items() if part.muon is not None}
    return [(path, cure) for path in paths]


def _shares_of(data: Data) -> dict[tuple[str | None, ...], float | None]:
    """Return the share that is held out of each training source, by where it lies."""
    return {_place(entry): data.share_of(entry) for entry in data.train}


def _share_conflicts(path: KeyPath, entries: Sequence[SourceEntry], data: Data) -> list[Conflict]:
    """Return the conflicts of `held_out` in one list of sources, `path`: it is for training data, and one for all of a source."""
    if path != ("data", "train"):
        message = "is for data.train: what is listed here is held out whole"
        return [((*path, index, "held_out"), message) for index, entry in enumerate(entries) if entry.held_out is not None]
    first: dict[tuple[str | None, ...], int] = {}
    result: list[Conflict] = []
    for index, entry in enumerate(entries):
        other = first.setdefault(_place(entry), index)
        ours, theirs = (f"{100 * (data.share_of(one) or 0):.12g}%" for one in (entry, entries[other]))
        if ours != theirs:
            message = f"reads what data.train.{other} reads, and holds out {ours} of it, not {theirs}: write the same held_out in both"
            result.append(((*path, index), f"{message}, as either would train on samples that the other holds out"))
    return result


def _place(source: SourceEntry) -> tuple[str | None, ...]:
    """Return what tells whether two entries read the same samples. Those without files are told by their options, which make them."""
    own = repr(sorted(source.options.items())) if source.path is None and source.name is None else None
    return source.source, source.path, source.name, source.split, own


def schedule_conflicts(optim: Optim, steps: int | None) -> list[Conflict]:
    """Return the conflicts in warm-up and decay of the learning rate. `steps`: length of the stage in steps; None: not known yet.

    Each is (path from the root, such as ("optim", "schedule", "warmup_steps"), what is wrong and what to do). [] without a conflict.
    """
    schedule, units = optim.schedule, optim.schedule.units
    result: list[Conflict] = []
    other = "tokens" if units == "steps" else "steps"
    sections: list[tuple[tuple[str, ...], dict[str, Any]]] = [(("optim", "schedule"), dict(schedule))]
    sections += [(("optim", "components", name), dict(component)) for name, component in optim.components.items()]
    ends = [schedule.decay_tokens] if units == "tokens" else [schedule.decay_steps, steps]
    end = min((count for count in ends if count), default=None)
    for path, section in sections:
        for key in (f"warmup_{other}", f"decay_{other}"):
            if section.get(key):
                message = f"is set, but optim.schedule.units is {units}: set {key.replace(other, units)}, or the units"
                result.append(((*path, key), message))
        if section["warmup"] is not None:
            if named := [key for key in ("warmup_steps", "warmup_tokens") if section[key]]:
                result.append(((*path, "warmup"), f"is set beside {named[0]}: keep one"))
            elif units == "tokens" and schedule.decay_tokens is None:
                result.append(((*path, "warmup"), "is a share of decay_tokens, which is not set: set it, or warmup_tokens"))
        warmup = section[f"warmup_{units}"]
        if end and warmup and warmup >= end:
            until = f"the stage has {end} steps" if end == steps else f"the curve ends at {end} {units}"
            result.append(((*path, f"warmup_{units}"), f"is {warmup}, but {until}: warm up for fewer, or train longer"))
    if units == "tokens" and schedule.decay_tokens is None and schedule.name in ("linear", "cosine"):
        result.append((("optim", "schedule", "units"), f"is tokens, and a {schedule.name} curve needs its end: set decay_tokens"))
    return result


def _device_conflicts(distributed: Distributed, precision: str) -> list[Conflict]:
    """Return the conflicts of sharding, activation checkpointing and compiling; `precision`: as `train.precision`."""
    result: list[tuple[str, str]] = []
    if distributed.shard_size is not None and distributed.strategy != "hsdp":
        result.append(("shard_size", f"is for strategy hsdp, not {distributed.strategy}: leave it out, or set strategy=hsdp"))
    if distributed.strategy == "ddp":
        set_in_vain = [
            name for name in ("frozen", "memory_gb", "gradient_sync") if getattr(distributed, name) not in ("auto", None, "step")
        ]
        advice = "says how to shard, but strategy ddp never does: leave it out, or set another strategy"
        result += [(name, advice) for name in set_in_vain]
    if distributed.ddp_comm_hook != "none" and distributed.strategy not in ("auto", "ddp"):
        advice = f"is for the gradients of ddp, not {distributed.strategy}: leave it out, or set strategy=ddp"
        result.append(("ddp_comm_hook", f"is {distributed.ddp_comm_hook!r}, which {advice}"))
    elif distributed.ddp_comm_hook != "none" and precision == "pure_bf16":
        result.append(("ddp_comm_hook", "is 'bf16', as gradients are under train.precision=pure_bf16 anyway: leave it out"))
    kind, one_in = distributed.activation_checkpointing, distributed.checkpoint_one_in
    if kind == "one_in_n" and one_in is None:
        result.append(("activation_checkpointing", "is 'one_in_n' without its n: set distributed.checkpoint_one_in, for example 4"))
    if kind != "one_in_n" and one_in is not None:
        result.append(("checkpoint_one_in", f"is {one_in}, but distributed.activation_checkpointing is {kind!r}: set that to one_in_n"))
    for name, unset in (("compile_mode", "default"), ("compile_dynamic", None), ("compile_backend", "inductor")):
        if not distributed.compile and (value := getattr(distributed, name)) != unset:
            result.append((name, f"is {value!r}, but nothing is compiled: set distributed.compile=true as well"))
    if distributed.compile_mode != "default" and distributed.compile_backend != "inductor":
        message = (
            f"is {distributed.compile_mode!r}, which only inductor knows, and the backend is {distributed.compile_backend!r}: drop one"
        )
        result.append(("compile_mode", message))
    return [(("distributed", name), message) for name, message in result]


def _data_conflicts(config: RunConfig, kinds: Mapping[str, SourceRules]) -> list[Conflict]:
    """Return the conflicts of training data, held-out data and benches."""
    result: list[Conflict] = []
    if not config.data.train and config.data.mixture is None:
        result.append((("data", "train"), "names no source: for example data.train=[{source: scenes}]"))
    if config.data.train and config.data.mixture is not None:
        message = f"is {config.data.mixture!r}, but data.train lists sources too: keep one (a row of a mixture file may be any source)"
        result.append((("data", "mixture"), message))
    if config.data.without and config.data.mixture is None:
        result.append((("data", "without"), "leaves out datasets of a mixture, but data.mixture names none"))
    if config.data.truncate != "cut" and config.data.max_tokens is None:
        result.append((("data", "truncate"), f"is {config.data.truncate}, but no length is set: set data.max_tokens as well"))
    packed, longest = config.data.pack_tokens, config.data.max_tokens
    if packed is not None and config.data.pad != "none":
        result.append(
            (("data", "pack_tokens"), f"is {packed}, but rows are padded (data.pad={config.data.pad}): set data.pad=none as well")
        )
    if packed is not None and longest is not None and longest > packed:
        message = f"is {packed}, but a single sample may have {longest} (data.max_tokens): set one of them to that of the other"
        result.append((("data", "pack_tokens"), message))
    lists: list[tuple[KeyPath, list[SourceEntry]]]
    lists = [(("data", "train"), config.data.train), (("data", "validation"), config.data.validation_sources)]
    for index, bench in enumerate(config.evaluate):
        lists.append((("evaluate", index, "data"), bench.data))
        if ":" in bench.bench:
            if bench.data:
                message = f"is {bench.bench!r}, which brings its own data: take out evaluate.{index}.data, or name a rule such as 'vqa'"
                result.append((("evaluate", index, "bench"), message))
        elif not bench.data and not config.data.holds_out:
            message = f"measures {bench.bench!r} on nothing: name sources in data.validation or evaluate.{index}.data"
            result.append((("evaluate", index), message))
    for path, sources in lists:
        result += _share_conflicts(path, sources, config.data)
        for index, source in enumerate(sources):
            result += [((*path, index, *below), message) for below, message in source_conflicts(source, kinds)]
    return result


def source_conflicts(source: SourceEntry, kinds: Mapping[str, SourceRules]) -> list[Conflict]:
    """Return how one source breaks the rules of its kind, [] if it does not.

    Each is (path below the source, such as ("options", "size"), what is wrong). `kinds`: the rules of every kind of source, by name.
    """
    rules = kinds.get(source.source)
    if rules is None:
        return [(("source",), unknown_kind(source.source, list(kinds)))]
    result: list[Conflict] = []
    if source.templates and source.template is not None:
        result.append((("templates",), "is set beside template: keep one"))
    if missing := rules.missing(source.path, source.name):
        result.append(((), f"of source {source.source!r} {missing}"))
    if unknown := rules.unknown_option(source.options):
        name, hint = unknown
        result.append((("options", name), f"is no option of source {source.source!r}: {hint}"))
    elif rules.check is not None and (wrong := rules.check(source.options)):
        result.append((("options", wrong[0]), wrong[1]))
    return result


def frozen_as_drawn(stages: Sequence[RunConfig], drawn: Collection[str], *, staged: bool) -> Iterator[str]:
    """Yield a warning for each component drawn at random that no stage trains, with the override that does.

    `drawn`: those components. The override is of the last stage.
    None where the run starts from other weights, which may hold them. `staged`: whether the configuration has stages.
    """
    trained = {component_of(name) for config in stages for name in (*config.trainable, *config.adapters)}
    if stages[-1].from_ is not None or "*" in trained:
        return
    for component in drawn:
        if component not in trained:
            key = f"stages.{len(stages) - 1}.trainable" if staged else "trainable"
            cure = f"--{key}=[{','.join([*stages[-1].trainable, component])}]"
            yield f"{component} is drawn at random and nothing trains it, so that it stays noise: {cure}, or weights that have it (from)"


def idle_components(stages: Sequence[RunConfig], origins: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each component that `optim.components` sets something for and that no stage trains, with what it sets.

    `origins`: {"optim.components.vision.lr": where that is written}. What a preset sets is for whatever of its components trains.
    """
    trained = {item.partition(":")[0] for config in stages for item in config.trainable}
    if "*" in trained:
        return
    idle = dict[str, dict[str, None]]()
    for key, origin in origins.items():
        within = _COMPONENT_SETTING.fullmatch(key)
        if within and within["component"] not in trained and origin != "default" and not origin.startswith("preset "):
            idle.setdefault(within["component"], {})[within["setting"]] = None
    for component, names in idle.items():
        cure = f"name {component} in trainable, or leave it out"
        yield f"optim.components.{component} sets {', '.join(names)}, and no stage trains {component}, so that it changes nothing: {cure}"
