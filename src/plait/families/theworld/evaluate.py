"""The benches (evaluations) of family theworld: `accuracy` of generated answers, and `captions`, their scores against references.

And its ablations: the inputs `world` and `image`. A row is a dict per sample: id, question, answer, gold (right answer), correct, where it
has one `failed` (why the answer could not be read), or `bad`, why the sample cannot be encoded. benchmarks/judge.py says what is right. If
no sample gives the world encoder any input, the model would be measured as plain Gemma: that raises PlaitError.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.data.synthetic.answers import can_score
from plait.data.text import blank
from plait.engine.evaluation import Bench, Row
from plait.errors import BadSample, PlaitError, sample_errors
from plait.families.ablation import PICTURES, Ablation
from plait.families.theworld import towers
from plait.families.theworld.benchmarks import captions
from plait.families.theworld.benchmarks.judge import EMPTY, GROUP, REGIONS, UNPARSED, UNPUBLISHED, judge
from plait.families.theworld.benchmarks.regions import is_category
from plait.families.theworld.config import Config
from plait.families.theworld.generate import answers
from plait.families.theworld.inputs import WORLD_OF, Example, Inputs, Sample
from plait.families.theworld.model import TheWorld

_SPARE_TOKENS = 8  # an answer may run this much longer than the gold one before it is cut: enough to be seen to differ
_ROOM_TOKENS = 128  # the same where no special scorer judges the answer: room for a few sentences, of which the last may give it
_CAPTION_TOKENS = 128  # of a caption
NO_GOLD = "no answer to compare with: it has no text of the assistant"
KEPT = "its answer is not published; the model's is in predictions.jsonl, to be handed in where they are scored"
NO_REFERENCE = "no caption to compare with: neither `references` nor `captions`, nor a text of the assistant, has a word"


def predict(model: TheWorld, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "") -> list[Row]:
    """Generate an answer to every sample, `batch` at a time; return one row per sample, in order. `moment` is not used.

    A row has `id`, `question`, `answer`, `gold` (the right answer), `correct`, `task`, `world` ("on" or "off": the encoder was used) and
    `world_tokens`; or `bad`, why the sample cannot be used, in place of the last four. `inputs`: the family's Inputs.
    """
    return _answered(model, samples, inputs, batch=batch, kind=_ACCURACY)


def predict_captions(model: TheWorld, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "") -> list[Row]:
    """Generate a caption of every sample, as `predict` does answers; its row has `references`, what it is compared with, and no `correct`.

    Raises PlaitError where the packages that score captions are not installed.
    """
    captions.check_installed()
    return _answered(model, samples, inputs, batch=batch, kind=_CAPTIONS)


@dataclass(frozen=True)
class _Kind:
    """What a bench does with a sample.

    `limit`: the tokens of an answer; `lacks`: why it cannot be scored, or None; `scored`: further keys of its row. With the reason KEPT it
    is answered all the same.
    """

    limit: Callable[[Inputs, Sample], int]
    lacks: Callable[[Sample], str | None]
    scored: Callable[[Sample, Row], Row]


def _answered(model: TheWorld, samples: Sequence[Sample], inputs: Inputs, *, batch: int, kind: _Kind) -> list[Row]:
    rows: list[Row] = []
    for start in range(0, len(samples), batch):
        chosen = samples[start : start + batch]
        lacks = [kind.lacks(sample) for sample in chosen]
        prompts = [reason if reason not in (None, KEPT) else _prompt(sample, inputs) for sample, reason in zip(chosen, lacks, strict=True)]
        usable = [(sample, prompt) for sample, prompt in zip(chosen, prompts, strict=True) if isinstance(prompt, Example)]
        limits = [kind.limit(inputs, sample) for sample, _ in usable]
        texts = iter(answers(model, inputs, [prompt for _, prompt in usable], max_new_tokens=limits) if usable else [])
        for sample, prompt, reason in zip(chosen, prompts, lacks, strict=True):
            row: Row = {"id": sample["id"], "question": question(sample), "answer": "", "gold": gold(sample)}
            if isinstance(prompt, str):
                rows.append(row | {"bad": prompt})
                continue
            row["answer"] = next(texts)
            if reason is not None:
                rows.append(row | {"bad": reason})
                continue
            world = "on" if inputs.config.world is not None and sample.get(WORLD_OF, sample) is not None else "off"
            rows.append(row | {"world": world, "world_tokens": prompt.world_tokens} | kind.scored(sample, row))
    return rows


def _answer_limit(inputs: Inputs, sample: Sample) -> int:
    """Return the number of tokens after which the answer to a sample is cut."""
    spare = _SPARE_TOKENS if can_score(sample["fields"]) else _ROOM_TOKENS
    return len(inputs.chat.text_ids(gold(sample))) + spare


def _lacks_gold(sample: Sample) -> str | None:
    if sample["fields"].get(UNPUBLISHED) is True:
        return KEPT
    if REGIONS in sample["fields"] and not is_category(sample["fields"][REGIONS]):
        return f"the category {sample['fields'][REGIONS]!r} is unknown"
    return None if gold(sample) or can_score(sample["fields"]) else NO_GOLD


def _judged(sample: Sample, row: Row) -> Row:
    """Return whether the answer in a row is correct, with the task and group of its sample, and what else is known of it."""
    fields = sample["fields"]
    judged = judge(row["answer"], row["gold"], fields, row["question"])
    given: Row = {"correct": judged.correct, "task": fields.get("task")}
    others = {"group": fields.get(GROUP), "error": judged.error, "failed": judged.failed}
    return given | {name: value for name, value in others.items() if value is not None}


def _references(sample: Sample) -> list[str]:
    """Return what a caption is compared with: the text or texts in `references`, else `captions`, else the right answer; [] without any."""
    _, given = _given_references(sample)
    listed = [gold(sample)] if given is None else [given] if isinstance(given, str) else given
    return [text for text in listed if captions.words(text)] if _are_texts(listed) else []


def _given_references(sample: Sample) -> tuple[str, Any]:
    """Return the name and value of the first field with references that a sample has, ("", None) without one."""
    fields = sample["fields"]
    return next(((name, fields[name]) for name in ("references", "captions") if fields.get(name) is not None), ("", None))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _lacks_references(sample: Sample) -> str | None:
    """Return why a sample's caption can be compared with nothing, None where it can."""
    if _references(sample):
        return None
    name, given = _given_references(sample)
    if not name:
        return NO_REFERENCE
    texts = isinstance(given, str) or _are_texts(given)
    fault = "is empty" if given == [] else "has no word" if texts else "holds other than texts"
    return f"no caption to compare with: `{name}` {fault}; give a text or a list of texts, or leave it out"


def _captioned(sample: Sample, row: Row) -> Row:
    return {"references": _references(sample)} | ({"failed": EMPTY} if blank(row["answer"]) else {})


_ACCURACY = _Kind(_answer_limit, _lacks_gold, _judged)
_CAPTIONS = _Kind(lambda inputs, sample: _CAPTION_TOKENS, _lacks_references, _captioned)


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return means over rows, `accuracy`, by group and task `accuracy/NAME`, and `world_tokens`, and counts.

    `task_mean`: the mean of the tasks' accuracies, where there are several. A group, such as "quantitative", has several tasks. Counts:
    `samples` and, if any, `empty_answers` and `unparsed_answers` (in which no choice, verdict or length could be read), both of which are
    wrong, and `bad_samples`, which are left out. Raises PlaitError if the model has a world encoder and no sample has input for it.
    """
    _check_world(rows)
    used = [row for row in rows if "bad" not in row]
    figures = {"accuracy": _accuracy(used), "samples": float(len(used)), "world_tokens": _mean([row["world_tokens"] for row in used])}
    by_task = _by(used, "task")
    figures |= {"task_mean": _mean(list(by_task.values()))} if len(by_task) > 1 else {}
    figures |= {f"accuracy/{name}": accuracy for name, accuracy in (_by(used, "group") | by_task).items()}
    return figures | _counts(rows)


def finish_captions(rows: Sequence[Row]) -> list[Row]:
    """Return rows with what each caption contributes to the scores of all (benchmarks/captions.py)."""
    used = [row for row in rows if "bad" not in row]
    contributed = iter(captions.counted([row["answer"] for row in used], [row["references"] for row in used]))
    return [row if "bad" in row else row | next(contributed) for row in rows]


def summarise_captions(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return `cider`, `bleu_1` to `bleu_4` and `rouge_l` of all captions, the mean of `world_tokens`, and counts as `summarise` does.

    Raises PlaitError if the model has a world encoder and no sample has input for it.
    """
    _check_world(rows)
    used = [row for row in rows if "bad" not in row]
    means = {"samples": float(len(used)), "world_tokens": _mean([row["world_tokens"] for row in used])}
    return captions.scores(used) | means | _counts(rows)


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return how many answers are empty or could not be read, and how many samples could not be used; without those that are none."""
    counts = {f"{kind}_answers": sum(row.get("failed") == kind for row in rows) for kind in (EMPTY, UNPARSED)}
    counts["bad_samples"] = sum("bad" in row for row in rows)
    return {name: float(count) for name, count in counts.items() if count}


def _by(rows: Sequence[Mapping[str, Any]], field: str) -> dict[str, float]:
    """Return the accuracy of the rows of each value of a field, by value; rows without the field do not count."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row.get(field) is not None:
            groups[row[field]].append(row)
    return {name: _accuracy(groups[name]) for name in sorted(groups)}


def _errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what a report says of lengths: the mean relative error of those that could be read, by task. {} where none are asked."""
    errors: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if "error" in row:
            errors[row["task"]].append(row["error"])
    told = ", ".join(f"{task} {_mean(errors[task]):.3f} ({len(errors[task])})" for task in sorted(errors))
    return {"relative error": told} if told else {}


def _frames(sample: Sample) -> tuple[bytes, ...] | None:
    """Return what the world encoder may be given of a sample: its clip, else its first image; None without any."""
    source = sample.get(WORLD_OF, sample)
    return None if source is None else tuple(source.get("frames") or source["images"][:1]) or None


def _frames_seen(sample: Sample, config: Config) -> tuple[bytes, ...] | None:
    """Return what the world encoder of such a model is given of a sample: without world steps a single picture, else so many frames."""
    frames, source, world = _frames(sample), sample.get(WORLD_OF, sample), config.world
    if frames is None or world is None:
        return None
    kept = towers.encoder_grid(config, world).kept(len(frames), world.steps)
    return tuple(source["images"][:1]) if kept == 1 and source["images"] else frames[:kept]


benches = {
    "accuracy": Bench(predict, summarise, about=_errors, independent=True),
    "captions": Bench(predict_captions, summarise_captions, means=True, finish=finish_captions, independent=True),
}
"""Benches by name, as in `plait eval --bench NAME`."""
ablations = {
    "world": Ablation(
        _frames,
        lambda sample: {**sample, WORLD_OF: None},
        lambda sample, other: {**sample, WORLD_OF: other},
        lambda config: None if config.world else "model.world is off",
        _frames_seen,
    ),
    "image": Ablation(PICTURES.content, lambda sample: {**PICTURES.off(sample), WORLD_OF: None}, PICTURES.exchange),
}
"""Inputs that benches can leave out, by name: the world encoder's frames, and the pictures, of which the world sees nothing either then."""


def _prompt(sample: Sample, inputs: Inputs) -> Example | str:
    """Return the encoded prompt of a sample, or why it cannot be encoded."""
    try:
        with sample_errors:
            return inputs.prompt(sample)
    except BadSample as error:
        return str(error)


def gold(sample: Sample) -> str:
    """Return the gold (right) answer: the text of the last assistant turn, or "" if there is none."""
    return next((message["content"].strip() for message in reversed(sample["messages"]) if message["role"] == "assistant"), "")


def question(sample: Sample) -> str:
    """Return the question: the text of the last user turn, or "" if there is none."""
    return next((message["content"].strip() for message in reversed(sample["messages"]) if message["role"] == "user"), "")


def _check_world(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise PlaitError where a model with a world encoder was shown nothing by any sample, unless that is what is measured."""
    worlds = [row["world_tokens"] for row in rows if row.get("world") == "on"]
    if worlds and sum(worlds) == 0 and not any(row.get("world") == "off" for row in rows):  # off: an ablation takes the world away
        raise PlaitError(
            f"none of {len(worlds)} samples showed the world encoder anything (no pictures): evaluate with pictures, or model.world: off"
        )


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> float:
    return _mean([row["correct"] for row in rows])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
