"""Benches by free generation: `accuracy` as the model is configured, and `world_ablation`, the same answers three ways on one checkpoint.

A world model that is shown no world tokens would be measured as plain Gemma without anyone noticing: that raises.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.data.synthetic.answers import can_judge, judge
from plait.engine.evaluation import Bench, Row
from plait.errors import BadSample, PlaitError
from plait.families.theworld.generate import answers
from plait.families.theworld.inputs import Example, Inputs, Sample
from plait.families.theworld.model import TheWorld

_SPARE_TOKENS = 8  # an answer may run this much longer than the gold one before it is cut: enough to be seen to differ
WAYS = ("on", "off", "shuffled")


def normalise(text: str) -> str:
    """Case, outer punctuation and runs of white space do not count."""
    return re.sub(r"\s+", " ", text).strip(" \t\n.,;:!?\"'").casefold()


def right(answer: str, gold: str, fields: Mapping[str, Any]) -> bool:
    """Exact match after normalisation; questions about scenes have their own judge, which knows the truth."""
    if can_judge(fields):
        return judge(answer, dict(fields))
    return normalise(answer) == normalise(gold)


def predict(model: TheWorld, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "") -> list[Row]:
    """One row per sample, answered as the model is configured."""
    way = "on" if inputs.config.world else "none"
    return [_row(sample, {way: said}) for sample, said in zip(samples, _ask(model, samples, inputs, way, batch), strict=True)]


def predict_three_ways(model: TheWorld, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "") -> list[Row]:
    """One row per sample with three answers: its own world, no world block, and the world of another sample's picture."""
    if inputs.config.world is None:
        raise PlaitError("bench world_ablation needs a world; model.world is off: use bench accuracy")
    ways = {way: _ask(model, samples, inputs, way, batch) for way in WAYS}
    return [_row(sample, {way: ways[way][place] for way in WAYS}) for place, sample in enumerate(samples)]


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """accuracy, accuracy/TASK where samples name tasks, samples, world_tokens per sample, and how many samples were unusable."""
    _check_world(rows)
    used = [row for row in rows if "bad" not in row]
    figures = {"accuracy": _share(used), "samples": float(len(used)), "world_tokens": _mean([row["world_tokens"] for row in used])}
    tasks: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in used:
        if row["task"] is not None:
            tasks[row["task"]].append(row)
    figures |= {f"accuracy/{task}": _share(tasks[task]) for task in sorted(tasks)}
    return figures | ({"bad_samples": float(len(rows) - len(used))} if len(used) < len(rows) else {})


def summarise_three_ways(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`summarise` of the answers with the sample's own world, and accuracy/world_on, _off and _shuffled."""
    used = [row for row in rows if "bad" not in row]
    ways = {f"accuracy/world_{way}": _mean([row["ways"][way]["correct"] for row in used]) for way in WAYS}
    return summarise(rows) | ways


benches = {"accuracy": Bench(predict, summarise), "world_ablation": Bench(predict_three_ways, summarise_three_ways)}


@dataclass(frozen=True)
class _Said:
    answer: str
    world_tokens: int
    bad: str | None = None


def _ask(model: TheWorld, samples: Sequence[Sample], inputs: Inputs, way: str, batch: int) -> list[_Said]:
    """Answers in the samples' order; a sample whose files cannot be read is said to be so."""
    found: list[_Said] = []
    for start in range(0, len(samples), batch):
        places = range(start, min(start + batch, len(samples)))
        prompts = [_prompt(samples, place, inputs, way) for place in places]
        usable = [(place, prompt) for place, prompt in zip(places, prompts, strict=True) if isinstance(prompt, Example)]
        limits = [len(inputs.chat.text_ids(gold(samples[place]))) + _SPARE_TOKENS for place, _ in usable]
        said = iter(answers(model, inputs, [prompt for _, prompt in usable], max_new_tokens=limits) if usable else [])
        found += [_Said("", 0, prompt) if isinstance(prompt, str) else _Said(next(said), prompt.world_tokens) for prompt in prompts]
    return found


def _prompt(samples: Sequence[Sample], place: int, inputs: Inputs, way: str) -> Example | str:
    try:
        other = _other(samples, place) if way == "shuffled" else None
        return inputs.prompt(samples[place], world=way != "off", world_of=other)
    except BadSample as error:
        return str(error)


def _other(samples: Sequence[Sample], place: int) -> Sample | None:
    """A sample far away in the list that has a picture, with other pixels; the same one every time."""
    if not samples[place]["images"]:
        return None
    away = range(len(samples) // 2, len(samples) // 2 + len(samples))
    candidates = (samples[(place + step) % len(samples)] for step in away)
    found = next((c for c in candidates if c["images"] and c["images"][0] != samples[place]["images"][0]), None)
    if found is None:
        raise PlaitError("bench world_ablation needs two samples with different pictures; raise evaluate.samples")
    return found


def _row(sample: Sample, ways: Mapping[str, _Said]) -> Row:
    said = next(iter(ways.values()))
    row: Row = {"id": sample["id"], "question": question(sample), "answer": said.answer, "gold": gold(sample)}
    bad = next((one.bad for one in ways.values() if one.bad is not None), None)
    if bad is not None:
        return {**row, "bad": bad}
    fields = sample["fields"]
    verdicts = {way: {"answer": one.answer, "correct": right(one.answer, row["gold"], fields)} for way, one in ways.items()}
    first = next(iter(verdicts.values()))
    row |= {"correct": first["correct"], "task": fields.get("task"), "world": next(iter(ways)), "world_tokens": said.world_tokens}
    return row if len(ways) == 1 else {**row, "ways": verdicts}


def gold(sample: Sample) -> str:
    """The text of the last assistant turn."""
    return next((message["content"].strip() for message in reversed(sample["messages"]) if message["role"] == "assistant"), "")


def question(sample: Sample) -> str:
    """The text of the last user turn."""
    return next((message["content"].strip() for message in reversed(sample["messages"]) if message["role"] == "user"), "")


def _check_world(rows: Sequence[Mapping[str, Any]]) -> None:
    worlds = [row["world_tokens"] for row in rows if row.get("world") == "on"]
    if worlds and sum(worlds) == 0:
        raise PlaitError(
            f"none of {len(worlds)} samples showed the world encoder anything (no pictures): evaluate with pictures, or model.world: off"
        )


def _share(rows: Sequence[Mapping[str, Any]]) -> float:
    return _mean([row["correct"] for row in rows])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
