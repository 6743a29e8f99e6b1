"""The flat JSON dialect of the Gemma-and-Cosmos trainer: one level of keys, in the vocabulary of Hugging Face's Trainer.

A dialect is another trainer's format of configurations. KEYS holds the kind of every key, the value that its trainer takes when it is
absent, and plait's path. Keys whose meaning depends on each other (freeze flags, batch sizes, evaluation, data) are translated by
functions; NO_MEANING gives the reason for keys without one here.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from plait.config.dialects.builder import TranslationBuilder
from plait.config.messages import Problem, format_value, raise_first, unknown_key
from plait.config.nodes import COMMAND_LINE, Node, from_plain, merge, to_plain
from plait.config.reading import Override
from plait.config.schema import LENGTH
from plait.config.translation import TranslatedKey, Translation
from plait.errors import PlaitError

DEFAULT = "default of the flat dialect"
HUB_NAMES = {"datacomp": "mlfoundations/datacomp_small"}
HELD_OUT = ("train[:99%]", "train[99%:]")  # the original evaluated on rows that it trained on
_INFO = {"int": (int,), "number": (int, float), "bool": (bool,), "text": (str,)}


class Key(NamedTuple):
    """One key. `kind`: int, number, bool, text or any, with ? where null is legal. `path`: plait's key; None: set by a function, or not."""

    kind: str
    default: Any = None
    path: str | None = None


KEYS = {
    "model_name": Key("text", "google/gemma-3-4b-it", "model.base"),
    "cosmos_model_name": Key("text", "nvidia/Cosmos-Predict2-2B-Video2World", "model.world.source"),
    "world_projection_mode": Key("text?", None, "model.world.tokens"),
    "num_world_steps": Key("int", 0, "model.world.steps"),
    "max_world_steps": Key("int", 16, "model.world.max_steps"),
    "freeze_gemma_vision": Key("bool", True),
    "freeze_gemma_language": Key("bool", True),
    "freeze_cosmos_vae": Key("bool", True),
    "learning_rate": Key("number", 1e-4, "optim.lr"),
    "batch_size": Key("int", 4, "train.micro_batch"),
    "gradient_accumulation_steps": Key("int", 4),
    "num_epochs": Key("number", 3),
    "max_steps": Key("int?"),
    "warmup_steps": Key("int", 100, "optim.schedule.warmup_steps"),
    "weight_decay": Key("number", 0.01, "optim.weight_decay"),
    "max_grad_norm": Key("number", 1.0, "train.grad_clip"),
    "use_gradient_checkpointing": Key("bool", False),
    "mixed_precision": Key("text", "bf16"),
    "output_dir": Key("text?", None, "run"),
    "save_steps": Key("int", 500, "checkpoint.every_steps"),
    "save_total_limit": Key("int?", 3),
    "resume_from_checkpoint": Key("any"),
    "eval_steps": Key("int", 500),
    "do_eval": Key("bool", False),
    "eval_batch_size": Key("int?"),
    "logging_steps": Key("int", 10, "track.every_steps"),
    "log_to_wandb": Key("bool", False),
    "wandb_project": Key("text?"),
    "wandb_run_name": Key("text?"),
    "log_to_tensorboard": Key("bool", True, "track.tensorboard"),
    "dataset_name": Key("text?"),
    "train_dataset_path": Key("text?"),
    "eval_dataset_path": Key("text?"),
    "num_samples": Key("int?"),
    "question_template": Key("text", "Describe this image in detail."),
    "answer_template": Key("text?"),
    "max_seq_length": Key("int", 2048, "data.max_tokens"),
    "num_workers": Key("int", 4, "data.workers"),
    "device": Key("text?"),
    "streaming": Key("bool"),
    "load_full_cosmos_pipeline": Key("bool"),
    "push_to_hub": Key("bool"),
    "hub_model_id": Key("text?"),
    "hub_strategy": Key("text?"),
    "hub_private_repo": Key("bool"),
}
NO_MEANING = {
    "streaming": "rows are read by index, in an order that is a function of (seed, step): a stream cannot be resumed exactly",
    "load_full_cosmos_pipeline": "only the VAE is ever loaded: the diffusion transformer, T5 and the guardrail take no part in encoding",
    "push_to_hub": "training does not publish; a finished run is pushed by hand",
    "hub_model_id": "training does not publish",
    "hub_strategy": "training does not publish",
    "hub_private_repo": "training does not publish",
}
FREEZES = {"freeze_gemma_vision": "vision", "freeze_gemma_language": "language", "freeze_cosmos_vae": "world"}
STAGES = "stages"
"""Plait's addition to the dialect, like `answer_template`: a list of {"name": ..., and any keys that differ in that stage}."""
STAGED = ("trainable", "data", "train", "optim", "checkpoint", "evaluate", "track", "distributed")
ASSUMED = {"family": "theworld", "optim.betas": [0.9, 0.999], "optim.eps": 1e-8, "optim.schedule.name": "cosine"}


def recognise(tree: Node, plait_keys: Sequence[str]) -> bool:
    """Return whether the file is in this dialect. Raises PlaitError for one that mixes it with plait's own keys, `plait_keys`."""
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
    """Translate the file, and the overrides (settings of the command line) that use its keys, into plait's names.

    `path`: of the file, for messages. Raises PlaitError for an unknown or ill-typed key.
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
        stages = [_stage(stage, index, builder, path, plait_keys) for index, stage in enumerate(listed)]
        rows += [row for _, stage_rows in stages for row in stage_rows]
        staged = replace(staged, value=[node for node, _ in stages]) if stages else staged
        tree = merge(tree, replace(tree, value={STAGES: staged}))
    ignored = [row.key for row in rows if row.path is None and row.value not in (None, False, 0)]
    warnings = [f"{path}: without meaning here: {', '.join(ignored)}; `plait config {path}` says why"] if ignored else []
    return Translation(tree, [override for override in overrides if override.path[0] not in KEYS], rows, warnings)


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
    """Return what must be merged over `base` to get `other`, or None for nothing; what `other` lacks becomes an empty list, or null."""
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


def _data(builder: TranslationBuilder) -> None:
    """Translate the training data, with its question and answer, and then the evaluation that may hold out a part of it."""
    key = "train_dataset_path" if builder.get("train_dataset_path") else "dataset_name"
    for other in ("dataset_name", "train_dataset_path"):
        builder.add_row(other, None, "train_dataset_path wins over it" if key == "train_dataset_path" else f"{key} says what is read")
    name = builder.get(key)
    if name in (None, "custom"):
        for idle in ("dataset_name", "num_samples", "question_template", "answer_template"):
            builder.add_row(idle, None, "dataset_name names no data: give --data.train=[{source: ..., path: ...}]")
        _evaluate(builder, {})
        return
    source, note = _source(name)
    if builder.get("do_eval") and source["source"] == "datasets" and not builder.get("eval_dataset_path"):
        source["split"] = HELD_OUT[0]
    fields = {ours: (key, value) for ours, value in source.items()}
    train = {**fields, **_template(builder, source["source"]), "limit": ("num_samples", builder.get("num_samples"))}
    builder.translate("data.train", [builder.entry(train)], key)
    builder.add_row(key, f"data.train.0.{next(ours for ours in ('name', 'path', 'source') if ours in source)}", note)
    builder.add_row("num_samples", "data.train.0.limit", "null: all of them" if builder.get("num_samples") is None else "")
    scenes = source["source"] == "scenes"
    why = "generated scenes ask their own questions" if scenes else ""
    builder.add_row("question_template", None if scenes else "data.train.0.template.user", why)
    builder.add_row("answer_template", None if scenes else "data.train.0.template.assistant", why or "our addition; its fields in braces")
    _evaluate(builder, source)


def _template(builder: TranslationBuilder, kind: str) -> dict[str, tuple[str, Any]]:
    """Return the template of one question for every picture, answered by its caption (`text` in `datasets` rows) or `answer_template`."""
    if kind == "scenes":
        return {}
    question = builder.get("question_template").replace("{", "{{").replace("}", "}}")
    answer = builder.get("answer_template") or ("{text}" if kind == "datasets" else "{caption}")
    return {"template": ("", builder.entry({"user": ("question_template", question), "assistant": ("answer_template", answer)}))}


def _source(name: str) -> tuple[dict[str, Any], str]:
    """Return the source that a dataset's name stands for (generated scenes, a path on disk, a name on the Hub), and a note."""
    if name == "scenes":
        return {"source": "scenes", "split": "train"}, "generated scenes, with their own questions"
    on_disk = name.startswith(("/", "./", "../", "~")) or "://" in name or Path(name).exists()
    if on_disk and name.endswith(".jsonl"):
        return {"source": "jsonl", "path": name}, ""
    if on_disk and name.endswith((".parquet", ".json", ".arrow")):
        return {"source": "datasets", "path": name, "split": "train"}, ""
    if on_disk:
        tars = name.endswith(".tar") or any(Path(name).glob("*.tar"))
        return {"source": "shards" if tars else "folder", "path": name}, "tar shards" if tars else "a folder of images"
    known = HUB_NAMES.get(name, name)
    note = "its rows hold addresses of images: fetch those into tar shards, then --dataset_name=./FOLDER" if name == "datacomp" else ""
    return {"source": "datasets", "name": known, "split": "train"}, note


def _evaluate(builder: TranslationBuilder, train: dict[str, Any]) -> None:
    """Translate evaluation into the loss on data that is held out; the original measured it on rows of the training set."""
    keys, elsewhere = ("do_eval", "eval_steps", "eval_batch_size", "eval_dataset_path"), builder.get("eval_dataset_path")
    held = {"datasets": HELD_OUT[1], "scenes": "validation"}.get(train.get("source", ""))
    if not builder.get("do_eval") or not (elsewhere or held):
        off = "nothing is held out: give eval_dataset_path, or --data.validation=[...]" if builder.get("do_eval") else "do_eval is false"
        for key in keys:
            builder.add_row(key, None, off)
        return
    source, key = {**train, "split": held}, "do_eval"
    if elsewhere:
        source, key = _source(elsewhere)[0], "eval_dataset_path"
        if "split" in source:
            source["split"] = "validation"
    entry = {**{ours: (key, value) for ours, value in source.items()}, **_template(builder, source["source"])}
    builder.translate("data.validation", [builder.entry(entry)], key)
    size = builder.get("eval_batch_size") or builder.get("batch_size")
    bench = {"bench": ("do_eval", "loss"), "every_steps": ("eval_steps", builder.get("eval_steps")), "batch": ("eval_batch_size", size)}
    builder.translate("evaluate", [builder.entry(bench)], "do_eval")
    where = "" if elsewhere else f", on {held}; the original measured rows that it trained on"
    builder.add_row("do_eval", "evaluate.0.bench", f"held-out loss{where}")
    builder.add_row("eval_steps", "evaluate.0.every_steps")
    builder.add_row("eval_batch_size", "evaluate.0.batch", "" if builder.get("eval_batch_size") else "null: batch_size")
    note = "" if elsewhere else "null: a part of the training data is held out"
    builder.add_row("eval_dataset_path", "data.validation.0" if elsewhere else None, note)


TOGETHER: tuple[Callable[[TranslationBuilder], None], ...] = (_trainable, _lengths, _machine, _checkpoints, _tracking, _data)
"""The translations of keys whose meaning depends on each other."""
