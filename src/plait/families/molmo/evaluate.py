"""Benches (evaluations by free generation) of family molmo. Each is one scoring rule, which reads the truth from the sample's `fields`.

accuracy: any sample (its last answer, or `answers`; drawn scenes have a scorer of their own). caption, vqa, a_okvqa, exact_match, anls,
relaxed_accuracy: `answers` or `answer`. multiple_choice, mmmu: `options` and `answer_idx`. counting: `count`. pointing: `points` in percent
and, optionally, their `masks`. mathvista: the fields of its records. real_world_qa: `options` and `answer_idx`, or `answers`. clock: `hour`
and `minute`. A rule maps (answer, sample) to figures, such as {"score": 1.0, "f1": 1.0}, from 0 to 1. A row is a dict per sample: id,
question, answer, gold (right answer), figures, or `bad`, why it cannot be encoded or scored.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.data.synthetic.answers import can_score, score
from plait.data.text import blank
from plait.engine.evaluation import Bench, Row
from plait.errors import BadSample, PlaitError, sample_errors
from plait.families.ablation import PICTURES
from plait.families.molmo import points, styles
from plait.families.molmo.generate import answers
from plait.families.molmo.inputs import Example, Inputs, Sample
from plait.families.molmo.model import Molmo
from plait.families.molmo.scoring import benchmark_rules, metrics

Score = Callable[[str, Sample], dict[str, float]]
"""A scoring rule: from (answer, sample) to figures from 0 to 1 by name, `score` first."""

EMPTY = "empty"
"""Why an answer failed: it is blank, and so never right."""
_SPARE_TOKENS = 8  # an answer may run this much longer than the longest gold one: enough to be seen to differ
_HIDDEN_TOKENS = 12  # of an answer whose gold is not published: as many as the published model is given
_HIT_RADIUS = 5.0  # percent of width and height within which a point hits a gold point that has no mask


@dataclass(frozen=True)
class Scored:
    """A bench that lets the model generate answers and scores them by one rule, `score`: (answer, sample) -> figures by name.

    `tokens`: how long an answer may become; None: a little longer than the longest gold one.
    """

    score: Score
    tokens: int | None = None

    def bench(self) -> Bench:
        """Return this object's `predict` and `summarise` as a Bench, the form in which the engine runs evaluations."""
        return Bench(self.predict, self.summarise, independent=True)

    def predict(self, model: Molmo, samples: Sequence[Sample], inputs: Inputs, *, batch: int, moment: str = "") -> list[Row]:
        """Answer and score every sample, `batch` at a time; return one row per sample, in order. `moment` is not used.

        A row has `id`, `question`, `answer`, `gold` (the right answers), `task`, `correct` and the figures of `score`; or `bad`, why the
        sample cannot be used, in place of the last three. `inputs`: the family's Inputs, which make its batches. Raises PlaitError
        for a sample without the fields that `score` compares with.
        """
        rows: list[Row] = []
        for start in range(0, len(samples), batch):
            rows += self._predict_batch(model, samples[start : start + batch], inputs)
        return rows

    def _predict_batch(self, model: Molmo, samples: Sequence[Sample], inputs: Inputs) -> list[Row]:
        prompts = [_prompt(inputs, sample) for sample in samples]
        usable = [(sample, prompt) for sample, prompt in zip(samples, prompts, strict=True) if isinstance(prompt, Example)]
        limits = [self.tokens or _answer_limit(inputs, sample) for sample, _ in usable]
        wordings = inputs.config.wordings
        texts = iter(answers(model, inputs, [prompt for _, prompt in usable], max_new_tokens=limits) if usable else [])
        return [
            self._row(sample, question(sample, wordings), *((None, prompt) if isinstance(prompt, str) else (next(texts), None)))
            for sample, prompt in zip(samples, prompts, strict=True)
        ]

    def _row(self, sample: Sample, asked: str, answer: str | None, bad: str | None) -> Row:
        gold = " | ".join(dict.fromkeys(golds(sample)))
        row: Row = {"id": sample["id"], "question": asked, "answer": answer or "", "gold": gold}
        if bad is not None:
            return {**row, "bad": bad}
        try:
            figures = self.score(answer or "", sample)
        except BadSample as error:
            return {**row, "bad": str(error)}
        if blank(answer or ""):
            return {**row, "task": task(sample), "correct": False, **dict.fromkeys(figures, 0.0), "failed": EMPTY}
        return {**row, "task": task(sample), "correct": figures["score"] == 1.0, **figures}

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return means over rows, the rule's figures (`score` first) and `score/TASK` by task, and counts: `samples`; if any, the others.

        Those are `bad_samples`, which are left out, and `empty_answers`, which score 0.
        """
        used = [row for row in rows if "bad" not in row]
        names = list(dict.fromkeys(name for row in used for name in row if isinstance(row[name], float)))
        figures = {name: _mean([row[name] for row in used if name in row]) for name in names}
        tasks: dict[str, list[float]] = defaultdict(list)
        for row in used:
            if row["task"] is not None:
                tasks[row["task"]].append(row["score"])
        figures |= {f"score/{name}": _mean(tasks[name]) for name in sorted(tasks)}
        counts = {"empty_answers": sum(row.get("failed") == EMPTY for row in used), "bad_samples": len(rows) - len(used)}
        return {**figures, "samples": float(len(used)), **{name: float(count) for name, count in counts.items() if count}}


def _prompt(inputs: Inputs, sample: Sample) -> Example | str:
    """Return the encoded prompt of a sample, or why it cannot be encoded."""
    try:
        with sample_errors:
            return inputs.prompt(sample)
    except BadSample as error:
        return str(error)


def _answer_limit(inputs: Inputs, sample: Sample) -> int:
    if not golds(sample):
        return _HIDDEN_TOKENS
    return max(len(inputs.tokenizer.encode(f" {gold}")) for gold in golds(sample)) + _SPARE_TOKENS


def golds(sample: Sample) -> list[str]:
    """Return the gold (right) answers: the field `answers`, else the sample's last assistant turn, else the field `answer`."""
    fields = sample["fields"]
    if "answers" in fields:
        return [str(answer) for answer in fields["answers"]]
    spoken = [message["content"].strip() for message in _messages(sample) if message["role"] == "assistant"]
    return spoken[-1:] or [str(fields.get("answer", ""))]


def _truths(sample: Sample) -> list[str]:
    """Return `golds`. Raises BadSample where there is none, or all are blank: whatever is answered would be wrong."""
    given = golds(sample)
    if not any(text.strip() for text in given):
        raise BadSample("no answer to compare with: neither `answers` nor `answer` nor a text of the assistant")
    return given


def question(sample: Sample, wordings: bool = True) -> str:
    """Return the question: the text of the last user turn, or "" if there is none.

    `wordings`: False takes the turn's `bare`, the label without a drawn wording around it, or its text where it has none.
    """
    return next((message["content"].strip() for message in reversed(_messages(sample, wordings)) if message["role"] == "user"), "")


def task(sample: Sample) -> str | None:
    """Return the group under which a sample's score is also reported: its field `task`, else `style` (such as vqa2), else None."""
    name = sample["fields"].get("task", sample["fields"].get("style"))
    return None if name is None else str(name)


def _messages(sample: Sample, wordings: bool = True) -> list[dict[str, str]]:
    return styles.conversations(sample, "", wordings=wordings)[0][0]


def _field(sample: Sample, name: str) -> Any:
    if name not in sample["fields"]:
        known = ", ".join(sample["fields"]) or "none"
        raise PlaitError(f"this bench compares with the field {name!r}; sample {sample['id']} has the fields {known}: choose another bench")
    return sample["fields"][name]


def accuracy(answer: str, sample: Sample) -> dict[str, float]:
    """Return {"score": 1.0 or 0.0}: drawn scenes and NLVR by a scorer of their own, others by equality with a gold answer.

    Case, outer punctuation and repeated spaces are ignored. Raises BadSample if the sample has no answer to compare with.
    """
    if can_score(sample["fields"]):
        return {"score": float(score(answer, sample["fields"]))}
    normalised = [" ".join(text.split()).strip(" .,;:!?\"'").casefold() for text in (answer, *_truths(sample))]
    return {"score": float(normalised[0] in normalised[1:])}


def counting(answer: str, sample: Sample) -> dict[str, float]:
    """Return `score`, 1 if the count in `answer` is right, else 0, and `within_one`, 1 if it is at most one off.

    The score is there again as `score/count_3` if the true count is 3. Raises PlaitError for a sample without the field `count`.
    """
    count = int(_field(sample, "count"))
    predicted = points.read_count(answer)
    exact, near = float(predicted == count), float(predicted is not None and abs(predicted - count) <= 1)
    return {"score": exact, "within_one": near, f"score/count_{count}": exact}


def pointing(answer: str, sample: Sample) -> dict[str, float]:
    """Return `score` (equal to `f1`), `precision`, `recall` and `f1` of the points in the answer, tags such as `<point x=.. y=..>`.

    The field `points` is a list of (x, y) in percent of width and height. Points are matched one to one; one hits where it lies in the mask
    of its match, without `masks` at most 5 percent from it (Euclidean), and in a drawn scene within the object's radius. Raises PlaitError
    for a sample that has neither the fields of a drawn scene nor `points`.
    """
    fields = sample["fields"]
    gold, hits = _scene_targets(fields) if {"truth", "objects", "size"} <= fields.keys() else _annotated_targets(sample)
    figures = points.pointing_score(points.read(answer), gold, hits)
    return {"score": figures["f1"], **figures}


def _scene_targets(fields: Mapping[str, Any]) -> tuple[list[points.Point], Callable[[int, points.Point], bool]]:
    """Return the targets of a drawn scene in percent, and whether a point lies within the radius of target i."""
    targets = [fields["objects"][i] for i in fields["truth"]]
    width, height = fields["size"]

    def hits(i: int, point: points.Point) -> bool:
        target = targets[i]
        return math.hypot(point[0] / 100 * width - target["x"], point[1] / 100 * height - target["y"]) <= float(target["radius"])

    return [points.percent(target["x"], target["y"], width, height) for target in targets], hits


def _annotated_targets(sample: Sample) -> tuple[list[points.Point], Callable[[int, points.Point], bool]]:
    """Return annotated points, and whether a point lies in the mask of target i, or near it where there are no masks."""
    gold, masks = [(float(x), float(y)) for x, y in _field(sample, "points")], sample["fields"].get("masks")

    def hits(i: int, point: points.Point) -> bool:
        return in_mask(masks[i], point) if masks else math.dist(point, gold[i]) <= _HIT_RADIUS

    return gold, hits


def caption(answer: str, sample: Sample) -> dict[str, float]:
    """Return ROUGE-L's `score`, `precision` and `recall` against the gold caption, of several that with the best score.

    Raises BadSample if the sample has no caption to compare with.
    """
    return max((metrics.rouge_l(answer, truth) for truth in _truths(sample)), key=lambda figures: figures["score"])


def in_mask(mask: Sequence[Sequence[Any]], point: points.Point) -> bool:
    """Return whether a point (x, y), in percent of the image, lies on a set pixel of a mask. A mask is a list of rows of pixels."""
    high, wide = len(mask), len(mask[0])
    return bool(mask[min(int(point[1] / 100 * high), high - 1)][min(int(point[0] / 100 * wide), wide - 1)])


def _multiple_choice(answer: str, sample: Sample, rule: Callable[[str, Sequence[str]], int | None]) -> dict[str, float]:
    return {"score": float(rule(answer, _field(sample, "options")) == int(_field(sample, "answer_idx")))}


def _published(sample: Sample) -> None:
    """Raise BadSample where the right answer is not published, as `answers` that are empty say."""
    if sample["fields"].get("answers") == []:
        raise BadSample("its answer is not published; the model's is in predictions.jsonl, to be handed in where they are scored")


def _mmmu(answer: str, sample: Sample) -> dict[str, float]:
    _published(sample)
    return (
        _multiple_choice(answer, sample, benchmark_rules.mmmu_choice)
        if sample["fields"].get("options")
        else {"score": benchmark_rules.mmmu_open(answer, _truths(sample))}
    )


def _mathvista(answer: str, sample: Sample) -> dict[str, float]:
    _published(sample)
    return {"score": benchmark_rules.mathvista(answer, sample["fields"])}


def _real_world_qa(answer: str, sample: Sample) -> dict[str, float]:
    answer = metrics.short_answer(answer)
    if sample["fields"].get("options"):
        return _multiple_choice(answer, sample, metrics.choose)
    return {"score": float(metrics.vqa_normalise(answer) in map(metrics.vqa_normalise, _truths(sample)))}


RULES: dict[str, Score] = {
    "accuracy": accuracy,
    "caption": caption,
    "vqa": lambda answer, sample: {"score": metrics.vqa_score(metrics.short_answer(answer), _truths(sample))},
    "a_okvqa": lambda answer, sample: {"score": metrics.a_okvqa_score(metrics.short_answer(answer), _truths(sample))},
    "exact_match": lambda answer, sample: {"score": metrics.exact_match(metrics.short_answer(answer), _truths(sample))},
    "anls": lambda answer, sample: {"score": metrics.anls(metrics.short_answer(answer), _truths(sample))},
    "relaxed_accuracy": lambda answer, sample: {"score": metrics.relaxed_accuracy(metrics.short_answer(answer), _truths(sample))},
    "multiple_choice": lambda answer, sample: _multiple_choice(metrics.short_answer(answer), sample, metrics.choose),
    "counting": counting,
    "pointing": pointing,
    "mmmu": _mmmu,
    "mathvista": _mathvista,
    "real_world_qa": _real_world_qa,
    "clock": lambda answer, sample: benchmark_rules.clock(answer, int(_field(sample, "hour")), int(_field(sample, "minute"))),
}
"""The scoring rule of each bench: a function from (answer, sample) to figures by name, `score` first, from 0 to 1."""

_TOKENS = {"caption": 448}  # as many as the published captioner is given
benches = {name: Scored(rule, _TOKENS.get(name)).bench() for name, rule in RULES.items()}
"""Benches by name, as in `plait eval --bench NAME`."""
ablations = {"image": PICTURES}
"""Inputs that benches can leave out, by name."""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
