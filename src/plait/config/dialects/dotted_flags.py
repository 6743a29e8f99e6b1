"""The flags of the Molmo training guide, such as `--optimizer.learning_rate=3e-6`, that follow a launch script's name and words.

FLAGS says of every flag its kind and our path; those that mean something only together are translated by the functions below. What no
flag says is the preset's of that stage. Plait's own settings stand beside the flags.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from plait.config.dialects.molmo_scripts import SCRIPTS, WORDS, Row, chosen
from plait.config.messages import Problem, report, show, unknown
from plait.config.nodes import COMMAND_LINE, Node, dotted, merge, nest, wrap
from plait.config.reading import Override, scalar
from plait.config.translation import Translation
from plait.errors import PlaitError

PARTS = {"connector": "connector", "vit": "vision", "llm": "language"}
WARMUP = {"captioner": {"connector": 200, "vision": 2000, "language": 2000}, "multitask": {"": 200}, "debug": {"": 50}}
"""Steps of warm-up in the presets, by component; "": all alike."""
PROJECT = "molmo"  # of W&B, where none is named


class Flag(NamedTuple):
    """`kind`: int, number, numbers, bool, text, or the legal words with their meaning here. `path`: None where a function stands behind."""

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
FLAGS = {
    "max_steps": Flag("int", "train.steps"),
    "global_train_batch_size": Flag("int", "train.global_batch", "samples per step over all ranks"),
    "device_batch_size": Flag("int", "train.micro_batch", "samples per forward on one rank"),
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
        for theirs, ours in PARTS.items()
        for key, path in (("learning_rate", "lr"), ("weight_decay", "weight_decay"), ("betas", "betas"), ("eps", "eps"))
    },
    "scheduler.name": Flag(SCHEDULES, "optim.schedule.name"),
    "scheduler.units": Flag({"steps": "steps", "tokens": "tokens"}, "optim.schedule.units"),
    "scheduler.t_warmup": Flag("int"),
    **{f"scheduler.{theirs}_t_warmup": Flag("int") for theirs in PARTS},
    "scheduler.t_max": Flag("int"),
    "compiler.mode": Flag(COMPILED, "distributed.compile_mode", "each block is compiled"),
    "compiler.dynamic": Flag("bool", "distributed.compile_dynamic"),
    "fsdp": Flag("bool"),
    "fsdp.sharding_strategy": Flag(STRATEGIES, "distributed.strategy"),
    "fsdp.use_orig_params": Flag("bool"),
    "fsdp.precision": Flag({"bf16": "bf16", "fp16": "fp16", "pure_bf16": "pure_bf16"}, "train.precision"),
    "wandb.name": Flag("text", "track.wandb.name"),
    "wandb.entity": Flag("text", "track.wandb.entity"),
    "wandb.project": Flag("text", "track.wandb.project"),
}
_EVALUATION = re.compile(r"evaluations\.(\d+)\.(data\.dataset|eval_interval|max_examples|device_batch_size)")
_EVALUATED = {"data.dataset": "bench", "eval_interval": "every_steps", "max_examples": "samples", "device_batch_size": "batch"}
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "number": ((int, float), "a number"),
    "numbers": ((list,), "a list of numbers, such as [0.9,0.95]"),
    "bool": ((bool,), "True or False"),
    "text": ((str,), "text"),
}


@dataclass
class Sheet:
    """The flags given, our tree growing, and a row for each flag."""

    given: dict[str, Node]
    tree: Node
    preset: str
    rows: dict[str, Row] = field(default_factory=dict)

    def put(self, path: str, value: Any, flag: str, note: str | None = None) -> None:
        """Set `path` on the authority of `flag`, with a row when there is a `note`."""
        self.tree = merge(self.tree, nest(path.split("."), wrap(value, self.given[flag])))
        if note is not None:
            self.row(flag, path, note)

    def row(self, flag: str, path: str | None, note: str) -> None:
        self.rows[flag] = (flag, self.given[flag].value, path, note)

    def value(self, flag: str, absent: Any = None) -> Any:
        """What the flag means here."""
        if flag not in self.given:
            return absent
        kind, value = FLAGS[flag].kind, self.given[flag].value
        return kind[value] if isinstance(kind, dict) else _number(value) if kind in ("int", "number") else value


def recognise(tree: Node, own: Sequence[str]) -> bool:
    """Whether this is a launch script."""
    return tree.file in SCRIPTS and WORDS in tree.value


def translate(tree: Node, overrides: Sequence[Override], path: Path, own: Sequence[str]) -> Translation:
    """Words and flags in plait's names."""
    given, left, problems = _sorted(overrides, own)
    report(problems + [wrong for flag, node in given.items() if (wrong := _wrong_kind(flag, node))])
    begun, preset, rows = chosen(tree.file, [str(node.value) for node in tree.value[WORDS].value])
    sheet = Sheet(given, begun, preset)
    for flag, spec in FLAGS.items():
        if spec.path and flag in given:
            sheet.put(spec.path, sheet.value(flag), flag, spec.note)
    for part in TOGETHER:
        part(sheet)
    asked = _asked(sheet)
    return Translation(sheet.tree, left, [*rows, *(sheet.rows[flag] for flag in given)], [], asked)


def _sorted(overrides: Sequence[Override], own: Sequence[str]) -> tuple[dict[str, Node], list[Override], list[Problem]]:
    """The guide's flags, plait's own settings, and what is neither."""
    given: dict[str, Node] = {}
    left, problems = [], []
    for one in overrides:
        flag = dotted(one.path)
        if flag in FLAGS or _EVALUATION.fullmatch(flag):
            given[flag] = Node(_value(flag, one.text), COMMAND_LINE, path=flag)
        elif one.path[0] in own:
            left.append(one)
        else:
            problems.append(
                unknown(Node({}, COMMAND_LINE), (flag,), [*FLAGS, "evaluations.0.data.dataset", "evaluations.0.eval_interval", *own])
            )
    return given, left, problems


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
    kind = _kind(flag)
    if isinstance(kind, dict):
        near = difflib.get_close_matches(str(node.value), kind, 1, cutoff=0.45)
        said = f"{node.place}: {flag} must be {_listing(kind)}, got {show(node.value)}" + (f": did you mean {near[0]}?" if near else "")
        return None if node.value in kind else Problem(node, said)
    types, words = _KINDS[kind]
    value = _number(node.value) if kind in ("int", "number") else node.value
    if isinstance(value, types) and isinstance(value, bool) == (types == (bool,)):
        return None
    return Problem(node, f"{node.place}: {flag} must be {words}, got {show(node.value)}")


def _listing(known: dict[str, Any]) -> str:
    *most, last = known
    return f"{', '.join(most)} or {last}"


def _number(value: Any) -> Any:
    """The number that "3e-6" or 1e4 spells, whole where it is."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(number) if isinstance(number, float) and number.is_integer() else number


# What means something only together ----------------------------------------------------------------------------------------------


def _rates(sheet: Sheet) -> None:
    """One rate for all components but those with their own; the curve ends at a tenth of it, as in the presets."""
    flag = "optimizer.learning_rate"
    if flag in sheet.given:
        for theirs, ours in PARTS.items():
            if f"optimizer.{theirs}_learning_rate" not in sheet.given:
                sheet.put(f"optim.components.{ours}.lr", sheet.value(flag), flag)
        sheet.put("optim.schedule.min_lr", sheet.value(flag) / 10, flag)
        sheet.row(flag, "optim.lr", "of all components without a rate of their own; the curve ends at a tenth of it")


def _curve(sheet: Sheet) -> None:
    """Warm-up and end of the curve, in steps or tokens."""
    units, common = sheet.value("scheduler.units", "steps"), "scheduler.t_warmup"
    if units == "tokens":
        if missing := [flag for flag in (common, "scheduler.t_max") if flag not in sheet.given]:
            raise PlaitError(f"{COMMAND_LINE}: scheduler.units is tokens, and the presets count in steps: set --{missing[0]}, in tokens")
        sheet.put("optim.schedule.warmup_steps", 0, "scheduler.units")
        for ours in PARTS.values():
            sheet.put(f"optim.components.{ours}.warmup_steps", None, "scheduler.units")
        sheet.row("scheduler.units", "optim.schedule.units", "positions of the language model's sequences, without padding")
    for theirs, ours in PARTS.items():
        own = f"scheduler.{theirs}_t_warmup"
        if own in sheet.given:
            sheet.put(f"optim.components.{ours}.warmup_{units}", sheet.value(own), own, "")
        elif common in sheet.given:
            sheet.put(f"optim.components.{ours}.warmup_{units}", None, common)
    if common in sheet.given:
        sheet.put(f"optim.schedule.warmup_{units}", sheet.value(common), common, "")
    elif sheet.value("scheduler.name") == "constant":
        _warm_up(sheet, 0, "scheduler.name", "without warm-up")
    elif any(warmup > sheet.value("max_steps", float("inf")) // 2 for warmup in WARMUP[sheet.preset].values()):
        steps = sheet.value("max_steps") // 10
        _warm_up(sheet, steps, "max_steps", f"warm-up is {steps} steps: the preset's takes over half of them")
    if "scheduler.t_max" in sheet.given:
        sheet.put(f"optim.schedule.decay_{units}", sheet.value("scheduler.t_max"), "scheduler.t_max", "where the curve ends")


def _warm_up(sheet: Sheet, steps: int, flag: str, note: str) -> None:
    """Another warm-up than the preset's, because of `flag`; a component's own flag stays."""
    for theirs, ours in PARTS.items():
        if f"scheduler.{theirs}_t_warmup" not in sheet.given:
            sheet.put(f"optim.components.{ours}.warmup_steps", None, flag)
    sheet.put("optim.schedule.warmup_steps", steps, flag)
    sheet.row(flag, FLAGS[flag].path, note)


def _clip(sheet: Sheet) -> None:
    """The presets of full size clip each component by its own norm; the debug preset clips the whole gradient."""
    flag = "max_grad_norm"
    if flag in sheet.given:
        limit, whole = sheet.value(flag) or None, sheet.preset == "debug"
        for ours in () if whole else PARTS.values():
            sheet.put(f"optim.components.{ours}.grad_clip", limit, flag)
        note = "0: no clipping" if limit is None else "of the whole gradient" if whole else "of each component by its own norm"
        sheet.put("train.grad_clip", limit, flag, note)


def _machine(sheet: Sheet) -> None:
    """Recomputation, compiling and sharding."""
    again, flag = sheet.value("activation_checkpointing"), "activation_checkpointing"
    if isinstance(again, int):
        sheet.put("distributed.checkpoint_one_in", again, flag)
        sheet.put("distributed.activation_checkpointing", "one_in_n", flag, f"one block in {again}")
    elif again is not None:
        sheet.put("distributed.activation_checkpointing", again, flag, "")
    for flag in ("compiler.mode", "compiler.dynamic"):
        if flag in sheet.given:
            sheet.put("distributed.compile", True, flag)
    if "fsdp" in sheet.given:
        strategy = sheet.value("fsdp.sharding_strategy", "fsdp" if sheet.value("fsdp") else "ddp")
        if not sheet.value("fsdp") and strategy != "ddp":
            raise PlaitError(f"{COMMAND_LINE}: fsdp is False, but fsdp.sharding_strategy shards: leave one of them out")
        sheet.put("distributed.strategy", strategy, "fsdp", "")
    if "fsdp.use_orig_params" in sheet.given:
        sheet.row("fsdp.use_orig_params", None, "FSDP2 always keeps the original parameters")


def _evaluations(sheet: Sheet) -> None:
    """`evaluations.N.*`: entries of `evaluate`, in place of those that the script has already or changing them."""
    flags = {flag: found for flag in sheet.given if (found := _EVALUATION.fullmatch(flag))}
    listed = list(sheet.tree.value["evaluate"].value) if "evaluate" in sheet.tree.value else []
    for number in range(max((int(found[1]) for found in flags.values()), default=-1) + 1):
        mine = {_EVALUATED[found[2]]: flag for flag, found in flags.items() if int(found[1]) == number}
        if number >= len(listed) and "bench" not in mine:
            first = next(iter(mine.values()), next(iter(flags)))
            raise PlaitError(
                f"{COMMAND_LINE}: {first}: there is no evaluation {number}: set --evaluations.{number}.data.dataset=NAME:SPLIT"
            )
        entry = {} if "bench" in mine else dict(listed[number].value)
        for ours, flag in mine.items():
            entry[ours] = sheet.given[flag]
            sheet.row(flag, f"evaluate.{number}.{ours}", "a dataset of molmo, by its own rule" if ours == "bench" else "")
        listed[number : number + 1] = [Node(entry, COMMAND_LINE)]
    if flags:
        sheet.tree = merge(sheet.tree, Node({"evaluate": Node(listed, sheet.tree.file)}, sheet.tree.file))


def _wandb(sheet: Sheet) -> None:
    named = [flag for flag in ("wandb.name", "wandb.entity") if flag in sheet.given]
    if named and "wandb.project" not in sheet.given:
        sheet.put("track.wandb.project", PROJECT, named[0])
        sheet.row(named[0], FLAGS[named[0]].path, f"no wandb.project is given: {PROJECT}")


def _asked(sheet: Sheet) -> frozenset[str]:
    """What the flags ask of the command rather than of the configuration."""
    if sheet.value("save_overwrite") and "allow_resume" in sheet.given and sheet.value("allow_resume"):
        raise PlaitError(f"{COMMAND_LINE}: save_overwrite begins anew, allow_resume=True goes on with what is there: leave one of them out")
    meant = {"save_overwrite": "--restart: the old run is kept aside", "allow_resume": "False: --fresh, refused where there is a run"}
    for flag in meant.keys() & sheet.given.keys():
        sheet.row(flag, None, meant[flag])
    wishes = {"restart": sheet.value("save_overwrite", False), "fresh": not sheet.value("allow_resume", True)}
    return frozenset(name for name, wanted in wishes.items() if wanted)


TOGETHER: tuple[Callable[[Sheet], None], ...] = (_rates, _curve, _clip, _machine, _evaluations, _wandb)
