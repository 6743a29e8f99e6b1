"""The flat JSON dialect of the Gemma-and-Cosmos trainer: one level of keys, in the vocabulary of Hugging Face's Trainer.

A dialect is another trainer's format of configurations. KEYS holds the kind of every key, the value that its trainer takes when it is
absent, and plait's path. Keys whose meaning depends on each other (freeze flags, batch sizes, evaluation, data) are translated by
functions; NO_MEANING gives the reason for keys without one here.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from plait.config.dialects.builder import TranslationBuilder
from plait.config.dialects.flat_json_data import hold_out, holds_out, translate_data
from plait.config.messages import Problem, format_value, raise_first, unknown_key
from plait.config.nodes import COMMAND_LINE, Node, from_plain, merge, to_plain
from plait.config.reading import Override
from plait.config.schema import LENGTH
from plait.config.translation import TranslatedKey, Translation
from plait.errors import PlaitError, command

DEFAULT = "default of the flat dialect"
"""The origin of values made from a key that is absent."""
_INFO = {"int": (int,), "number": (int, float), "bool": (bool,), "text": (str,)}


class FlatKey(NamedTuple):
    """One key. `kind`: int, number, bool, text or any, with ? if null is legal. `path`: plait's key; None: set by a function or nothing.

    `default`: the value that the key's own trainer takes when it is absent.
    """

    kind: str
    default: Any = None
    path: str | None = None


KEYS = {
    "model_name": FlatKey("text", "google/gemma-3-4b-it", "model.base"),
    "cosmos_model_name": FlatKey("text", "nvidia/Cosmos-Predict2-2B-Video2World", "model.world.source"),
    "world_projection_mode": FlatKey("text?", None, "model.world.tokens"),
    "num_world_steps": FlatKey("int", 0, "model.world.steps"),
    "max_world_steps": FlatKey("int", 16, "model.world.max_steps"),
    "freeze_gemma_vision": FlatKey("bool", True),
    "freeze_gemma_language": FlatKey("bool", True),
    "freeze_cosmos_vae": FlatKey("bool", True),
    "learning_rate": FlatKey("number", 1e-4, "optim.lr"),
    "batch_size": FlatKey("int", 4, "train.micro_batch"),
    "gradient_accumulation_steps": FlatKey("int", 4),
    "num_epochs": FlatKey("number", 3),
    "max_steps": FlatKey("int?"),
    "lr_scheduler_type": FlatKey("text", "linear"),
    "warmup_steps": FlatKey("int", 100, "optim.schedule.warmup_steps"),
    "weight_decay": FlatKey("number", 0.01, "optim.weight_decay"),
    "max_grad_norm": FlatKey("number", 1.0, "train.grad_clip"),
    "use_gradient_checkpointing": FlatKey("bool", False),
    "mixed_precision": FlatKey("text", "bf16"),
    "output_dir": FlatKey("text?", None, "run"),
    "save_steps": FlatKey("int", 500, "checkpoint.every_steps"),
    "save_total_limit": FlatKey("int?", 3),
    "resume_from_checkpoint": FlatKey("any"),
    "eval_steps": FlatKey("int", 500),
    "do_eval": FlatKey("bool", False),
    "eval_batch_size": FlatKey("int?"),
    "logging_steps": FlatKey("int", 10, "track.every_steps"),
    "log_to_wandb": FlatKey("bool", False),
    "wandb_project": FlatKey("text?"),
    "wandb_run_name": FlatKey("text?"),
    "log_to_tensorboard": FlatKey("bool", True, "track.tensorboard"),
    "dataset_name": FlatKey("text?"),
    "train_dataset_path": FlatKey("text?"),
    "eval_dataset_path": FlatKey("text?"),
    "num_samples": FlatKey("int?"),
    "question_template": FlatKey("text", "Describe this image in detail."),
    "answer_template": FlatKey("text?"),
    "max_seq_length": FlatKey("int", 2048, "data.max_tokens"),
    "num_workers": FlatKey("int", 4, "data.workers"),
    "device": FlatKey("text?"),
    "streaming": FlatKey("bool"),
    "load_full_cosmos_pipeline": FlatKey("bool"),
    "push_to_hub": FlatKey("bool"),
    "hub_model_id": FlatKey("text?"),
    "hub_strategy": FlatKey("text?"),
    "hub_private_repo": FlatKey("bool"),
}
NO_MEANING = {
    "streaming": "large parquet and tar shards at an address are streamed (options.stream); other rows are downloaded and read by index",
    "load_full_cosmos_pipeline": "only the VAE is ever loaded: the diffusion transformer, T5 and the guardrail take no part in encoding",
}
FREEZES = {"freeze_gemma_vision": "vision", "freeze_gemma_language": "language", "freeze_cosmos_vae": "world"}
"""The component (part of the model) that each flag freezes."""
STAGES = "stages"
"""Plait's addition to the dialect, like `answer_template`: a list of {"name": ..., and any keys that differ in that stage}."""
STAGED = ("trainable", "data", "train", "optim", "checkpoint", "evaluate", "track", "distributed")
"""The sections of plait that a stage may have of its own."""
ASSUMED = {"family": "theworld", "optim.betas": [0.9, 0.999], "optim.eps": 1e-8}
"""Settings of the trainer that no key of the file can change: {plait's path: value}."""
STRATEGIES = {"every_save": "every_save", "end": "end", "checkpoint": "every_save", "all_checkpoints": "every_save"}
"""Plait's `hub.push` for each `hub_strategy` of transformers."""
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant_with_warmup": "constant", "inverse_sqrt": "inverse_sqrt"}
"""Plait's name of each `lr_scheduler_type` of transformers that it has; the original's curve is linear where none is written."""


def recognise(tree: Node, plait_keys: Sequence[str]) -> bool:
    """Return whether `tree`, a file, is in the flat JSON format. Raises PlaitError if it also has `plait_keys`, plait's top-level ones."""
    theirs = [node for key, node in tree.value.items() if key in KEYS]
    ours = [node for key, node in tree.value.items() if key in plait_keys and key != STAGES]
    if theirs and ours:
        path = KEYS[theirs[0].path].path
        hint = f"write it as {path}" if path else "write it in plait's names"
        raise PlaitError(
            f"{theirs[0].location}: {theirs[0].path} belongs to the flat dialect, but {ours[0].path} (line {ours[0].line}) is plait's own, "
            f"and a file speaks one of them: {hint}"
        )
    return bool(theirs)


def translate(tree: Node, overrides: Sequence[Override], path: Path, plait_keys: Sequence[str]) -> Translation:
    """Translate `tree`, a file in the flat JSON format, and overrides (settings of the command line) in its keys, into plait's names.

    `path`: of the file, for messages. `plait_keys`: plait's top-level keys, which overrides may use too. Raises PlaitError for an unknown
    or ill-typed key.
    """
    written = dict(tree.value)
    for override in overrides:
        key, origin = override.path[0], Node(None, COMMAND_LINE, path=override.path[0])
        if key in KEYS:
            text_only = KEYS[key].kind.startswith("text") and override.text != "null"
            written[key] = from_plain(override.text if text_only else override.value(), origin)
        elif key not in plait_keys:
            written[key] = replace(origin, value=override.text)
    staged = written.pop(STAGES, None)
    builder = _translated(written, path, plait_keys)
    rows = [builder.rows[key] for key in written]
    tree = builder.tree
    if staged is not None:
        listed = staged.value if isinstance(staged.value, list) else []
        if any(isinstance(stage.value, dict) and "do_eval" in stage.value and stage.value["do_eval"].value for stage in listed):
            hold_out(builder)
            tree = builder.tree
        stages = [_stage(stage, index, builder, path, plait_keys) for index, stage in enumerate(listed)]
        rows += [row for _, stage_rows in stages for row in stage_rows]
        staged = replace(staged, value=[node for node, _ in stages]) if stages else staged
        tree = merge(tree, replace(tree, value={STAGES: staged}))
    remaining = [override for override in overrides if override.path[0] not in KEYS]
    return Translation(tree, remaining, rows, _warnings(rows, path))


def _warnings(rows: Sequence[TranslatedKey], path: Path) -> list[str]:
    """Return a line on keys that have no effect here, and one on a second GPU, which will be missed."""
    ignored = [row.key for row in rows if row.path is None and row.value not in (None, False, 0)]
    lines = [f"{path}: without meaning here: {', '.join(ignored)}; `{command('config', path)}` says why"] if ignored else []
    for row in rows:
        key = row.key.rpartition(".")[2]
        if key == "device" and row.note and row.value:
            lines.append(f"{path}: {row.key} is {format_value(row.value)}: {row.note}")
    return lines


def _translated(written: dict[str, Node], path: Path, plait_keys: Sequence[str]) -> TranslationBuilder:
    """Translate all `written` keys. Raises PlaitError for an unknown or ill-typed one."""
    unknown = {key: node for key, node in written.items() if key not in KEYS}
    legal = {COMMAND_LINE: [*KEYS, *plait_keys]}
    problems = [unknown_key(Node(written, str(path)), (key,), legal.get(node.file, list(KEYS))) for key, node in unknown.items()]
    problems += [wrong for key, node in written.items() if key in KEYS and (wrong := _wrong_kind(key, node))]
    raise_first(problems)
    defaults = {key: spec.default for key, spec in KEYS.items()}
    builder = TranslationBuilder(written, Node({}, str(path), 1), defaults=defaults, default_label=DEFAULT, notes={})
    for assumed, value in ASSUMED.items():
        builder.assign(assumed, value)
    for key, spec in KEYS.items():
        if spec.path and builder.get(key) is not None:
            builder.translate(spec.path, builder.get(key), key)
        elif spec.path:
            builder.add_row(key, None, "null: as by default")
    for translate_keys in TOGETHER:
        translate_keys(builder)
    for key, reason in NO_MEANING.items():
        builder.add_row(key, None, reason)
    return builder


def _stage(stage: Node, index: int, whole: TranslationBuilder, path: Path, plait_keys: Sequence[str]) -> tuple[Node, list[TranslatedKey]]:
    """Translate one entry of `stages` to the settings that its keys change in the `whole` file; return them and their rows.

    Raises PlaitError for a key that cannot differ from stage to stage.
    """
    if not isinstance(stage.value, dict):
        return stage, []
    keys = {key: node for key, node in stage.value.items() if key != "name"}
    typed = {key: node for key, node in whole.written.items() if node.file == COMMAND_LINE}
    builder = _translated({**whole.written, **keys, **typed}, path, plait_keys)
    if holds_out(whole):
        hold_out(builder)
    for section in (name for name in {**builder.tree.value, **whole.tree.value} if name not in STAGED):
        blamed = next((key for key in keys if (KEYS[key].path or "from").partition(".")[0] == section), None)
        if blamed and _changes(whole.tree.value.get(section), builder.tree.value.get(section)) is not None:
            raise builder.error(blamed, f"cannot differ from stage to stage: write it once, outside {STAGES}")
    changes = {name: _changes(whole.tree.value.get(name), builder.tree.value.get(name)) for name in STAGED}
    name = {"name": stage.value["name"]} if "name" in stage.value else {}
    prefix = f"{STAGES}.{index}."
    rows = [row._replace(key=prefix + row.key, path=row.path and prefix + row.path) for row in (builder.rows[key] for key in keys)]
    return replace(stage, value=name | {section: node for section, node in changes.items() if node is not None}), rows


def _changes(base: Node | None, other: Node | None) -> Node | None:
    """Return what must be merged over `base` to get `other`, or None for nothing. What `other` lacks becomes an empty list, or null."""
    if other is None:
        return base and replace(base, value=[] if isinstance(base.value, list) else None)
    if base is None or not (isinstance(base.value, dict) and isinstance(other.value, dict)):
        return None if base is not None and to_plain(base) == to_plain(other) else other
    keys = [key for key in {**base.value, **other.value} if key in other.value or key not in LENGTH]
    changes = {key: node for key in keys if (node := _changes(base.value.get(key), other.value.get(key))) is not None}
    return replace(other, value=changes) if changes else None


def _wrong_kind(key: str, node: Node) -> Problem | None:
    kind = KEYS[key].kind
    if kind == "any" or (node.value is None and kind.endswith("?")):
        return None
    types = _INFO[kind.rstrip("?")]
    if isinstance(node.value, types) and (isinstance(node.value, bool) == (types == (bool,))):
        return None
    words = {"int": "a whole number", "number": "a number", "bool": "true or false", "text": "text"}[kind.rstrip("?")]
    value = (
        format_value(node.value) if not isinstance(node.value, dict | list) else "a mapping" if isinstance(node.value, dict) else "a list"
    )
    return Problem(node, f"{node.location}: {key} must be {words}, got {value}")


def _trainable(builder: TranslationBuilder) -> None:
    """Translate the freeze flags into the list of components that train."""
    builder.translate("trainable", ["projector", *(name for key, name in FREEZES.items() if not builder.get(key))], *FREEZES)
    for key, name in FREEZES.items():
        trains = "stays frozen" if builder.get(key) else "trains"
        more = {"vision": ", with Gemma's own image projector", "world": "" if builder.get(key) else ", its decoder never"}.get(name, "")
        builder.add_row(key, "trainable", f"{name} {trains}{more}")


def _lengths(builder: TranslationBuilder) -> None:
    """Translate the length of training, the batch sizes and clipping."""
    if builder.get("max_steps") is None:
        builder.translate("train.epochs", builder.get("num_epochs"), "num_epochs")
        builder.add_row("max_steps", None, "null: num_epochs says how long")
    else:
        builder.translate("train.steps", builder.get("max_steps"), "max_steps")
        if "warmup_steps" not in builder.written:
            builder.assign("optim.schedule.warmup_steps", min(KEYS["warmup_steps"].default, builder.get("max_steps") // 10))
        builder.add_row("num_epochs", None, "max_steps wins over it, as in the original")
    batch, accumulations = builder.get("batch_size"), builder.get("gradient_accumulation_steps")
    for key in ("batch_size", "gradient_accumulation_steps"):
        if builder.get(key) < 1:
            raise builder.error(key, f"must be 1 or more, got {builder.get(key)}")
    note = f"{batch} x {accumulations}, over all GPUs; theirs counted per GPU: for a run on R of them, R times as much"
    keys = [key for key in ("gradient_accumulation_steps", "batch_size") if key in builder.written]
    builder.translate("train.global_batch", batch * accumulations, *keys[:1] or ["batch_size"], note=note)
    builder.add_row("batch_size", "train.micro_batch", "samples per forward on one GPU")
    if builder.get("max_grad_norm") == 0:
        builder.translate("train.grad_clip", None, "max_grad_norm", note="0: no clipping")


def _schedule(builder: TranslationBuilder) -> None:
    """Translate the curve of the learning rate. Raises PlaitError for one that plait does not have, listing those it has."""
    name = builder.get("lr_scheduler_type")
    if name not in SCHEDULES:
        raise builder.error("lr_scheduler_type", f"must be {_listed(SCHEDULES)}, got {format_value(name)}")
    builder.translate("optim.schedule.name", SCHEDULES[name], "lr_scheduler_type")


def _listed(known: Iterable[str]) -> str:
    *first, last = map(repr, known)
    return f"{', '.join(first)} or {last}"


def _machine(builder: TranslationBuilder) -> None:
    """Translate precision, gradient checkpointing and the device."""
    precision = builder.get("mixed_precision")
    if precision not in ("bf16", "fp16", "no"):
        raise builder.error("mixed_precision", f"must be 'bf16', 'fp16' or 'no', got {format_value(precision)}")
    builder.translate("train.precision", "fp32" if precision == "no" else precision, "mixed_precision")
    recomputed = "full" if builder.get("use_gradient_checkpointing") else "none"
    builder.translate("distributed.activation_checkpointing", recomputed, "use_gradient_checkpointing")
    device = builder.get("device")
    if device is not None:
        match = re.fullmatch(r"(auto|cpu|cuda)(:\d+)?", device)
        if match is None:
            raise builder.error("device", f"must be 'cuda', 'cpu' or 'auto', got {format_value(device)}")
        note = f"the whole model is on one GPU: choose which by CUDA_VISIBLE_DEVICES={match[2][1:]}" if match[2] else ""
        builder.translate("distributed.device", match[1], "device", note=note)
    else:
        builder.add_row("device", None, "null: as by default")


def _checkpoints(builder: TranslationBuilder) -> None:
    """Translate how many checkpoints are kept, and the one to start from."""
    limit = builder.get("save_total_limit")
    builder.translate("checkpoint.keep", limit or 0, "save_total_limit", note="" if limit else "null: all are kept")
    start = builder.get("resume_from_checkpoint")
    if isinstance(start, str):
        builder.translate("from", start, "resume_from_checkpoint", note="its weights; to go on with a stopped run, repeat its command")
    elif start is None or isinstance(start, bool):
        builder.add_row("resume_from_checkpoint", None, "the same command goes on with a stopped run")
    else:
        raise builder.error("resume_from_checkpoint", f"must be text or null, got {format_value(start)}")


def _tracking(builder: TranslationBuilder) -> None:
    """Translate the settings of W&B."""
    names = {"wandb_project": "project", "wandb_run_name": "name"}
    if not builder.get("log_to_wandb"):
        builder.add_row("log_to_wandb", "track.wandb", "no W&B")
        for key in names:
            builder.add_row(key, None, "log_to_wandb is false")
        return
    if not builder.get("wandb_project"):
        raise builder.error("log_to_wandb", "is true, but wandb_project is missing: name the project")
    for key, ours in names.items():
        builder.translate(f"track.wandb.{ours}", builder.get(key), key)
    builder.add_row("log_to_wandb", "track.wandb", "the key comes from WANDB_API_KEY")


def _hub(builder: TranslationBuilder) -> None:
    """Translate the pushes to the Hub. Raises PlaitError for a strategy that transformers does not have."""
    keys = [key for key in ("hub_model_id", "hub_strategy", "hub_private_repo") if key in builder.written]
    if not builder.get("push_to_hub"):
        builder.add_row("push_to_hub", "hub", "nothing is pushed")
        for key in keys:
            builder.add_row(key, None, "push_to_hub is false")
        return
    strategy = builder.get("hub_strategy") or "every_save"
    if strategy not in STRATEGIES:
        raise builder.error("hub_strategy", f"must be {_listed(STRATEGIES)}, got {format_value(strategy)}")
    repo = builder.get("hub_model_id") or PurePosixPath(str(builder.get("output_dir") or builder.tree.file)).stem
    named = "" if builder.get("hub_model_id") else "named as its folder, of the token's owner"
    builder.translate("hub.repo", repo, "hub_model_id" if "hub_model_id" in builder.written else "push_to_hub", note=named)
    whole = {"checkpoint", "all_checkpoints"} & {strategy}
    note = "each checkpoint is a commit; the optimizer's state is not pushed" if whole else ""
    builder.translate("hub.push", STRATEGIES[strategy], "hub_strategy", note=note)
    builder.translate("hub.private", bool(builder.get("hub_private_repo")), "hub_private_repo", note="the Hub's default is public")
    builder.add_row("push_to_hub", "hub", "the token comes from HF_TOKEN or `hf auth login`")


TOGETHER: Sequence[Callable[[TranslationBuilder], None]] = (
    _trainable,
    _lengths,
    _schedule,
    _machine,
    _checkpoints,
    _tracking,
    _hub,
    translate_data,
)
"""The translations of keys whose meaning depends on each other."""
