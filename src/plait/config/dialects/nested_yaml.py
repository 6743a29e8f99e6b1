"""The nested YAML dialect of the original NanoDiT plan: sections model, training, data, sampling, validation, checkpoint.

KEYS says of every key its kind, the value of the author's plan (taken when the key is absent) and our path. Keys that mean something only
together (batch sizes, the optimizer's type, shards, validation) are translated by the functions below. Every key has an effect.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from plait.config.messages import Problem, report, show, unknown
from plait.config.nodes import COMMAND_LINE, Node, dotted, merge, nest, wrap
from plait.config.reading import Override, scalar
from plait.config.translation import Translation
from plait.errors import PlaitError

DEFAULT = "default of the nested dialect"
HELD_OUT = 0.01
"""Share of each bucket kept for validation: the author's plan validated on rows that it trained on."""
PICTURES = 16
"""Samples that are drawn in full, which takes 50 steps of three passes each; the plan's number is for what takes a few passes."""

_INFO: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "number": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
}
_INFO |= {"text": ((str,), "text"), "texts": ((list,), "a list of names"), "numbers": ((list,), "a list of two numbers")}


class Key(NamedTuple):
    """`path` is None where a function stands behind the key."""

    kind: str
    default: Any
    path: str | None = None


KEYS = {
    "model.depth": Key("int", 12, "model.depth"),
    "model.hidden_size": Key("int", 384, "model.hidden"),
    "model.num_heads": Key("int", 6, "model.heads"),
    "model.patch_size": Key("int", 2, "model.patch"),
    "model.mlp_ratio": Key("number", 4.0, "model.mlp_ratio"),
    "training.total_steps": Key("int", 50_000, "train.steps"),
    "training.warmup_steps": Key("int", 5_000, "optim.schedule.warmup_steps"),
    "training.batch_size": Key("int", 8, "train.micro_batch"),
    "training.grad_accumulation_steps": Key("int", 32),
    "training.optimizer.type": Key("text", "AdamW"),
    "training.optimizer.lr": Key("number", 3e-4, "optim.lr"),
    "training.optimizer.betas": Key("numbers", [0.9, 0.95], "optim.betas"),
    "training.optimizer.weight_decay": Key("number", 0.03, "optim.weight_decay"),
    "training.optimizer.eps": Key("number", 1e-8, "optim.eps"),
    "training.grad_clip": Key("number", 1.0, "train.grad_clip"),
    "training.ema_decay": Key("number", 0.9999, "optim.ema.decay"),
    "training.ema_warmup_steps": Key("int", 5_000, "optim.ema.warmup_steps"),
    "training.cfg_dropout.p_uncond": Key("number", 0.1, "model.dropout.neither"),
    "training.cfg_dropout.p_text_only": Key("number", 0.1, "model.dropout.text_only"),
    "training.cfg_dropout.p_dino_only": Key("number", 0.1, "model.dropout.image_only"),
    "training.timestep_sampling": Key("text", "logit_normal", "model.time.sampling"),
    "training.logit_normal_loc": Key("number", 0.0, "model.time.loc"),
    "training.logit_normal_scale": Key("number", 1.0, "model.time.scale"),
    "training.gradient_checkpointing": Key("bool", False),
    "data.shard_base_dir": Key("text", "data/shards"),
    "data.buckets": Key("texts", ["1024x1024", "832x1216", "1216x832", "768x1280", "1280x768"]),
    "data.horizontal_flip_prob": Key("number", 0.5, "model.flip.probability"),
    "data.swap_caption_lr": Key("bool", True, "model.flip.swap_caption"),
    "data.num_workers": Key("int", 4, "data.workers"),
    "data.prefetch_factor": Key("int", 2, "data.prefetch"),
    "sampling.num_steps": Key("int", 50, "model.sampling.steps"),
    "sampling.text_scale": Key("number", 3.0, "model.sampling.text_scale"),
    "sampling.dino_scale": Key("number", 2.0, "model.sampling.image_scale"),
    "validation.interval_steps": Key("int", 5_000),
    "validation.num_samples": Key("int", 100),
    "validation.output_dir": Key("text", "validation_outputs", "model.sampling.folder"),
    "checkpoint.save_every": Key("int", 5_000, "checkpoint.every_steps"),
    "checkpoint.keep_last_n": Key("int", 3, "checkpoint.keep"),
    "checkpoint.output_dir": Key("text", "checkpoints", "run"),
}
SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in KEYS))
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
ASSUMED = {"family": "nanodit", "optim.schedule.name": "cosine", "optim.schedule.min_lr": 1e-6, "train.precision": "bf16"}


class Sheet:
    """The author's keys on one side, our tree growing on the other, and a row for each key."""

    def __init__(self, written: dict[str, Node], file: str):
        self.written, self.file = written, file
        self.tree = Node({}, file, 1)
        self.rows: dict[str, tuple[str, Any, str | None, str]] = {}

    def get(self, key: str) -> Any:
        return _plain(self.written[key]) if key in self.written else KEYS[key].default

    def mark(self, key: str) -> Node:
        """The place that answers for a value: the key's, or nobody's."""
        return self.written.get(key, Node(None, self.file, path=key, label=DEFAULT))

    def put(self, path: str, value: Any, key: str, note: str = "") -> None:
        """Set `path` on the authority of `key`, and give it its row. A list may hold nodes already."""
        made = isinstance(value, list) and any(isinstance(item, Node) for item in value)
        leaf = replace(self.mark(key), value=value) if made else wrap(value, self.mark(key))
        self.tree = merge(self.tree, nest(path.split("."), leaf))
        self.row(key, path, note)

    def entry(self, fields: dict[str, tuple[str, Any]]) -> Node:
        """An entry of a list, each of its fields on the authority of one of the author's keys."""
        return Node({ours: wrap(value, self.mark(key)) for ours, (key, value) in fields.items()}, self.file)

    def row(self, key: str, path: str, note: str = "") -> None:
        if key in self.written:
            self.rows[key] = (key, self.get(key), path, note or NOTES.get(key, ""))

    def refuse(self, key: str, why: str) -> PlaitError:
        return PlaitError(f"{self.mark(key).place}: {key} {why}")


def recognise(tree: Node, own: Sequence[str]) -> bool:
    """Whether the file speaks this dialect. One that also speaks plait's own is refused."""
    theirs = [node for key, node in tree.value.items() if key in SECTIONS and key not in own]
    theirs += [node for key, node in _leaves(tree) if key in KEYS and key != KEYS[key].path and key.partition(".")[0] in own]
    ours = [node for key, node in tree.value.items() if key in own and key not in SECTIONS]
    if theirs and ours:
        raise PlaitError(
            f"{theirs[0].place}: {theirs[0].path} belongs to the nested dialect, but {ours[0].path} (line {ours[0].line}) is plait's own, "
            "and a file speaks one of them"
        )
    return bool(theirs)


def translate(tree: Node, overrides: Sequence[Override], path: Path, own: Sequence[str]) -> Translation:
    """The file, and those overrides that use its keys, in plait's names."""
    written = dict(_leaves(tree))
    known = [*KEYS, *own]
    problems = [unknown(tree, tuple(key.split(".")), _neighbours(key), list(KEYS)) for key in written if key not in KEYS]
    left = []
    for one in overrides:
        key = dotted(one.path)
        if key in KEYS:
            text_only = KEYS[key].kind == "text"
            written[key] = Node(one.text if text_only else scalar(one.text), COMMAND_LINE, path=key)
        elif one.path[0] in own:
            left.append(one)
        else:
            problems.append(unknown(Node({}, COMMAND_LINE), one.path, known))
    problems += [wrong for key, node in written.items() if key in KEYS and (wrong := _wrong_kind(key, node))]
    report(problems)
    sheet = Sheet(written, str(path))
    for assumed, value in ASSUMED.items():
        leaf = Node(value, str(path), path=assumed, label=DEFAULT)
        sheet.tree = merge(sheet.tree, nest(assumed.split("."), leaf))
    for key, spec in KEYS.items():
        if spec.path:
            sheet.put(spec.path, sheet.get(key), key)
    for part in PARTS:
        part(sheet)
    return Translation(sheet.tree, left, [sheet.rows[key] for key in written], [])


def _leaves(node: Node, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Node]]:
    """Every value that is no section, by dotted path."""
    for key, child in node.value.items():
        if isinstance(child.value, dict):
            yield from _leaves(child, (*above, key))
        else:
            yield dotted((*above, key)), child


def _plain(node: Node) -> Any:
    return [_plain(item) for item in node.value] if isinstance(node.value, list) and node.file != COMMAND_LINE else node.value


def _neighbours(key: str) -> list[str]:
    """The names that the section of `key` has; all sections where it has none."""
    parent, _, _ = key.rpartition(".")
    inside = [other.removeprefix(f"{parent}.").partition(".")[0] for other in KEYS if other.startswith(f"{parent}.")]
    return list(dict.fromkeys(inside)) or list(SECTIONS)


def _wrong_kind(key: str, node: Node) -> Problem | None:
    types, words = _INFO[KEYS[key].kind]
    value = _plain(node)
    spelled = _number(value) if KEYS[key].kind in ("int", "number") else value
    if isinstance(spelled, types) and isinstance(spelled, bool) == (types == (bool,)):
        return None
    return Problem(node, f"{node.place}: {key} must be {words}, got {show(value)}")


def _number(value: Any) -> Any:
    """Text such as "3e-4" is the number it spells."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _portions(sheet: Sheet) -> None:
    sizes = {key: int(_number(sheet.get(key))) for key in ("training.batch_size", "training.grad_accumulation_steps")}
    for key, size in sizes.items():
        if size < 1:
            raise sheet.refuse(key, f"must be 1 or more, got {size}")
    (batch, portions), last = sizes.values(), "training.grad_accumulation_steps"
    said = last if last in sheet.written or "training.batch_size" not in sheet.written else "training.batch_size"
    sheet.put("train.global_batch", batch * portions, said, f"{batch} x {portions}, over all GPUs")
    sheet.row("training.batch_size", "train.micro_batch", "samples per forward on one GPU")


def _machine(sheet: Sheet) -> None:
    kind = sheet.get("training.optimizer.type")
    if kind.lower() != "adamw":
        raise sheet.refuse("training.optimizer.type", f"must be AdamW, got {show(kind)}")
    sheet.put("optim.name", "adamw", "training.optimizer.type")
    again = "full" if sheet.get("training.gradient_checkpointing") else "none"
    sheet.put("distributed.activation_checkpointing", again, "training.gradient_checkpointing")
    if _number(sheet.get("training.grad_clip")) == 0:
        sheet.put("train.grad_clip", None, "training.grad_clip", "0: no clipping")


def _data(sheet: Sheet) -> None:
    folder, buckets = "data.shard_base_dir", "data.buckets"
    options = (buckets, {"buckets": sheet.get(buckets), "held_out": HELD_OUT})
    shards = {"source": (folder, "latents"), "path": (folder, sheet.get(folder)), "options": options}
    for name in ("train", "validation"):
        sheet.put(f"data.{name}", [sheet.entry(shards)], folder)
    sheet.put("model.metadata", sheet.get(folder), folder)
    sheet.row(folder, "data.train.0.path", f"{HELD_OUT:.0%} of each bucket is held out for validation")
    sheet.row(buckets, "data.train.0.options.buckets")


def _validation(sheet: Sheet) -> None:
    every, count = "validation.interval_steps", "validation.num_samples"
    number = sheet.get(count)
    few = min(int(_number(number)), PICTURES)
    benches = [("loss", number), ("validation", number), ("edit", few), ("swap", few), ("divergence", few), ("grid", few)]
    entries = [
        sheet.entry({"bench": (every, bench), "every_steps": (every, sheet.get(every)), "samples": (count, samples)})
        for bench, samples in benches
    ]
    sheet.put("evaluate", entries, every)
    sheet.row(every, "evaluate.0.every_steps", "loss, reconstruction, text-edit, image-swap, divergence, pictures")
    sheet.row(count, "evaluate.0.samples", f"{few} where pictures are drawn")


PARTS: tuple[Callable[[Sheet], None], ...] = (_portions, _machine, _data, _validation)
