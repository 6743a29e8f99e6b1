"""The data keys of the flat JSON dialect: what is trained on, with its question and answer, and what is held out.

A dialect is another trainer's format of configurations; all its other keys are in flat_json.py. A `builder` holds the keys of the file and
plait's tree built so far, to which these functions add.
"""

from pathlib import Path
from typing import Any

from plait.config.dialects.builder import TranslationBuilder
from plait.config.nodes import node_at

HUB_NAMES = {"datacomp": "mlfoundations/datacomp_small"}
"""The repository of the Hub that a `dataset_name` stands for."""
HELD_OUT = "1%"  # of the training data; the original evaluated on rows that it trained on


def translate_data(builder: TranslationBuilder) -> None:
    """Add to `builder.tree` the training data, with question and answer, and evaluation, which may hold out a part of that data.

    It sets `data.train`, one source with `limit` (num_samples) and `template` (user: question_template, assistant: answer_template; none of
    scenes), `data.validation` and one entry of `evaluate`. What became of each key of data is added to `builder.rows`. Raises nothing for
    wrong values: keys and types were checked before, and values are when plait's tree is read.
    """
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
    """Return the source that a dataset's name stands for, and a note. It is generated scenes, a path on disk or a name on the Hub."""
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
    links = "its rows hold addresses of pictures: `plait train` says which command fetches them, and which setting then"
    note = links if name == "datacomp" else ""
    return {"source": "datasets", "name": known, "split": "train"}, note


def _evaluate(builder: TranslationBuilder, train: dict[str, Any]) -> None:
    """Translate evaluation into the loss on held-out data: of `eval_dataset_path`, new scenes, or a share of the training data."""
    keys, elsewhere = ("do_eval", "eval_steps", "eval_batch_size", "eval_dataset_path"), builder.get("eval_dataset_path")
    if not builder.get("do_eval"):
        for key in keys:
            builder.add_row(key, None, "do_eval is false")
        return
    if elsewhere or train.get("source") == "scenes":
        source = _source(elsewhere)[0] if elsewhere else dict(train)
        source |= {"split": "validation"} if "split" in source else {}
        key = "eval_dataset_path" if elsewhere else "do_eval"
        entry = {**{ours: (key, value) for ours, value in source.items()}, **_template(builder, source["source"])}
        builder.translate("data.validation", [builder.entry(entry)], key)
        where = "" if elsewhere else ", on scenes of its own"
    else:
        builder.translate("data.validation", HELD_OUT, "do_eval")
        where = f", on {HELD_OUT} of the training data, which is not trained on; the original measured rows that it trained on"
    size = builder.get("eval_batch_size") or builder.get("batch_size")
    bench = {"bench": ("do_eval", "loss"), "every_steps": ("eval_steps", builder.get("eval_steps")), "batch": ("eval_batch_size", size)}
    builder.translate("evaluate", [builder.entry(bench)], "do_eval")
    builder.add_row("do_eval", "evaluate.0.bench", f"held-out loss{where}")
    builder.add_row("eval_steps", "evaluate.0.every_steps")
    builder.add_row("eval_batch_size", "evaluate.0.batch", "" if builder.get("eval_batch_size") else "null: batch_size")
    note = "" if elsewhere else "null: a part of the training data is held out"
    builder.add_row("eval_dataset_path", "data.validation.0" if elsewhere else None, note)


def holds_out(builder: TranslationBuilder) -> bool:
    """Return whether the translation so far holds out a share of the training data (not other data) for validation."""
    held_out = node_at(builder.tree, ("data", "validation"))
    return held_out is not None and held_out.value == HELD_OUT


def hold_out(builder: TranslationBuilder) -> None:
    """Hold out 1 % of each training source for validation, unless other data is held out already.

    Called for a file of which only some stages evaluate, so that no other stage trains on that share.
    """
    if node_at(builder.tree, ("data", "validation")) is None:
        builder.assign("data.validation", HELD_OUT, "do_eval")
