"""Benches by free generation. Each is one scoring rule; what a rule compares with stands in the sample's fields.

accuracy: any sample (its last answer, or `answers`; scenes judge themselves). vqa, exact_match, anls, relaxed_accuracy: `answers` or
`answer`. multiple_choice, mmmu: `options` and `answer_idx`. counting: `count`. pointing: `points` in percent and, where there are, their
`masks`. mathvista: its record's own fields.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.data.synthetic.answers import can_judge, judge
from plait.engine.evaluation import Bench, Row
from plait.errors import BadSample, PlaitError
from plait.families.molmo import points, styles
from plait.families.molmo.generate import answers
from plait.families.molmo.inputs import Inputs, Sample
from plait.families.molmo.model import Molmo
from plait.families.molmo.scoring import benchmark_rules, metrics

Score = Callable[[str, Sample], dict[str, float]]

_SPARE_TOKENS = 8  # an answer may run this much longer than the longest gold one: enough to be seen to differ
_NEAR = 5.0  # percent of width and height within which a point hits a gold point that has no mask


@dataclass(frozen=True)
class Scored:
    """A bench that scores free answers by one rule."""

    score: Score

    def bench(self) -> Bench:
        """Return it as the engine takes it."""
        return Bench(self.predict, self.summarise)

    def predict(self, model: Molmo, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "") -> list[Row]:
        """One row per sample, in their order; none is dropped. A sample that cannot be read says so in its row."""
        rows: list[Row] = []
        for start in range(0, len(samples), batch):
            rows += self._some(model, samples[start : start + batch], inputs)
        return rows

    def _some(self, model: Molmo, samples: Sequence[Sample], inputs: Inputs) -> list[Row]:
        found: list[Any] = []
        for sample in samples:
            try:
                found.append(inputs.prompt(sample))
            except BadSample as error:
                found.append(str(error))
        usable = [(sample, prompt) for sample, prompt in zip(samples, found, strict=True) if not isinstance(prompt, str)]
        limits = [max(len(inputs.words.ids(f" {gold}")) for gold in (*golds(sample), "")) + _SPARE_TOKENS for sample, _ in usable]
        said = iter(answers(model, inputs, [prompt for _, prompt in usable], max_new_tokens=limits) if usable else [])
        return [
            self._row(sample, None, prompt) if isinstance(prompt, str) else self._row(sample, next(said), None)
            for sample, prompt in zip(samples, found, strict=True)
        ]

    def _row(self, sample: Sample, answer: str | None, bad: str | None) -> Row:
        wanted = golds(sample)
        row: Row = {"id": sample["id"], "question": question(sample), "answer": answer or "", "gold": " | ".join(dict.fromkeys(wanted))}
        if bad is not None:
            return {**row, "bad": bad}
        figures = self.score(answer or "", sample)
        return {**row, "task": task(sample), "correct": figures["score"] == 1.0, **figures}

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Means of the rule's figures (`score` first), score/TASK where samples name tasks, how many samples, how many unusable."""
        used = [row for row in rows if "bad" not in row]
        named = list(dict.fromkeys(name for row in used for name in row if isinstance(row[name], float)))
        figures = {name: _mean([row[name] for row in used if name in row]) for name in named}
        tasks: dict[str, list[float]] = defaultdict(list)
        for row in used:
            if row["task"] is not None:
                tasks[row["task"]].append(row["score"])
        figures |= {f"score/{name}": _mean(tasks[name]) for name in sorted(tasks)}
        bad = {"bad_samples": float(len(rows) - len(used))} if len(used) < len(rows) else {}
        return {**figures, "samples": float(len(used)), **bad}


def golds(sample: Sample) -> list[str]:
    """What people answered: the fields `answers` or `answer`, else the last assistant turn of the first annotation."""
    fields = sample["fields"]
    if "answers" in fields:
        return [str(answer) for answer in fields["answers"]]
    said = [message["content"].strip() for message in _messages(sample) if message["role"] == "assistant"]
    return said[-1:] or [str(fields.get("answer", ""))]


def question(sample: Sample) -> str:
    """The text of the last user turn."""
    return next((message["content"].strip() for message in reversed(_messages(sample)) if message["role"] == "user"), "")


def task(sample: Sample) -> str | None:
    """The task of a sample that names one, else its style."""
    name = sample["fields"].get("task", sample["fields"].get("style"))
    return None if name is None else str(name)


def _messages(sample: Sample) -> list[dict[str, str]]:
    return styles.conversations(sample, "")[0][0]


def _field(sample: Sample, name: str) -> Any:
    if name not in sample["fields"]:
        known = ", ".join(sample["fields"]) or "none"
        raise PlaitError(f"this bench compares with the field {name!r}; sample {sample['id']} has the fields {known}: choose another bench")
    return sample["fields"][name]


def accuracy(answer: str, sample: Sample) -> dict[str, float]:
    """Right or wrong: scenes and NLVR judge themselves, else equal to a gold answer but for case, outer punctuation and white space."""
    if can_judge(sample["fields"]):
        return {"score": float(judge(answer, sample["fields"]))}
    said = [" ".join(text.split()).strip(" .,;:!?\"'").casefold() for text in (answer, *golds(sample))]
    return {"score": float(said[0] in said[1:])}


def counting(answer: str, sample: Sample) -> dict[str, float]:
    """Exactly right, and within one; both also under the true count."""
    wanted = int(_field(sample, "count"))
    said = points.read_count(answer)
    exact, near = float(said == wanted), float(said is not None and abs(said - wanted) <= 1)
    return {"score": exact, "within_one": near, f"score/count_{wanted}": exact}


def pointing(answer: str, sample: Sample) -> dict[str, float]:
    """F1 (the score), precision and recall of the points said."""
    fields = sample["fields"]
    if {"truth", "objects", "size"} <= fields.keys():
        things = [fields["objects"][i] for i in fields["truth"]]
        width, height = fields["size"]
        gold = [points.percent(thing["x"], thing["y"], width, height) for thing in things]

        def inside(place: int, at: points.Point) -> bool:
            thing = things[place]
            return math.hypot(at[0] / 100 * width - thing["x"], at[1] / 100 * height - thing["y"]) <= thing["radius"]
    else:
        gold, masks = [(float(x), float(y)) for x, y in _field(sample, "points")], fields.get("masks")

        def inside(place: int, at: points.Point) -> bool:
            return in_mask(masks[place], at) if masks else math.dist(at, gold[place]) <= _NEAR

    figures = points.pointing_score(points.read(answer), gold, inside)
    return {"score": figures["f1"], **figures}


def in_mask(mask: Any, at: points.Point) -> bool:
    """Whether a point in percent lies on a set pixel of a mask (rows of pixels)."""
    high, wide = len(mask), len(mask[0])
    return bool(mask[min(int(at[1] / 100 * high), high - 1)][min(int(at[0] / 100 * wide), wide - 1)])


def _chosen(answer: str, sample: Sample, rule: Callable[[str, Sequence[str]], int | None]) -> dict[str, float]:
    return {"score": float(rule(answer, _field(sample, "options")) == int(_field(sample, "answer_idx")))}


def _mmmu(answer: str, sample: Sample) -> dict[str, float]:
    return (
        _chosen(answer, sample, benchmark_rules.mmmu_choice)
        if sample["fields"].get("options")
        else {"score": benchmark_rules.mmmu_open(answer, golds(sample))}
    )


benches = {
    "accuracy": Scored(accuracy).bench(),
    "vqa": Scored(lambda answer, sample: {"score": metrics.vqa_score(answer, golds(sample))}).bench(),
    "exact_match": Scored(lambda answer, sample: {"score": metrics.exact_match(answer, golds(sample))}).bench(),
    "anls": Scored(lambda answer, sample: {"score": metrics.anls(answer, golds(sample))}).bench(),
    "relaxed_accuracy": Scored(lambda answer, sample: {"score": metrics.relaxed_accuracy(answer, golds(sample))}).bench(),
    "multiple_choice": Scored(lambda answer, sample: _chosen(answer, sample, metrics.choose)).bench(),
    "counting": Scored(counting).bench(),
    "pointing": Scored(pointing).bench(),
    "mmmu": Scored(_mmmu).bench(),
    "mathvista": Scored(lambda answer, sample: {"score": benchmark_rules.mathvista(answer, sample["fields"])}).bench(),
}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
