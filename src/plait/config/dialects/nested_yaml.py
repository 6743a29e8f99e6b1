"""The nested YAML dialect of the original NanoDiT plan: sections model, training, data, sampling, validation, checkpoint.

A dialect is another trainer's format of configurations. KEYS holds the kind of every key, the value of the author's plan (the default of
an absent key) and plait's path. Keys whose meaning depends on each other (batch sizes, the optimizer's type, shards, validation) are
translated by functions. Every key has an effect.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plait.config.dialects.builder import TranslationBuilder
from plait.config.messages import Problem, format_value, raise_first, unknown_key
from plait.config.nodes import COMMAND_LINE, Node, dotted, from_plain, to_plain
from plait.config.reading import Override
from plait.config.sections.base import as_number
from plait.config.translation import Translation
from plait.errors import PlaitError

DEFAULT = "default of the nested dialect"
"""The origin of values made from a key that is absent."""
HELD_OUT = 0.01
"""Share of each bucket kept for validation; the author's plan validated on rows that it trained on."""
PICTURES = 16
"""The most samples that are generated in full, at 50 steps of three passes each; the plan's number is for a few passes per sample."""

_INFO: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "number": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
}
_INFO |= {"text": ((str,), "text"), "texts": ((list,), "a list of names"), "numbers": ((list,), "a list of two numbers")}


class NestedKey(NamedTuple):
    """One key. `kind`: int, number, bool, text, texts or numbers; `path`: plait's key, None where a function sets it.

    `default`: the value for a file that does not have the key, that of the original trainer.
    """

    kind: str
    default: Any
    path: str | None = None


KEYS = {
    "model.depth": NestedKey("int", 12, "model.depth"),
    "model.hidden_size": NestedKey("int", 384, "model.hidden"),
    "model.num_heads": NestedKey("int", 6, "model.heads"),
    "model.patch_size": NestedKey("int", 2, "model.patch"),
    "model.mlp_ratio": NestedKey("number", 4.0, "model.mlp_ratio"),
    "training.total_steps": NestedKey("int", 50_000, "train.steps"),
    "training.warmup_steps": NestedKey("int", 5_000, "optim.schedule.warmup_steps"),
    "training.batch_size": NestedKey("int", 8, "train.micro_batch"),
    "training.grad_accumulation_steps": NestedKey("int", 32),
    "training.optimizer.type": NestedKey("text", "AdamW"),
    "training.optimizer.lr": NestedKey("number", 3e-4, "optim.lr"),
    "training.optimizer.betas": NestedKey("numbers", [0.9, 0.95], "optim.betas"),
    "training.optimizer.weight_decay": NestedKey("number", 0.03, "optim.weight_decay"),
    "training.optimizer.eps": NestedKey("number", 1e-8, "optim.eps"),
    "training.grad_clip": NestedKey("number", 1.0, "train.grad_clip"),
    "training.ema_decay": NestedKey("number", 0.9999, "optim.ema.decay"),
    "training.ema_warmup_steps": NestedKey("int", 5_000, "optim.ema.warmup_steps"),
    "training.cfg_dropout.p_uncond": NestedKey("number", 0.1, "model.dropout.neither"),
    "training.cfg_dropout.p_text_only": NestedKey("number", 0.1, "model.dropout.text_only"),
    "training.cfg_dropout.p_dino_only": NestedKey("number", 0.1, "model.dropout.image_only"),
    "training.timestep_sampling": NestedKey("text", "logit_normal", "model.time.sampling"),
    "training.logit_normal_loc": NestedKey("number", 0.0, "model.time.loc"),
    "training.logit_normal_scale": NestedKey("number", 1.0, "model.time.scale"),
    "training.gradient_checkpointing": NestedKey("bool", False),
    "data.shard_base_dir": NestedKey("text", "data/shards"),
    "data.buckets": NestedKey("texts", ["1024x1024", "832x1216", "1216x832", "768x1280", "1280x768"]),
    "data.horizontal_flip_prob": NestedKey("number", 0.5, "model.flip.probability"),
    "data.swap_caption_lr": NestedKey("bool", True, "model.flip.swap_caption"),
    "data.num_workers": NestedKey("int", 4, "data.workers"),
    "data.prefetch_factor": NestedKey("int", 2, "data.prefetch"),
    "sampling.num_steps": NestedKey("int", 50, "model.sampling.steps"),
    "sampling.text_scale": NestedKey("number", 3.0, "model.sampling.text_scale"),
    "sampling.dino_scale": NestedKey("number", 2.0, "model.sampling.image_scale"),
    "validation.interval_steps": NestedKey("int", 5_000),
    "validation.num_samples": NestedKey("int", 100),
    "validation.output_dir": NestedKey("text", "validation_outputs", "model.sampling.folder"),
    "checkpoint.save_every": NestedKey("int", 5_000, "checkpoint.every_steps"),
    "checkpoint.keep_last_n": NestedKey("int", 3, "checkpoint.keep"),
    "checkpoint.output_dir": NestedKey("text", "checkpoints", "run"),
}
SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in KEYS))
"""The top-level keys of a file."""
NOTES = {
    "training.cfg_dropout.p_uncond": "named by what stays: neither; one draw with four outcomes",
    "training.cfg_dropout.p_text_only": "the text stays",
    "training.cfg_dropout.p_dino_only": "the image stays",
    "training.optimizer.weight_decay": "matrices only",
    "training.ema_warmup_steps": "decay_k = min(decay, (k + 1) / warmup_steps)",
    "data.prefetch_factor": "steps ahead, over all workers",
    "validation.output_dir": "pictures, inside the run unless absolute",
    "checkpoint.output_dir": "the run's folder: checkpoints, metrics and pictures",
}
"""Remarks on keys in the listing of `plait config`."""
ASSUMED = {"family": "nanodit", "optim.schedule.name": "cosine", "optim.schedule.min_lr": 1e-6, "train.precision": "bf16"}
"""Settings of the plan that no key of the file can change: {plait's path: value}."""


def recognise(tree: Node, plait_keys: Sequence[str]) -> bool:
    """Return whether `tree`, a file, is in the nested YAML format. Raises PlaitError if it also has `plait_keys`, plait's own."""
    theirs = [node for key, node in tree.value.items() if key in SECTIONS and key not in plait_keys]
    shared = [key for key in plait_keys if not (key == "model" and _is_of_another_family(tree))]
    theirs += [node for key, node in _leaves(tree) if key in KEYS and key != KEYS[key].path and key.partition(".")[0] in shared]
    ours = [node for key, node in tree.value.items() if key in plait_keys and key not in SECTIONS]
    if theirs and ours:
        raise PlaitError(
            f"{theirs[0].location}: {theirs[0].path} belongs to the nested dialect, but {ours[0].path} (line {ours[0].line}) is plait's "
            "own, and a file speaks one of them"
        )
    return bool(theirs)


def _is_of_another_family(tree: Node) -> bool:
    """Return whether the file names a family of its own, whose `model:` section may have any keys."""
    family = tree.value.get("family")
    return family is not None and family.value != ASSUMED["family"]


def translate(tree: Node, overrides: Sequence[Override], path: Path, plait_keys: Sequence[str]) -> Translation:
    """Translate `tree`, a file in the nested YAML format, and overrides (settings of the command line) in its keys, into plait's names.

    `path`: of the file, for messages. `plait_keys`: plait's top-level keys, which overrides may use too. Raises PlaitError for an unknown
    or ill-typed key.
    """
    written = dict(_leaves(tree))
    known = [*KEYS, *plait_keys]
    problems = [unknown_key(tree, tuple(key.split(".")), _neighbours(key), list(KEYS)) for key in written if key not in KEYS]
    remaining = []
    for override in overrides:
        key = dotted(override.path)
        if key in KEYS:
            text_only = KEYS[key].kind == "text"
            written[key] = from_plain(override.text if text_only else override.value(), Node(None, COMMAND_LINE, path=key))
        elif override.path[0] in plait_keys:
            remaining.append(override)
        else:
            problems.append(unknown_key(Node({}, COMMAND_LINE), override.path, known))
    problems += [wrong for key, node in written.items() if key in KEYS and (wrong := _wrong_kind(key, node))]
    raise_first(problems)
    defaults = {key: spec.default for key, spec in KEYS.items()}
    builder = TranslationBuilder(written, Node({}, str(path), 1), defaults=defaults, default_label=DEFAULT, notes=NOTES)
    for assumed, value in ASSUMED.items():
        builder.assign(assumed, value)
    for key, spec in KEYS.items():
        if spec.path:
            builder.translate(spec.path, builder.get(key), key)
    for translate_keys in TOGETHER:
        translate_keys(builder)
    return Translation(builder.tree, remaining, [builder.rows[key] for key in written])


def _leaves(node: Node, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Node]]:
    """Yield every value that is not a section, with its dotted path."""
    for key, child in node.value.items():
        if isinstance(child.value, dict):
            yield from _leaves(child, (*above, key))
        else:
            yield dotted((*above, key)), child


def _neighbours(key: str) -> list[str]:
    """Return the key names in the section of `key`; all sections where that section does not exist."""
    parent, _, _ = key.rpartition(".")
    names = [other.removeprefix(f"{parent}.").partition(".")[0] for other in KEYS if other.startswith(f"{parent}.")]
    return list(dict.fromkeys(names)) or list(SECTIONS)


def _wrong_kind(key: str, node: Node) -> Problem | None:
    types, words = _INFO[KEYS[key].kind]
    value = to_plain(node)
    spelled = as_number(value) if KEYS[key].kind in ("int", "number") else value
    if isinstance(spelled, types) and isinstance(spelled, bool) == (types == (bool,)):
        return None
    return Problem(node, f"{node.location}: {key} must be {words}, got {format_value(value)}")


def _batches(builder: TranslationBuilder) -> None:
    """Translate the batch size per GPU and the number of accumulations, whose product is the global batch."""
    sizes = {key: int(as_number(builder.get(key))) for key in ("training.batch_size", "training.grad_accumulation_steps")}
    for key, size in sizes.items():
        if size < 1:
            raise builder.error(key, f"must be 1 or more, got {size}")
    batch, accumulations = sizes.values()
    keys = [key for key in reversed(sizes) if key in builder.written] or ["training.grad_accumulation_steps"]
    builder.translate("train.global_batch", batch * accumulations, keys[0], note=f"{batch} x {accumulations}, over all GPUs")
    builder.add_row("training.batch_size", "train.micro_batch", "samples per forward on one GPU")


def _optimizer(builder: TranslationBuilder) -> None:
    """Translate the optimizer's type, gradient checkpointing and clipping."""
    kind = builder.get("training.optimizer.type")
    if kind.lower() != "adamw":
        raise builder.error("training.optimizer.type", f"must be AdamW, got {format_value(kind)}")
    builder.translate("optim.name", "adamw", "training.optimizer.type")
    recomputed = "full" if builder.get("training.gradient_checkpointing") else "none"
    builder.translate("distributed.activation_checkpointing", recomputed, "training.gradient_checkpointing")
    if as_number(builder.get("training.grad_clip")) == 0:
        builder.translate("train.grad_clip", None, "training.grad_clip", note="0: no clipping")


def _data(builder: TranslationBuilder) -> None:
    """Translate the folder of latent shards and its buckets into sources, of which a share is held out."""
    folder, buckets = "data.shard_base_dir", "data.buckets"
    options = (buckets, {"buckets": builder.get(buckets), "held_out": HELD_OUT})
    shards = {"source": (folder, "latents"), "path": (folder, builder.get(folder)), "options": options}
    for name in ("train", "validation"):
        builder.translate(f"data.{name}", [builder.entry(shards)], folder)
    builder.translate("model.metadata", builder.get(folder), folder)
    builder.add_row(folder, "data.train.0.path", f"{HELD_OUT:.0%} of each bucket is held out for validation")
    builder.add_row(buckets, "data.train.0.options.buckets")


def _validation(builder: TranslationBuilder) -> None:
    """Translate the validation interval and number of samples into one `evaluate` entry per figure."""
    every, count = "validation.interval_steps", "validation.num_samples"
    number = builder.get(count)
    few = min(int(as_number(number)), PICTURES)
    benches = [("loss", number), ("validation", number), ("edit", few), ("swap", few), ("divergence", few), ("grid", few)]
    entries = [
        builder.entry({"bench": (every, bench), "every_steps": (every, builder.get(every)), "samples": (count, samples)})
        for bench, samples in benches
    ]
    builder.translate("evaluate", entries, every)
    builder.add_row(every, "evaluate.0.every_steps", "loss, reconstruction, text-edit, image-swap, divergence, pictures")
    builder.add_row(count, "evaluate.0.samples", f"{few} where pictures are drawn")


TOGETHER: tuple[Callable[[TranslationBuilder], None], ...] = (_batches, _optimizer, _data, _validation)
"""The translations of keys whose meaning depends on each other."""
