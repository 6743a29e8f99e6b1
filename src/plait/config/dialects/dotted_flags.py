"""The flags of the Molmo training guide, such as `--optimizer.learning_rate=3e-6`, that follow a launch script's name and words.

`tree` is the configuration as nodes, which know where they were written; `overrides` are the command line's settings. FLAGS holds the kind
of every flag and plait's path; flags whose meaning depends on each other are translated by functions. A value that no flag gives is that
of the stage's preset. Plait's own settings may be given beside the flags.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from plait.config.conflicts import HELD_OUT_LOSS
from plait.config.dialects.builder import TranslationBuilder
from plait.config.dialects.molmo_scripts import SCRIPTS, WORDS, translate_words
from plait.config.dialects.save_folder import mirrored
from plait.config.messages import Problem, format_value, raise_first, unknown_key
from plait.config.nodes import COMMAND_LINE, Node, dotted, from_plain, to_plain
from plait.config.reading import Override, scalar
from plait.config.sections.base import as_number
from plait.config.translation import Translation
from plait.errors import PlaitError

COMPONENTS = {"connector": "connector", "vit": "vision", "llm": "language"}
"""Plait's name of each part of the model that flags name."""
WARMUP = {"captioner": {"": 2000, "connector": 200, "vision": 2000, "language": 2000}, "multitask": {"": 200}, "debug": {"": 50}}
"""Steps of warm-up in the guide's scripts, by component; "": of all without their own."""
PROJECT = "molmo"  # of W&B, where none is named


class Flag(NamedTuple):
    """One flag. `kind`: int, number, numbers, bool, text, duration ("4ep" or steps), or {legal word: plait's value}.

    `path`: plait's key, such as "train.steps"; None: a function translates it. `note`: the remark on it in the listing of `plait config`.
    """

    kind: str | dict[str, Any]
    path: str | None = None
    note: str = ""


SCHEDULES = {"linear_with_warmup": "linear", "cosine_with_warmup": "cosine", "constant": "constant"}
SCHEDULES |= {"inverse_sqrt_with_warmup": "inverse_sqrt"}
STRATEGIES = {"FULL_SHARD": "fsdp", "SHARD_GRAD_OP": "shard_grad_op", "NO_SHARD": "ddp", "HYBRID_SHARD": "hsdp"}
RECOMPUTED: dict[str, Any] = {
    "none": "none",
    "full": "full",
    "whole_layer": "full",
    "fine_grained": "selective",
    "one_in_two": "one_in_two",
}
RECOMPUTED |= {"one_in_three": 3, "one_in_four": 4, "one_in_eight": 8}
COMPILED = {name: name for name in ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")}
"""Plait's words for the flags' schedules, ways to shard, to recompute activations (3: every third block), and to compile."""
FLAGS = {
    "max_steps": Flag("int", "train.steps"),
    "global_train_batch_size": Flag("int", "train.global_batch", "samples per step over all ranks"),
    "device_batch_size": Flag("int", "train.micro_batch", "samples per forward on one rank"),
    "global_batch_size": Flag("int", "train.global_batch", "samples per step over all ranks"),
    "device_train_batch_size": Flag("int", "train.micro_batch", "samples per forward on one rank"),
    "device_train_microbatch_size": Flag("int", "train.micro_batch", "samples per forward on one rank"),
    "seq_len": Flag("int", "data.max_tokens", "positions of a sequence in training"),
    "max_duration": Flag("duration"),
    "save_folder": Flag("text", "run"),
    "save_overwrite": Flag("bool"),
    "save_interval": Flag("int", "checkpoint.every_steps"),
    "allow_resume": Flag("bool"),
    "max_grad_norm": Flag("number"),
    "activation_checkpointing": Flag(RECOMPUTED),
    "vision_backbone": Flag("text", "model.vision_backbone"),
    "model.residual_dropout": Flag("number", "model.residual_dropout", "at positions of the prompt"),
    "model.response_residual_dropout": Flag("number", "model.response_residual_dropout", "at positions that predict the answer"),
    "data.num_workers": Flag("int", "data.workers"),
    "data.pad": Flag("text", "data.pad"),
    "optimizer.learning_rate": Flag("number", "optim.lr"),
    "optimizer.weight_decay": Flag("number", "optim.weight_decay"),
    "optimizer.betas": Flag("numbers", "optim.betas"),
    "optimizer.eps": Flag("number", "optim.eps"),
    **{
        f"optimizer.{theirs}_{key}": Flag("numbers" if key == "betas" else "number", f"optim.components.{ours}.{path}")
        for theirs, ours in COMPONENTS.items()
        for key, path in (("learning_rate", "lr"), ("weight_decay", "weight_decay"), ("betas", "betas"), ("eps", "eps"))
    },
    "scheduler.name": Flag(SCHEDULES, "optim.schedule.name"),
    "scheduler.units": Flag({"steps": "steps", "tokens": "tokens"}, "optim.schedule.units"),
    "scheduler.t_warmup": Flag("int"),
    **{f"scheduler.{theirs}_t_warmup": Flag("int") for theirs in COMPONENTS},
    "scheduler.t_max": Flag("int"),
    "compiler.mode": Flag(COMPILED, "distributed.compile_mode", "each block is compiled"),
    "compiler.dynamic": Flag("bool", "distributed.compile_dynamic"),
    "fsdp": Flag("bool"),
    "fsdp.sharding_strategy": Flag(STRATEGIES, "distributed.strategy"),
    "fsdp.use_orig_params": Flag("bool"),
    "fsdp.precision": Flag({"bf16": "bf16", "fp16": "fp16", "pure_bf16": "pure_bf16"}, "train.precision"),
    "wandb": Flag({"null": None, "None": None}),
    "wandb.name": Flag("text", "track.wandb.name"),
    "wandb.entity": Flag("text", "track.wandb.entity"),
    "wandb.project": Flag("text", "track.wandb.project"),
}
SWITCHES = frozenset(name for name, flag in FLAGS.items() if flag.kind == "bool")
"""The flags that may stand alone, for True."""
REFUSED = {
    "n_eval_examples": "evaluations.0.max_examples",
    "device_eval_batch_size": "evaluations.0.device_batch_size",
    "eval_interval": "evaluations.0.eval_interval",
    "max_inf_examples": "evaluations.N.max_examples",
    "device_inf_batch_size": "evaluations.N.device_batch_size",
    "inf_eval_interval": "evaluations.N.eval_interval",
    "inf_seq_len": "seq_len",
    "save_num_checkpoints_to_keep": "checkpoint.keep",
    "save_interval_unsharded": "save_interval",
    "stop_at": "max_duration",
    "dataset": "data.train.0.name",
    "metric": "checkpoint.best",
}
"""Flags of the reference's own scripts that mean the same as another, which the message names: {flag: what to write in its place}."""
_EVALUATION = re.compile(r"evaluations\.(\d+)\.(data\.dataset|eval_interval|max_examples|device_batch_size)")
_EVALUATED = {"data.dataset": "bench", "eval_interval": "every_steps", "max_examples": "samples", "device_batch_size": "batch"}
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "number": ((int, float), "a number"),
    "numbers": ((list,), "a list of numbers, such as [0.9,0.95]"),
    "bool": ((bool,), "True or False"),
    "text": ((str,), "text"),
    "duration": ((int, str), "a number of steps, or of passes over the data such as 4ep"),
}
_EPOCHS = re.compile(r"(\d+(?:\.\d+)?)ep")


class FlagBuilder(TranslationBuilder):
    """A translation of flags into plait's tree, with a method that reads a flag's value; `preset`: the preset's name.

    `in_steps`: whether the length is steps, those of the preset or of a flag, rather than epochs or samples.
    `given`: {flag without dashes: its node}; `tree`: what the script's name and words stand for, to which the flags are added. A flag that
    is not given changes nothing: its value is that of the preset.
    """

    def __init__(self, given: dict[str, Node], tree: Node, preset: str):
        super().__init__(given, tree, defaults={}, default_label=None, notes={})
        self.preset, self.in_steps = preset, True

    def value(self, flag: str, default: Any = None) -> Any:
        """Return the value given for a flag (named without dashes), or `default` where it is not given.

        Numbers are converted, and words of an enumeration, such as FULL_SHARD, replaced by plait's word for the same (fsdp); other text is
        returned as written. `translate` has refused wrong values before: here text that is no number is returned as it is, and a word that
        the enumeration lacks raises KeyError.
        """
        if flag not in self.written:
            return default
        kind, value = FLAGS[flag].kind, self.get(flag)
        return kind[value] if isinstance(kind, dict) else _number(value) if kind in ("int", "number") else value


def recognise(tree: Node, plait_keys: Sequence[str]) -> bool:
    """Return whether `tree` was made from a launch script and its words, rather than read from a file. `plait_keys` is not used."""
    return tree.file in SCRIPTS and WORDS in tree.value


def translate(tree: Node, overrides: Sequence[Override], path: Path, plait_keys: Sequence[str]) -> Translation:
    """Translate a launch script's words and its flags. Raises PlaitError for an unknown or ill-typed flag or a wrong word.

    `tree`: what `open_script` of molmo_scripts.py made of the script's name and words. `overrides`: the flags, and settings under
    `plait_keys`, plait's top-level keys, which are passed on. `path` is not used.
    """
    given, remaining, problems = _sorted(overrides, plait_keys)
    raise_first(problems + [wrong for flag, node in given.items() if (wrong := _wrong_kind(flag, node))])
    chosen, preset, rows = translate_words(tree.file, [str(node.value) for node in tree.value[WORDS].value])
    builder = FlagBuilder(given, chosen, preset)
    builder.in_steps = not any(o.path in (("train", "epochs"), ("train", "samples")) and o.value() is not None for o in remaining)
    for flag, spec in FLAGS.items():
        if spec.path and flag in given:
            twice = [other for other in given if other != flag and other in FLAGS and FLAGS[other].path == spec.path]
            if twice:
                raise PlaitError(f"{COMMAND_LINE}: {flag} and {twice[0]} both are {spec.path}: leave one of them out")
            builder.translate(spec.path, builder.value(flag), flag, note=spec.note)
    for translate_flags in TOGETHER:
        translate_flags(builder)
    options = _train_options(builder)
    return Translation(builder.tree, remaining, [*rows, *(builder.rows[flag] for flag in given)], train_options=options)


def _sorted(overrides: Sequence[Override], plait_keys: Sequence[str]) -> tuple[dict[str, Node], list[Override], list[Problem]]:
    """Split overrides into the guide's flags, plait's own settings, and problems for those that are neither."""
    given: dict[str, Node] = {}
    remaining, problems = [], []
    known = [*FLAGS, "evaluations.0.data.dataset", "evaluations.0.eval_interval", *plait_keys]
    for override in overrides:
        flag = dotted(override.path)
        if flag in FLAGS or _EVALUATION.fullmatch(flag):
            given[flag] = from_plain(_value(flag, override.text), Node(None, COMMAND_LINE, path=flag))
        elif override.path[0] in plait_keys:
            remaining.append(override)
        elif flag in REFUSED:
            text = "loss" if flag == "metric" and override.text in HELD_OUT_LOSS else override.text
            message = f"{COMMAND_LINE}: {flag} is written as --{REFUSED[flag]}={text}"
            problems.append(Problem(Node({}, COMMAND_LINE), message))
        else:
            problems.append(unknown_key(Node({}, COMMAND_LINE), (flag,), known))
    return given, remaining, problems


def _kind(flag: str) -> str | dict[str, Any]:
    return FLAGS[flag].kind if flag in FLAGS else "text" if flag.endswith("dataset") else "int"


def _value(flag: str, text: str) -> Any:
    kind = _kind(flag)
    if isinstance(kind, dict) or kind == "text":
        return text
    try:
        return scalar(text)
    except yaml.YAMLError:
        raise PlaitError(f"{COMMAND_LINE}: the value of {flag} cannot be read: {text!r}") from None


def _wrong_kind(flag: str, node: Node) -> Problem | None:
    kind, given = _kind(flag), to_plain(node)
    if isinstance(kind, dict):
        near = difflib.get_close_matches(str(given), kind, 1, cutoff=0.45)
        hint = f": did you mean {near[0]}?" if near else ""
        return (
            None if given in kind else Problem(node, f"{node.location}: {flag} must be {_listing(kind)}, got {format_value(given)}{hint}")
        )
    types, words = _KINDS[kind]
    value = _number(given) if kind in ("int", "number") else given
    if isinstance(value, types) and isinstance(value, bool) == (types == (bool,)):
        return None
    return Problem(node, f"{node.location}: {flag} must be {words}, got {format_value(given)}")


def _listing(known: dict[str, Any]) -> str:
    *most, last = known
    return f"{', '.join(most)} or {last}"


def _number(value: Any) -> Any:
    """Convert text such as "3e-6" to the number that it spells, an int where it is whole; return anything else unchanged."""
    number = as_number(value)
    return int(number) if isinstance(number, float) and number.is_integer() else number


# Flags whose meaning depends on each other -----------------------------------------------------------------------------------------


def _duration(builder: FlagBuilder) -> None:
    """Translate the length: steps, or passes over the data as "4ep". Raises PlaitError for other text."""
    if "max_duration" not in builder.written:
        return
    if "max_steps" in builder.written:
        raise PlaitError(f"{COMMAND_LINE}: max_duration and max_steps both are the length: leave one of them out")
    value = builder.value("max_duration")
    epochs = _EPOCHS.fullmatch(value) if isinstance(value, str) else None
    if epochs is None and isinstance(_number(value), str):
        raise PlaitError(f"{COMMAND_LINE}: max_duration must be {_KINDS['duration'][1]}, got {value!r}")
    if epochs is None:
        builder.translate("train.steps", _number(value), "max_duration")
    else:
        builder.in_steps = False
        for other in ("steps", "samples"):
            builder.assign(f"train.{other}", None, "max_duration")
        builder.translate("train.epochs", float(epochs[1]), "max_duration", note="passes; of a mixture: the samples of all its datasets")


def _rates(builder: FlagBuilder) -> None:
    """Translate the learning rate: of all components without their own; the curve ends at a tenth of it, as in the presets."""
    flag = "optimizer.learning_rate"
    if flag in builder.written:
        for theirs, ours in COMPONENTS.items():
            if f"optimizer.{theirs}_learning_rate" not in builder.written:
                builder.assign(f"optim.components.{ours}.lr", builder.value(flag), flag)
        builder.assign("optim.schedule.min_lr", builder.value(flag) / 10, flag)
        builder.add_row(flag, "optim.lr", "of all components without a rate of their own; the curve ends at a tenth of it")


def _curve(builder: FlagBuilder) -> None:
    """Translate warm-up and end of the learning rate's curve, in steps or tokens. Raises PlaitError for tokens without both."""
    units, common = builder.value("scheduler.units", "steps"), "scheduler.t_warmup"
    if units == "tokens":
        if missing := [flag for flag in (common, "scheduler.t_max") if flag not in builder.written]:
            raise PlaitError(f"{COMMAND_LINE}: scheduler.units is tokens, and the presets count in steps: set --{missing[0]}, in tokens")
        builder.assign("optim.schedule.warmup_steps", 0, "scheduler.units")
        for ours in COMPONENTS.values():
            builder.assign(f"optim.components.{ours}.warmup", None, "scheduler.units")
        builder.add_row("scheduler.units", "optim.schedule.units", "positions of the language model's sequences, without padding")
    for theirs, ours in COMPONENTS.items():
        flag = f"scheduler.{theirs}_t_warmup"
        if flag in builder.written:
            builder.translate(f"optim.components.{ours}.warmup_{units}", builder.value(flag), flag)
        elif common in builder.written:
            builder.assign(f"optim.components.{ours}.warmup", None, common)
    if common in builder.written:
        builder.translate(f"optim.schedule.warmup_{units}", builder.value(common), common)
    elif builder.value("scheduler.name") == "constant":
        _warm_up(builder, 0, "scheduler.name", "without warm-up")
    elif any(warmup > builder.value("max_steps", float("inf")) // 2 for warmup in WARMUP[builder.preset].values()):
        steps = builder.value("max_steps") // 10
        _warm_up(builder, steps, "max_steps", f"warm-up is {steps} steps: the preset's takes over half of them")
    elif builder.in_steps:  # theirs are counts, whatever the length; plait's presets have shares, which fit any number of epochs
        for ours, steps in WARMUP[builder.preset].items():
            flag = next((f"scheduler.{name}_t_warmup" for name, component in COMPONENTS.items() if component == ours), common)
            if flag not in builder.written:
                builder.assign(f"optim.components.{ours}.warmup_steps" if ours else "optim.schedule.warmup_steps", steps)
    if "scheduler.t_max" in builder.written:
        builder.translate(f"optim.schedule.decay_{units}", builder.value("scheduler.t_max"), "scheduler.t_max", note="where the curve ends")


def _warm_up(builder: FlagBuilder, steps: int, flag: str, note: str) -> None:
    """Replace the preset's warm-up by `steps`, because of `flag`; a component's own flag stays."""
    for theirs, ours in COMPONENTS.items():
        if f"scheduler.{theirs}_t_warmup" not in builder.written:
            builder.assign(f"optim.components.{ours}.warmup", None, flag)
    builder.assign("optim.schedule.warmup_steps", steps, flag)
    builder.add_row(flag, FLAGS[flag].path, note)


def _clip(builder: FlagBuilder) -> None:
    """Translate clipping. The full-size presets clip each component by its own norm, the debug preset the whole gradient."""
    flag = "max_grad_norm"
    if flag in builder.written:
        limit, whole = builder.value(flag) or None, builder.preset == "debug"
        for ours in () if whole else COMPONENTS.values():
            builder.assign(f"optim.components.{ours}.grad_clip", limit, flag)
        note = "0: no clipping" if limit is None else "of the whole gradient" if whole else "of each component by its own norm"
        builder.translate("train.grad_clip", limit, flag, note=note)


def _machine(builder: FlagBuilder) -> None:
    """Translate activation checkpointing, compiling and sharding. Raises PlaitError for fsdp=False with a strategy that shards."""
    recomputed, flag = builder.value("activation_checkpointing"), "activation_checkpointing"
    if isinstance(recomputed, int):
        builder.assign("distributed.checkpoint_one_in", recomputed, flag)
        builder.translate("distributed.activation_checkpointing", "one_in_n", flag, note=f"one block in {recomputed}")
    elif recomputed is not None:
        builder.translate("distributed.activation_checkpointing", recomputed, flag)
    for flag in ("compiler.mode", "compiler.dynamic"):
        if flag in builder.written:
            builder.assign("distributed.compile", True, flag)
    if "fsdp" in builder.written:
        strategy = builder.value("fsdp.sharding_strategy", "fsdp" if builder.value("fsdp") else "ddp")
        if not builder.value("fsdp") and strategy != "ddp":
            raise PlaitError(f"{COMMAND_LINE}: fsdp is False, but fsdp.sharding_strategy shards: leave one of them out")
        builder.translate("distributed.strategy", strategy, "fsdp")
    if "fsdp.use_orig_params" in builder.written:
        builder.add_row("fsdp.use_orig_params", None, "FSDP2 always keeps the original parameters")


def _evaluations(builder: FlagBuilder) -> None:
    """Translate `evaluations.N.*` into entries of `evaluate`, which replace or change those of the script.

    Raises PlaitError for a number without a dataset.
    """
    flags = {flag: match for flag in builder.written if (match := _EVALUATION.fullmatch(flag))}
    listed = list(builder.tree.value["evaluate"].value) if "evaluate" in builder.tree.value else []
    for number in range(max((int(match[1]) for match in flags.values()), default=-1) + 1):
        fields = {_EVALUATED[match[2]]: flag for flag, match in flags.items() if int(match[1]) == number}
        if number >= len(listed) and "bench" not in fields:
            first = next(iter(fields.values()), next(iter(flags)))
            raise PlaitError(
                f"{COMMAND_LINE}: {first}: there is no evaluation {number}: set --evaluations.{number}.data.dataset=NAME:SPLIT"
            )
        entry = {} if "bench" in fields else dict(listed[number].value)
        for ours, flag in fields.items():
            entry[ours] = builder.written[flag]
            builder.add_row(flag, f"evaluate.{number}.{ours}", "a dataset of molmo, by its own rule" if ours == "bench" else "")
        listed[number : number + 1] = [Node(entry, COMMAND_LINE)]
    if flags:
        builder.assign("evaluate", listed)


def _wandb(builder: FlagBuilder) -> None:
    """Name a project of W&B where the flags name a run or an entity without one. Raises PlaitError where they also switch it off."""
    if "wandb" in builder.written:
        if others := [flag for flag in builder.written if flag.startswith("wandb.")]:
            raise builder.error("wandb", f"null switches W&B off, and {others[0]} is given: leave one of them out")
        builder.translate("track.wandb", None, "wandb", note="off")
    named = [flag for flag in ("wandb.name", "wandb.entity") if flag in builder.written]
    if named and "wandb.project" not in builder.written:
        builder.assign("track.wandb.project", PROJECT, named[0])
        builder.add_row(named[0], FLAGS[named[0]].path, f"no wandb.project is given: {PROJECT}")


def _train_options(builder: FlagBuilder) -> frozenset[str]:
    """Return the options of `plait train` that the flags stand for. Raises PlaitError for two that contradict each other."""
    if builder.value("save_overwrite") and "allow_resume" in builder.written and builder.value("allow_resume"):
        raise PlaitError(f"{COMMAND_LINE}: save_overwrite begins anew, allow_resume=True goes on with what is there: leave one of them out")
    notes = {"save_overwrite": "--restart: the old run is kept aside", "allow_resume": "False: --fresh, refused where there is a run"}
    for flag in notes.keys() & builder.written.keys():
        builder.add_row(flag, None, notes[flag])
    options = {"restart": builder.value("save_overwrite", False), "fresh": not builder.value("allow_resume", True)}
    return frozenset(name for name, wanted in options.items() if wanted)


TOGETHER: tuple[Callable[[FlagBuilder], None], ...] = (_duration, _rates, _curve, _clip, _machine, _evaluations, _wandb, mirrored)
"""The translations of flags whose meaning depends on each other."""
