"""The bench (evaluation) of family theworld, `accuracy` by generated answers, and its ablations: the inputs `world` and `image`.

A row is a dict per sample: id, question, answer, gold (right answer), correct, where it has one `failed` (why the answer could not be
read), or `bad`, why the sample cannot be encoded. benchmarks/judge.py says what is right. If no sample gives the world encoder any input,
the model would be measured as plain Gemma: that raises PlaitError.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from plait.data.synthetic.answers import can_score
from plait.engine.evaluation import Bench, Row
from plait.errors import BadSample, PlaitError, sample_errors
from plait.families.ablation import PICTURES, Ablation
from plait.families.theworld.benchmarks.judge import EMPTY, UNPARSED, judge
from plait.families.theworld.generate import answers
from plait.families.theworld.inputs import WORLD_OF, Example, Inputs, Sample
from plait.families.theworld.model import TheWorld

_SPARE_TOKENS = 8  # an answer may run this much longer than the gold one before it is cut: enough to be seen to differ
_ROOM_TOKENS = 128  # the same where no special scorer judges the answer: room for a few sentences, of which the last may give it
NO_GOLD = "no answer to compare with: it has no text of the assistant"


def predict(model: TheWorld, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "") -> list[Row]:
    """Generate an answer to every sample, `batch` at a time; return one row per sample, in order. `moment` is not used.

    A row has `id`, `question`, `answer`, `gold` (the right answer), `correct`, `task`, `world` ("on" or "off": the encoder was used) and
    `world_tokens`; or `bad`, why the sample cannot be used, in place of the last four. `inputs`: the family's Inputs.
    """
    rows: list[Row] = []
    for start in range(0, len(samples), batch):
        chosen = samples[start : start + batch]
        prompts = [_prompt(sample, inputs) for sample in chosen]
        usable = [(sample, prompt) for sample, prompt in zip(chosen, prompts, strict=True) if isinstance(prompt, Example)]
        limits = [_answer_limit(inputs, sample) for sample, _ in usable]
        texts = iter(answers(model, inputs, [prompt for _, prompt in usable], max_new_tokens=limits) if usable else [])
        for sample, prompt in zip(chosen, prompts, strict=True):
            answer = "" if isinstance(prompt, str) else next(texts)
            rows.append(_row(sample, prompt, answer, has_world=inputs.config.world is not None))
    return rows


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
    counts = {f"{kind}_answers": sum(row.get("failed") == kind for row in used) for kind in (EMPTY, UNPARSED)}
    counts["bad_samples"] = len(rows) - len(used)
    return figures | {name: float(count) for name, count in counts.items() if count}


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
    """Return what the world encoder may be given of a sample: its clip, else its images; None without any."""
    return tuple(sample.get("frames") or sample["images"]) or None


benches = {"accuracy": Bench(predict, summarise, about=_errors)}
"""Benches by name, as in `plait eval --bench NAME`."""
ablations = {
    "world": Ablation(
        _frames,
        lambda sample: {**sample, WORLD_OF: None},
        lambda sample, other: {**sample, WORLD_OF: other},
        lambda config: None if config.world else "model.world is off",
    ),
    "image": Ablation(PICTURES.content, lambda sample: {**PICTURES.off(sample), WORLD_OF: None}, PICTURES.exchange),
}
"""Inputs that benches can leave out, by name: the world encoder's frames, and the pictures, of which the world sees nothing either then."""


def _answer_limit(inputs: Inputs, sample: Sample) -> int:
    """Return the number of tokens after which the answer to a sample is cut."""
    spare = _SPARE_TOKENS if can_score(sample["fields"]) else _ROOM_TOKENS
    return len(inputs.chat.text_ids(gold(sample))) + spare


def _prompt(sample: Sample, inputs: Inputs) -> Example | str:
    """Return the encoded prompt of a sample, or why it cannot be encoded."""
    if not gold(sample) and not can_score(sample["fields"]):
        return NO_GOLD
    try:
        with sample_errors:
            return inputs.prompt(sample)
    except BadSample as error:
        return str(error)


def _row(sample: Sample, prompt: Example | str, answer: str, *, has_world: bool) -> Row:
    """Return the row of predictions.json of a sample: its question, and its answer with whether it is correct, or why there is none.

    `has_world`: whether the model has a world encoder.
    """
    row: Row = {"id": sample["id"], "question": question(sample), "answer": answer, "gold": gold(sample)}
    if isinstance(prompt, str):
        return {**row, "bad": prompt}
    fields = sample["fields"]
    judged = judge(answer, row["gold"], fields, row["question"])
    world = "on" if has_world and sample.get(WORLD_OF, sample) is not None else "off"
    row |= {"correct": judged.correct, "task": fields.get("task"), "world": world, "world_tokens": prompt.world_tokens}
    row |= {"group": fields["group"]} if "group" in fields else {}
    row |= {"error": judged.error} if judged.error is not None else {}
    return row | ({"failed": judged.failed} if judged.failed else {})


def gold(sample: Sample) -> str:
    """Return the gold (right) answer: the text of the last assistant turn, or "" if there is none."""
    return next((message["content"].strip() for message in reversed(sample["messages"]) if message["role"] == "assistant"), "")


def question(sample: Sample) -> str:
    """Return the question: the text of the last user turn, or "" if there is none."""
    return next((message["content"].strip() for message in reversed(sample["messages"]) if message["role"] == "user"), "")


def _check_world(rows: Sequence[Mapping[str, Any]]) -> None:
    worlds = [row["world_tokens"] for row in rows if row.get("world") == "on"]
    if worlds and sum(worlds) == 0:
        raise PlaitError(
            f"none of {len(worlds)} samples showed the world encoder anything (no pictures): evaluate with pictures, or model.world: off"
        )


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> float:
    return _mean([row["correct"] for row in rows])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
