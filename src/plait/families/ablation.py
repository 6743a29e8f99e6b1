"""Measure what an input is worth to a model: samples as they are (on), without it (off) and with another's (shuffled).

An input is one that a model can do without: pictures, the world encoder's frames, a caption. Families list theirs as `ablations` in their
evaluate.py. A bench is a metric with its way of answering; `ablated` makes one of it that answers each sample in all three ways.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from plait.data.text import IMAGE_MARK
from plait.engine.evaluation import FAILED, Bench, Row, is_count, usable
from plait.errors import BadSample, PlaitError, sample_errors

Sample = dict[str, Any]

WAYS = ("off", "shuffled")
"""The ways besides "on", with which they are compared."""


def _has_it(section: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Ablation:
    """An input that can be taken from a family's samples. The functions return copies and leave their arguments as they are."""

    content: Callable[[Sample], Any]
    """From a sample to this input of it, or None where it has none. A sample is exchanged with one that changes this."""
    off: Callable[[Sample], Sample]
    """From a sample to the sample without this input."""
    exchange: Callable[[Sample, Sample], Sample]
    """From a sample and another one to the first with this input of the second."""
    lacks: Callable[[Any], str | None] = _has_it
    """From the configuration's `model:` section to the reason why such a model has no such input, None where it has it."""
    seen: Callable[[Sample, Any], Any] | None = None
    """As `content`, where more of it than a model sees would be compared: what one with this `model:` section sees."""


@dataclass(frozen=True, kw_only=True)
class Ablated(Bench):
    """A bench that answers each sample with its input, without it, and with another sample's. `single`: the bench that it asks in each."""

    single: Bench


CALLS = {
    "content": "content(sample)",
    "off": "off(sample)",
    "exchange": "exchange(sample, other)",
    "lacks": "lacks(section)",
    "seen": "seen(sample, section)",
}
"""How the functions of an Ablation are called."""
Ablations = Mapping[str, Ablation]
"""A family's ablations by the name of the input, as `plait eval --ablate NAME` takes it."""


def _without_pictures(sample: Sample) -> Sample:
    """Return a sample without images, frames and predicted futures, and without the marks in its text that say where they stand."""
    without = {name: value for name, value in sample.items() if name not in ("frames", "rollout")} | {
        "images": [],
        "messages": _unmarked(sample["messages"]),
    }
    annotations = [{**one, "messages": _unmarked(one["messages"])} for one in sample.get("annotations", ())]
    return without | ({"annotations": annotations} if annotations else {})


def _unmarked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**message, "content": message["content"].replace(IMAGE_MARK, "").strip()} for message in messages]


def _with_pictures_of(sample: Sample, other: Sample) -> Sample:
    """Return a sample with as many images as it has, the other's (again from its first, if it has fewer), and its frames or future."""
    images = [other["images"][number % len(other["images"])] for number in range(len(sample["images"]))]
    return {**sample, "images": images} | {name: other[name] for name in ("frames", "rollout") if sample.get(name) and other.get(name)}


PICTURES = Ablation(lambda sample: tuple(sample["images"]) or None, _without_pictures, _with_pictures_of)
"""All pictures of a sample."""


def ablated(bench: Bench, name: str, ablation: Ablation) -> Ablated:
    """Return a bench that answers each sample as it is (on), without its input `name` (off), and with another sample's (shuffled).

    `ablation`: how the input is taken or exchanged. Its rows are those of `bench`, of the samples as they are; where a sample has the
    input, `ways` holds {"off": row, "shuffled": row}. A sample is `bad` if no other has a different such input. Figures are those of
    `bench`, each again as FIGURE/NAME_off and FIGURE/NAME_shuffled, also counts of failed answers, and `samples/with_NAME` if some samples
    lack the input. Its
    `summarise` raises PlaitError where all lack it.
    """

    def predict(model: Any, samples: Sequence[Sample], inputs: Any, *, batch: int, moment: str) -> list[Row]:
        rows = bench.predict(model, samples, inputs, batch=batch, moment=moment)
        contents = [ablation.content(sample) for sample in samples]
        others = partners(samples, contents, ablation, [position for position, row in enumerate(rows) if "bad" not in row])
        having = [(position, other) for position, other in enumerate(others) if other is not None and "bad" not in rows[position]]
        shown = {
            "off": [ablation.off(samples[position]) for position, _ in having],
            "shuffled": [ablation.exchange(samples[position], samples[other]) for position, other in having],
        }
        of_ways = {  # what a bench draws is kept by the name of the moment: each way has its own
            way: bench.predict(model, shown[way], inputs, batch=batch, moment=f"{moment}-{name}-{way}") for way in WAYS if having
        }
        joined = {
            position: _joined(rows[position], {way: of_ways[way][number] for way in WAYS}, name)
            for number, (position, _) in enumerate(having)
        }
        for position, content in enumerate(contents):
            if content is not None and others[position] is None and "bad" not in rows[position]:
                joined[position] = {"id": samples[position]["id"], "bad": f"no other {name} among those beside it"}
        return [joined.get(position, row) for position, row in enumerate(rows)]

    def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        figures = bench.summarise(rows)
        used = usable([dict(row) for row in rows])
        having = sum("ways" in row for row in used)
        if used and not having:
            raise PlaitError(f"none of {len(used)} samples has the input {name!r}: there is nothing to leave out")
        for way in WAYS if used else ():
            of_this = bench.summarise(_shown(used, way))
            told = _results(of_this, used) | {figure: of_this[figure] for figure in FAILED if figure in of_this}
            figures |= {f"{figure}/{name}_{way}": value for figure, value in told.items()}
        return figures | ({f"samples/with_{name}": float(having)} if having < len(used) else {})

    def finish(rows: Sequence[Row]) -> list[Row]:
        ended = bench.finish(rows)
        for way in WAYS:
            of_this = bench.finish([row["ways"][way] if "ways" in row else row for row in ended])
            pairs = zip(ended, of_this, strict=True)
            ended = [row | {"ways": row["ways"] | {way: one}} if "ways" in row else row for row, one in pairs]
        return ended

    own = ("predict", "summarise", "finish", "independent")  # a row depends on the sample whose input is exchanged for its own
    others = {field.name: vars(bench)[field.name] for field in fields(Bench) if field.name not in own}
    return Ablated(predict=predict, summarise=summarise, finish=finish, single=bench, **others)


def of_way(bench: Bench, rows: Sequence[Mapping[str, Any]], way: str) -> dict[str, float]:
    """Return the results of `bench` for rows of an ablated bench in one way: "on", "off" or "shuffled".

    Left out are counts, such as `samples`, and means of whole numbers in the rows, such as `world_tokens`: they do not judge answers.
    """
    return _results(bench.summarise(_shown(rows, way)), rows)


def _results(figures: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the figures that judge answers."""
    counted = {name for row in rows for name, value in row.items() if type(value) is int}
    return {figure: value for figure, value in figures.items() if not is_count(figure) and figure not in counted}


def _shown(rows: Sequence[Mapping[str, Any]], way: str) -> list[Mapping[str, Any]]:
    """Return the rows of one way, and of samples without the input those of the samples as they are."""
    return [row["ways"][way] if way != "on" and "ways" in row else row for row in rows]


def partners(
    samples: Sequence[Sample], contents: Sequence[Any], ablation: Ablation, among: Collection[int] | None = None
) -> list[int | None]:
    """Return for each sample the position of another whose input changes it: the first from half the list onwards.

    `contents`: of each sample its `content`, None for one without. `among`: positions of samples whose input can be used; None: all. None
    where there is no such other, or the sample itself has none.
    """
    offered = set(range(len(samples)) if among is None else among)

    def changes(own: int, other: int) -> bool:
        if other not in offered or contents[other] is None or contents[other] == contents[own]:
            return False
        with contextlib.suppress(BadSample), sample_errors:
            return bool(ablation.content(ablation.exchange(samples[own], samples[other])) != contents[own])
        return True  # what fails there is told where the sample is shown so

    def partner(own: int) -> int | None:
        count = len(samples)
        places = ((own + count // 2 + step) % count for step in range(count))
        return next((place for place in places if changes(own, place)), None)

    return [None if content is None else partner(own) for own, content in enumerate(contents)]


def _joined(row: Row, ways: Mapping[str, Row], name: str) -> Row:
    """Return the row of a sample with those of its other ways. One way that cannot be used makes the sample unusable: all are compared."""
    if "bad" in row:
        return row
    bad = next((f"{name} {way}: {other['bad']}" for way, other in ways.items() if "bad" in other), None)
    return {"id": row["id"], "bad": bad} if bad else row | {"ways": dict(ways)}
