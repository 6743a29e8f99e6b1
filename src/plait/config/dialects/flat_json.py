"""The flat JSON dialect of the Gemma-and-Cosmos trainer: one level of keys, Hugging Face Trainer's vocabulary.

KEYS says of every key its kind, the value its trainer assumed when it was absent, and our path. Keys that mean something only together
(freeze flags, batch sizes, evaluation, data) are translated by the functions below; keys without a meaning here are named with the reason.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from plait.config.messages import Problem, report, show, unknown
from plait.config.nodes import COMMAND_LINE, Node, merge, nest, plain, wrap
from plait.config.reading import Override, scalar
from plait.config.schema import LENGTH
from plait.config.translation import Translation
from plait.errors import PlaitError

DEFAULT = "default of the flat dialect"
HUB_NAMES = {"datacomp": "mlfoundations/datacomp_small"}
HELD_OUT = ("train[:99%]", "train[99%:]")  # the original evaluated on rows that it trained on
_UNBOUNDED = 1_000_000  # checkpoints, where the author keeps all
_INFO = {"int": (int,), "number": (int, float), "bool": (bool,), "text": (str,)}


class Key(NamedTuple):
    """`kind` ends in ? where null is legal. `path` is None where a function, or nothing, stands behind the key."""

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
OURS = "stages"
"""Our addition to the dialect, like `answer_template`: a list of {"name": ..., and any keys that differ in that stage}."""
STAGED = ("trainable", "data", "train", "optim", "checkpoint", "evaluate", "track", "distributed")
ASSUMED = {"family": "theworld", "optim.betas": [0.9, 0.999], "optim.eps": 1e-8, "optim.schedule.name": "cosine"}


class Sheet:
    """The author's keys on one side, our tree growing on the other, and a row for each key."""

    def __init__(self, written: dict[str, Node], file: str):
        self.written, self.file = written, file
        self.tree = Node({}, file, 1)
        self.rows: dict[str, tuple[str, Any, str | None, str]] = {}

    def get(self, key: str) -> Any:
        return self.written[key].value if key in self.written else KEYS[key].default

    def assumed(self, path: str) -> Node:
        """The mark of what nobody wrote."""
        return Node(None, self.file, path=path, label=DEFAULT)

    def put(self, path: str, value: Any, *keys: str, note: str = "") -> None:
        """Set `path`, on the authority of the first of `keys` that is written, and give each of them its row. Entries are nodes already."""
        mark = next((self.written[key] for key in keys if key in self.written), self.assumed(keys[0] if keys else path))
        steps = path.split(".")
        leaf = replace(mark, value=value) if _marked(value) else wrap(value, mark)
        self.tree = merge(self.tree, nest(steps, leaf))
        for key in keys:
            self.row(key, path, note)

    def entry(self, fields: dict[str, tuple[str, Any]]) -> Node:
        """An entry of a list, each of its fields on the authority of one of the author's keys."""
        marks = {ours: (self.written.get(key, self.assumed(key)), value) for ours, (key, value) in fields.items()}
        inside = {ours: value if isinstance(value, Node) else wrap(value, mark) for ours, (mark, value) in marks.items()}
        return Node(inside, self.file)

    def row(self, key: str, path: str | None, note: str = "") -> None:
        if key in self.written:
            self.rows[key] = (key, self.written[key].value, path, note)

    def refuse(self, key: str, why: str) -> PlaitError:
        node = self.written[key]
        return PlaitError(f"{node.place}: {key} {why}")


def recognise(tree: Node, own: Sequence[str]) -> bool:
    """Whether the file speaks this dialect. One that also speaks plait's own is refused."""
    theirs = [node for key, node in tree.value.items() if key in KEYS]
    ours = [node for key, node in tree.value.items() if key in own and key != OURS]
    if theirs and ours:
        path = KEYS[theirs[0].path].path
        hint = f"write it as {path}" if path else "write it in plait's names"
        raise PlaitError(
            f"{theirs[0].place}: {theirs[0].path} belongs to the flat dialect, but {ours[0].path} (line {ours[0].line}) is plait's own, "
            f"and a file speaks one of them: {hint}"
        )
    return bool(theirs)


def translate(tree: Node, overrides: Sequence[Override], path: Path, own: Sequence[str]) -> Translation:
    """The file, and those overrides that use its keys, in plait's names."""
    written = dict(tree.value)
    for one in overrides:
        if one.path[0] in KEYS:
            text_only = KEYS[one.path[0]].kind.startswith("text") and one.text != "null"
            written[one.path[0]] = Node(one.text if text_only else scalar(one.text), COMMAND_LINE, path=one.path[0])
        elif one.path[0] not in own:
            written[one.path[0]] = Node(one.text, COMMAND_LINE, path=one.path[0])
    staged = written.pop(OURS, None)
    sheet = _sheet(written, path, own)
    rows = [sheet.rows[key] for key in written]
    tree = sheet.tree
    if staged is not None:
        listed = staged.value if isinstance(staged.value, list) else []
        stages = [_stage(stage, index, sheet, path, own) for index, stage in enumerate(listed)]
        rows += [row for _, more in stages for row in more]
        staged = replace(staged, value=[node for node, _ in stages]) if stages else staged
        tree = merge(tree, replace(tree, value={OURS: staged}))
    asked = [key for key, value, ours, _ in rows if ours is None and value not in (None, False, 0)]
    warnings = [f"{path}: without meaning here: {', '.join(asked)}; `plait config {path}` says why"] if asked else []
    return Translation(tree, [one for one in overrides if one.path[0] not in KEYS], rows, warnings)


def _sheet(written: dict[str, Node], path: Path, own: Sequence[str]) -> Sheet:
    """Everything that is `written`, translated."""
    strange = {key: node for key, node in written.items() if key not in KEYS}
    both = {COMMAND_LINE: [*KEYS, *own]}
    problems = [unknown(Node(written, str(path)), (key,), both.get(node.file, list(KEYS))) for key, node in strange.items()]
    problems += [wrong for key, node in written.items() if key in KEYS and (wrong := _wrong_kind(key, node))]
    report(problems)
    sheet = Sheet(written, str(path))
    for assumed, value in ASSUMED.items():
        sheet.put(assumed, value)
    for key, spec in KEYS.items():
        if spec.path and sheet.get(key) is not None:
            sheet.put(spec.path, sheet.get(key), key)
        elif spec.path:
            sheet.row(key, None, "null: as by default")
    for part in PARTS:
        part(sheet)
    for key, reason in NO_MEANING.items():
        sheet.row(key, None, reason)
    return sheet


def _stage(stage: Node, index: int, whole: Sheet, path: Path, own: Sequence[str]) -> tuple[Node, list[tuple[str, Any, str | None, str]]]:
    """One entry of `stages` as ours: what the file would say differently with the entry's keys in place of its own. And its rows."""
    if not isinstance(stage.value, dict):
        return stage, []
    keys = {key: node for key, node in stage.value.items() if key != "name"}
    typed = {key: node for key, node in whole.written.items() if node.file == COMMAND_LINE}
    sheet = _sheet({**whole.written, **keys, **typed}, path, own)
    for section in (name for name in {**sheet.tree.value, **whole.tree.value} if name not in STAGED):
        blamed = next((key for key in keys if (KEYS[key].path or "from").partition(".")[0] == section), None)
        if blamed and _changes(whole.tree.value.get(section), sheet.tree.value.get(section)) is not None:
            raise sheet.refuse(blamed, f"cannot differ from stage to stage: write it once, outside {OURS}")
    said = {name: _changes(whole.tree.value.get(name), sheet.tree.value.get(name)) for name in STAGED}
    found = {name: node for name, node in said.items() if node is not None}
    name = {"name": stage.value["name"]} if "name" in stage.value else {}
    mine = [sheet.rows[key] for key in keys]
    rows = [(f"{OURS}.{index}.{key}", value, ours and f"{OURS}.{index}.{ours}", note) for key, value, ours, note in mine]
    return replace(stage, value={**name, **found}), rows


def _changes(base: Node | None, other: Node | None) -> Node | None:
    """What to lay over `base` to get `other`; None for nothing. What `other` leaves out becomes an empty list, or null."""
    if other is None:
        return base and replace(base, value=[] if isinstance(base.value, list) else None)
    if base is None or not (isinstance(base.value, dict) and isinstance(other.value, dict)):
        return None if base is not None and plain(base) == plain(other) else other
    keys = [key for key in {**base.value, **other.value} if key in other.value or key not in LENGTH]
    found = {key: node for key in keys if (node := _changes(base.value.get(key), other.value.get(key))) is not None}
    return replace(other, value=found) if found else None


def _marked(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, Node) for item in value)


def _wrong_kind(key: str, node: Node) -> Problem | None:
    kind = KEYS[key].kind
    if kind == "any" or (node.value is None and kind.endswith("?")):
        return None
    types = _INFO[kind.rstrip("?")]
    if isinstance(node.value, types) and (isinstance(node.value, bool) == (types == (bool,))):
        return None
    words = {"int": "a whole number", "number": "a number", "bool": "true or false", "text": "text"}[kind.rstrip("?")]
    value = show(node.value) if not isinstance(node.value, dict | list) else "a mapping" if isinstance(node.value, dict) else "a list"
    return Problem(node, f"{node.place}: {key} must be {words}, got {value}")


def _trainable(sheet: Sheet) -> None:
    parts = ["projector", *(part for key, part in FREEZES.items() if not sheet.get(key))]
    sheet.put("trainable", parts, *FREEZES)
    for key, part in FREEZES.items():
        does = "stays frozen" if sheet.get(key) else "trains"
        more = {"vision": ", with Gemma's own image projector", "world": "" if sheet.get(key) else ", its decoder never"}.get(part, "")
        sheet.row(key, "trainable", f"{part} {does}{more}")


def _lengths(sheet: Sheet) -> None:
    if sheet.get("max_steps") is None:
        sheet.put("train.epochs", sheet.get("num_epochs"), "num_epochs")
        sheet.row("max_steps", None, "null: num_epochs says how long")
    else:
        sheet.put("train.steps", sheet.get("max_steps"), "max_steps")
        if "warmup_steps" not in sheet.written:
            sheet.put("optim.schedule.warmup_steps", min(KEYS["warmup_steps"].default, sheet.get("max_steps") // 10))
        sheet.row("num_epochs", None, "max_steps wins over it, as in the original")
    batch, portions = sheet.get("batch_size"), sheet.get("gradient_accumulation_steps")
    for key in ("batch_size", "gradient_accumulation_steps"):
        if sheet.get(key) < 1:
            raise sheet.refuse(key, f"must be 1 or more, got {sheet.get(key)}")
    note = f"{batch} x {portions}, over all GPUs; theirs counted per GPU: for a run on R of them, R times as much"
    sheet.put("train.global_batch", batch * portions, "gradient_accumulation_steps", note=note)
    if "gradient_accumulation_steps" not in sheet.written:
        sheet.put("train.global_batch", batch * portions, "batch_size")
    sheet.row("batch_size", "train.micro_batch", "samples per forward on one GPU")
    if sheet.get("max_grad_norm") == 0:
        sheet.put("train.grad_clip", None, "max_grad_norm", note="0: no clipping")


def _machine(sheet: Sheet) -> None:
    precision = sheet.get("mixed_precision")
    if precision not in ("bf16", "fp16", "no"):
        raise sheet.refuse("mixed_precision", f"must be 'bf16', 'fp16' or 'no', got {show(precision)}")
    sheet.put("train.precision", "fp32" if precision == "no" else precision, "mixed_precision")
    again = "full" if sheet.get("use_gradient_checkpointing") else "none"
    sheet.put("distributed.activation_checkpointing", again, "use_gradient_checkpointing")
    device = sheet.get("device")
    if device is not None:
        match = re.fullmatch(r"(auto|cpu|cuda)(:\d+)?", device)
        if match is None:
            raise sheet.refuse("device", f"must be 'cuda', 'cpu' or 'auto', got {show(device)}")
        note = f"the whole model is on one GPU: choose which by CUDA_VISIBLE_DEVICES={match[2][1:]}" if match[2] else ""
        sheet.put("distributed.device", match[1], "device", note=note)
    else:
        sheet.row("device", None, "null: as by default")


def _keeping(sheet: Sheet) -> None:
    limit = sheet.get("save_total_limit")
    sheet.put("checkpoint.keep", limit or _UNBOUNDED, "save_total_limit", note="" if limit else "null: all are kept")
    start = sheet.get("resume_from_checkpoint")
    if isinstance(start, str):
        sheet.put("from", start, "resume_from_checkpoint", note="its weights; to go on with a stopped run, repeat its command")
    elif start is None or isinstance(start, bool):
        sheet.row("resume_from_checkpoint", None, "the same command goes on with a stopped run")
    else:
        raise sheet.refuse("resume_from_checkpoint", f"must be text or null, got {show(start)}")


def _tracking(sheet: Sheet) -> None:
    names = {"wandb_project": "project", "wandb_run_name": "name"}
    if not sheet.get("log_to_wandb"):
        sheet.row("log_to_wandb", "track.wandb", "no W&B")
        for key in names:
            sheet.row(key, None, "log_to_wandb is false")
        return
    if not sheet.get("wandb_project"):
        raise sheet.refuse("log_to_wandb", "is true, but wandb_project is missing: name the project")
    for key, ours in names.items():
        sheet.put(f"track.wandb.{ours}", sheet.get(key), key)
    sheet.row("log_to_wandb", "track.wandb", "the key comes from WANDB_API_KEY")


def _data(sheet: Sheet) -> None:
    key = "train_dataset_path" if sheet.get("train_dataset_path") else "dataset_name"
    for other in ("dataset_name", "train_dataset_path"):
        sheet.row(other, None, "train_dataset_path wins over it" if key == "train_dataset_path" else f"{key} says what is read")
    name = sheet.get(key)
    if name in (None, "custom"):
        for idle in ("dataset_name", "num_samples", "question_template", "answer_template"):
            sheet.row(idle, None, "dataset_name names no data: give --data.train=[{source: ..., path: ...}]")
        _evaluate(sheet, {})
        return
    source, note = _source(name)
    if sheet.get("do_eval") and source["source"] == "datasets" and not sheet.get("eval_dataset_path"):
        source["split"] = HELD_OUT[0]
    own = {ours: (key, value) for ours, value in source.items()}
    train = {**own, **_template(sheet, source["source"]), "limit": ("num_samples", sheet.get("num_samples"))}
    sheet.put("data.train", [sheet.entry(train)], key)
    sheet.row(key, f"data.train.0.{next(ours for ours in ('name', 'path', 'source') if ours in source)}", note)
    sheet.row("num_samples", "data.train.0.limit", "null: all of them" if sheet.get("num_samples") is None else "")
    drawn = source["source"] == "scenes"
    why = "generated scenes ask their own questions" if drawn else ""
    sheet.row("question_template", None if drawn else "data.train.0.template.user", why)
    sheet.row("answer_template", None if drawn else "data.train.0.template.assistant", why or "our addition; its fields in braces")
    _evaluate(sheet, source)


def _template(sheet: Sheet, kind: str) -> dict[str, tuple[str, Any]]:
    """Their one question for every picture, answered by its caption (`text` in `datasets` rows), or as `answer_template` says."""
    if kind == "scenes":
        return {}
    question = sheet.get("question_template").replace("{", "{{").replace("}", "}}")
    answer = sheet.get("answer_template") or ("{text}" if kind == "datasets" else "{caption}")
    return {"template": ("", sheet.entry({"user": ("question_template", question), "assistant": ("answer_template", answer)}))}


def _source(name: str) -> tuple[dict[str, Any], str]:
    """A dataset as its author named it: generated scenes, something on disk, or a name on the Hub."""
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


def _evaluate(sheet: Sheet, train: dict[str, Any]) -> None:
    """Their evaluation as the held-out loss, on data that is held out: theirs was measured on rows of the training set."""
    keys, elsewhere = ("do_eval", "eval_steps", "eval_batch_size", "eval_dataset_path"), sheet.get("eval_dataset_path")
    held = {"datasets": HELD_OUT[1], "scenes": "validation"}.get(train.get("source", ""))
    if not sheet.get("do_eval") or not (elsewhere or held):
        off = "nothing is held out: give eval_dataset_path, or --data.validation=[...]" if sheet.get("do_eval") else "do_eval is false"
        for key in keys:
            sheet.row(key, None, off)
        return
    source, key = {**train, "split": held}, "do_eval"
    if elsewhere:
        source, key = _source(elsewhere)[0], "eval_dataset_path"
        if "split" in source:
            source["split"] = "validation"
    entry = {**{ours: (key, value) for ours, value in source.items()}, **_template(sheet, source["source"])}
    sheet.put("data.validation", [sheet.entry(entry)], key)
    size = sheet.get("eval_batch_size") or sheet.get("batch_size")
    bench = {"bench": ("do_eval", "loss"), "every_steps": ("eval_steps", sheet.get("eval_steps")), "batch": ("eval_batch_size", size)}
    sheet.put("evaluate", [sheet.entry(bench)], "do_eval")
    where = "" if elsewhere else f", on {held}; the original measured rows that it trained on"
    sheet.row("do_eval", "evaluate.0.bench", f"held-out loss{where}")
    sheet.row("eval_steps", "evaluate.0.every_steps")
    sheet.row("eval_batch_size", "evaluate.0.batch", "" if sheet.get("eval_batch_size") else "null: batch_size")
    note = "" if elsewhere else "null: a part of the training data is held out"
    sheet.row("eval_dataset_path", "data.validation.0" if elsewhere else None, note)


PARTS: tuple[Callable[[Sheet], None], ...] = (_trainable, _lengths, _machine, _keeping, _tracking, _data)
