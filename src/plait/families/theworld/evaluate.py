"""Benches (evaluations) of family theworld: `accuracy` by generated answers, `world_ablation` (with three worlds), and `world_loss`.

A world is the input of the world encoder: "on" the sample's frames, "off" none, "shuffled" those of another sample. A row is a dict per
sample: id, question, answer, gold (right answer), correct, or `bad`, why it cannot be encoded. If no sample gives the world encoder any
input, the model would be measured as plain Gemma: that raises PlaitError. No bench uses `moment`, the name of the step.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plait.data.synthetic.answers import can_score, score
from plait.engine.evaluation import Bench, Row
from plait.errors import BadSample, PlaitError, sample_errors
from plait.families.theworld.choices import chosen, options, right_letter
from plait.families.theworld.generate import answers
from plait.families.theworld.inputs import Example, Inputs, Sample
from plait.families.theworld.model import TheWorld
from plait.families.theworld.short_answers import says
from plait.nn.losses import IGNORED, token_cross_entropy

_SPARE_TOKENS = 8  # an answer may run this much longer than the gold one before it is cut: enough to be seen to differ
_ROOM_TOKENS = 128  # the same where no special scorer judges the answer: room for a few sentences, of which the last may give it
NO_GOLD = "no answer to compare with: it has no text of the assistant"
WAYS = ("on", "off", "shuffled")
"""The world shown to a sample: its own, none, another sample's."""


def is_correct(answer: str, gold: str, fields: Mapping[str, Any], question: str = "") -> bool:
    """Return whether an answer is right. `gold`: the right answer; `fields`: the sample's other fields, {name: value}.

    Drawn scenes (`fields` of source `scenes`) have a special scorer. Where the right answer is an option that `question` lists, the answer
    must choose it (choices.py); otherwise it must give the right one (short_answers.py).
    """
    if can_score(fields):
        return score(answer, dict(fields))
    listed = options(question)
    wanted = right_letter(gold, listed)
    return says(answer, gold) if wanted is None else chosen(answer, listed) == wanted


def predict(model: TheWorld, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "") -> list[Row]:
    """Generate an answer to every sample, `batch` at a time; return one row per sample, in order. `moment` is not used.

    A row has `id`, `question`, `answer`, `gold` (the right answer) and `correct`, `task`, `world` ("on", or "none" without an encoder),
    `world_tokens` (their number); or `bad`, why the sample cannot be encoded, in place of the last four.
    """
    way = "on" if inputs.config.world else "none"
    return [_row(sample, {way: answer}) for sample, answer in zip(samples, _generate(model, samples, inputs, way, batch), strict=True)]


def predict_three_ways(model: TheWorld, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "") -> list[Row]:
    """Answer every sample with each world (on, off, shuffled); return rows as of `predict`, with a further key `ways`.

    `ways`: {world: {"answer": text, "correct": bool}}; the other keys are those of world "on". `moment` is not used.

    Raises PlaitError for a model without a world encoder, and if no two samples have different images.
    """
    if inputs.config.world is None:
        raise PlaitError("bench world_ablation needs a world; model.world is off: use bench accuracy")
    by_way = {way: _generate(model, samples, inputs, way, batch) for way in WAYS}
    return [_row(sample, {way: by_way[way][i] for way in WAYS}) for i, sample in enumerate(samples)]


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return means over rows: `accuracy`, `accuracy/TASK` by task, `world_tokens`; and counts: `samples` and, if any, `bad_samples`.

    Raises PlaitError if the model has a world encoder and no sample has input for it.
    """
    _check_world(rows)
    used = [row for row in rows if "bad" not in row]
    figures = {"accuracy": _accuracy(used), "samples": float(len(used)), "world_tokens": _mean([row["world_tokens"] for row in used])}
    tasks: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in used:
        if row["task"] is not None:
            tasks[row["task"]].append(row)
    figures |= {f"accuracy/{task}": _accuracy(tasks[task]) for task in sorted(tasks)}
    return figures | ({"bad_samples": float(len(rows) - len(used))} if len(used) < len(rows) else {})


def summarise_three_ways(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the figures of `summarise`, for answers with world "on", and `accuracy/world_on`, `_off` and `_shuffled`."""
    used = [row for row in rows if "bad" not in row]
    ways = {f"accuracy/world_{way}": _mean([row["ways"][way]["correct"] for row in used]) for way in WAYS}
    return summarise(rows) | ways


def predict_loss(model: TheWorld, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "") -> list[Row]:
    """Measure the loss of every sample with each world (on, off, shuffled); return one row per sample, in order.

    Rows have `id`, `nats`, {world: cross-entropy summed over supervised positions}, `tokens`, the number of these, and `world_tokens`; or
    `id` and `bad`, why the sample cannot be encoded. `moment` is not used. Raises PlaitError for a model without a world encoder, and if no
    two samples have different images.
    """
    if inputs.config.world is None:
        raise PlaitError("bench world_loss needs a world; model.world is off: use bench loss")
    rows: list[Row] = []
    for start in range(0, len(samples), batch):
        encoded = [_three_ways(samples, i, inputs) for i in range(start, min(start + batch, len(samples)))]
        usable = [ways for ways in encoded if isinstance(ways, dict)]
        nats = {way: _nats(model, inputs, [ways[way] for ways in usable]) for way in WAYS if usable}
        done = 0
        for sample, ways in zip(samples[start : start + batch], encoded, strict=True):
            if isinstance(ways, str):
                rows.append({"id": sample["id"], "bad": ways})
                continue
            row = {"nats": {way: nats[way][done] for way in WAYS}, "tokens": int((ways["on"].row.labels[1:] != IGNORED).sum())}
            rows.append({"id": sample["id"], "world": "on", "world_tokens": ways["on"].world_tokens, **row})
            done += 1
    return rows


def _three_ways(samples: Sequence[Sample], i: int, inputs: Inputs) -> dict[str, Example] | str:
    """Return sample `i` encoded with each world, or why it cannot be."""
    others = {"shuffled": _sample_of_another_image(samples, i, "world_loss")}
    try:
        with sample_errors:
            return {way: inputs.encode(samples[i], 0, world=way != "off", world_of=others.get(way)) for way in WAYS}
    except BadSample as error:
        return str(error)


@torch.no_grad()
def _nats(model: TheWorld, inputs: Inputs, examples: Sequence[Example]) -> list[float]:
    """Return the cross-entropy of each example, in nats summed over its supervised positions."""
    batch = {name: value.to(model.gemma.device) for name, value in inputs.collate(examples).items()}
    hidden_BLD = model.hidden(model.embed(batch), batch)
    weight, targets_BL = model.gemma.lm_head.weight, batch["labels"][:, 1:]
    rows = zip(hidden_BLD[:, :-1], targets_BL, strict=True)
    return [float(token_cross_entropy(hidden_LD, weight, target_L, softcap=model.softcap)) for hidden_LD, target_L in rows]


def summarise_loss(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return `loss` (nats per supervised token, with world "on"), `loss/world_on`, `_off`, `_shuffled`, `samples`, `bad_samples`.

    Raises PlaitError if no sample has input for the world encoder.
    """
    _check_world(rows)
    used = [row for row in rows if "bad" not in row]
    tokens = sum(row["tokens"] for row in used)
    if not tokens:
        raise PlaitError(f"none of {len(rows)} samples can be used: {rows[0].get('bad') if rows else 'there are none'}")
    losses = {f"loss/world_{way}": sum(row["nats"][way] for row in used) / tokens for way in WAYS}
    figures = {"loss": losses["loss/world_on"], **losses, "samples": float(len(used))}
    return figures | ({"bad_samples": float(len(rows) - len(used))} if len(used) < len(rows) else {})


benches = {
    "accuracy": Bench(predict, summarise),
    "world_ablation": Bench(predict_three_ways, summarise_three_ways),
    "world_loss": Bench(predict_loss, summarise_loss, means=True),
}
"""Benches by name, as in `plait eval --bench NAME`."""


@dataclass(frozen=True)
class _Answer:
    """A generated answer; `bad` says why a sample could not be encoded."""

    text: str
    world_tokens: int
    bad: str | None = None


def _generate(model: TheWorld, samples: Sequence[Sample], inputs: Inputs, way: str, batch: int) -> list[_Answer]:
    """Answer samples in their order, `batch` at a time; a sample that cannot be encoded keeps its place with the reason."""
    collected: list[_Answer] = []
    for start in range(0, len(samples), batch):
        indices = range(start, min(start + batch, len(samples)))
        prompts = [_prompt(samples, i, inputs, way) for i in indices]
        usable = [(i, prompt) for i, prompt in zip(indices, prompts, strict=True) if isinstance(prompt, Example)]
        limits = [_answer_limit(inputs, samples[i]) for i, _ in usable]
        texts = iter(answers(model, inputs, [prompt for _, prompt in usable], max_new_tokens=limits) if usable else [])
        for prompt in prompts:
            answer = _Answer("", 0, prompt) if isinstance(prompt, str) else _Answer(next(texts), prompt.world_tokens)
            collected.append(answer)
    return collected


def _answer_limit(inputs: Inputs, sample: Sample) -> int:
    """Return the number of tokens after which the answer to a sample is cut."""
    spare = _SPARE_TOKENS if can_score(sample["fields"]) else _ROOM_TOKENS
    return len(inputs.chat.text_ids(gold(sample))) + spare


def _prompt(samples: Sequence[Sample], i: int, inputs: Inputs, way: str) -> Example | str:
    """Return the encoded prompt of sample `i`, or why it cannot be encoded."""
    if not gold(samples[i]) and not can_score(samples[i]["fields"]):
        return NO_GOLD
    other = _sample_of_another_image(samples, i, "world_ablation") if way == "shuffled" else None
    try:
        with sample_errors:
            return inputs.prompt(samples[i], world=way != "off", world_of=other)
    except BadSample as error:
        return str(error)


def _sample_of_another_image(samples: Sequence[Sample], i: int, bench: str) -> Sample | None:
    """Return a sample far from `i` in the list with a different image, always the same one. None for a sample without images."""
    if not samples[i]["images"]:
        return None
    distances = range(len(samples) // 2, len(samples) // 2 + len(samples))
    candidates = (samples[(i + distance) % len(samples)] for distance in distances)
    other = next((c for c in candidates if c["images"] and c["images"][0] != samples[i]["images"][0]), None)
    if other is None:
        raise PlaitError(f"bench {bench} needs two samples with different pictures; raise evaluate.samples")
    return other


def _row(sample: Sample, ways: Mapping[str, _Answer]) -> Row:
    """Return the row of predictions.json: question, answers and whether they are correct; `ways` only where there are several."""
    first_way, first = next(iter(ways.items()))
    row: Row = {"id": sample["id"], "question": question(sample), "answer": first.text, "gold": gold(sample)}
    bad = next((answer.bad for answer in ways.values() if answer.bad is not None), None)
    if bad is not None:
        return {**row, "bad": bad}
    fields = sample["fields"]
    verdicts = {
        way: {"answer": answer.text, "correct": is_correct(answer.text, row["gold"], fields, row["question"])}
        for way, answer in ways.items()
    }
    row |= {"correct": verdicts[first_way]["correct"], "task": fields.get("task"), "world": first_way, "world_tokens": first.world_tokens}
    return row if len(ways) == 1 else {**row, "ways": verdicts}


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
