"""PixMo as it is published (parquet with addresses; images downloaded apart): captions, questions, answers with points, counts.

Points of PixMo-Points and its explanations are percentages, those of PixMo-Count pixels. Sets without a published validation split hold
out one picture in a hundred, by the hash of its address.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.errors import BadSample
from plait.families.molmo import points
from plait.families.molmo.catalogue.rows import Ask, Asked, Opener, Place, Random, Row, Size, Spec, in_parquet

POINTS_EVAL = "pixmo_points_eval"
MARK = "<|POINT|>"  # where parsed_response has a point
_MOST_POINTS = 60  # of one answer: more would not fit into 2304 tokens beside an image

_POINT = (
    "Point to {}.",
    "Point at every {}.",
    "Where are the {}? Point to them.",
    "Show me the {}.",
    "Mark each {} with a point.",
    "Locate the {}.",
)
_COUNT = ("How many {} are there?", "Count the {}.", "What is the number of {}?", "How many {} can you see in the image?")
_CAPTION = ("Describe this image.", "Give a detailed caption of the image.", "What does this image show? Describe it in detail.")
_NO_POINTS = ("No pointing: ", "Do not point. ", "Answer without points: ", "Please don't use points. ")
_BRACKETS = re.compile(r"^\s*\[USER\]|\[ASSISTANT\]\s*$")


def one_of(choices: Sequence[str], random: Random) -> str:
    """One of them, drawn."""
    return choices[int(random.integers(len(choices)))]


def _pairs(found: Any) -> list[points.Point]:
    """Points however parquet holds them: a list of {x, y}, or {x: [...], y: [...]}."""
    if isinstance(found, Mapping):
        return list(zip(map(float, found["x"]), map(float, found["y"]), strict=True))
    return [(float(one["x"]), float(one["y"])) for one in found or []]


def _caption(row: Row, random: Random, size: Size) -> list[Asked]:
    return [Asked(one_of(_CAPTION, random), row["caption"].strip(), "long_caption")]


def _answer(row: Row, random: Random, size: Size) -> list[Asked]:
    return [Asked(row["question"].strip(), row["answer"].strip(), "user_qa", {"answers": [row["answer"].strip()]})]


def _synthetic(row: Row, random: Random, size: Size) -> list[Asked]:
    """Questions made from captions; "how many" says that no points are wanted, or counting would forget its points."""
    said = [_BRACKETS.sub("", text).strip() for text in row.get("messages") or [row["question"], row["answer"]]]
    pairs = list(zip(said[::2], said[1::2], strict=False))
    if not pairs:
        raise BadSample("a conversation without an answer")
    pairs = [(one_of(_NO_POINTS, random) + ask if ask.lower().startswith("how many") else ask, say) for ask, say in pairs]
    return [Asked(*pairs[0], "synthetic_qa", more=tuple(pairs[1:]))]


def _explained(row: Row, random: Random, size: Size) -> list[Asked]:
    pieces = row["parsed_response"].split(MARK)
    told = list(zip(row["points"], row["inline_text"], row["alt_text"], strict=True))
    if len(pieces) != len(told) + 1:
        raise BadSample(f"{len(pieces) - 1} {MARK} marks for {len(told)} lists of points")
    tags = [points.write(_pairs(where), inline, alt) for where, inline, alt in told]
    text = "".join(part for pair in zip(pieces, [*tags, ""], strict=True) for part in pair)
    return [Asked(row["question"].strip(), text.strip(), "point_qa")]


def _pointing(counting: bool) -> Ask:
    def ask(row: Row, random: Random, size: Size) -> list[Asked]:
        return [_asked(row, _pairs(row["points"]), counting, random)]

    return ask


def _asked(row: Row, where: list[points.Point], counting: bool, random: Random) -> Asked:
    label = str(row["label"]).strip()
    if len(where) > _MOST_POINTS:
        raise BadSample(f"{len(where)} points for {label!r}, more than {_MOST_POINTS}")
    gold: dict[str, Any] = {"points": where, "count": len(where), "label": label}
    if row.get("masks") is not None:
        gold["masks"] = row["masks"]
    write = points.write_count if counting else points.write
    asked = one_of(_COUNT if counting else _POINT, random).format(label)
    return Asked(asked, write(where, label), "point_count" if counting else "pointing", gold)


def _counted(counting: bool) -> Ask:
    """PixMo-Count: pixels; its validation and test sets have counts and no points."""

    def ask(row: Row, random: Random, size: Size) -> list[Asked]:
        pixels = _pairs(row.get("points"))
        if pixels:
            width, height = size()
            return [_asked(row, [points.percent(x, y, width, height) for x, y in pixels], counting, random)]
        question = one_of(_COUNT, random).format(str(row["label"]).strip())
        return [Asked(question, str(row["count"]), "point_count", {"count": int(row["count"])})]

    return ask


def _of_url(place: Place, row: Row) -> Path:
    return place.of_url(row["image_url"])


def _published(hub: str, *splits: str, **settings: Any) -> dict[str, Opener]:
    return {split: in_parquet(f"allenai/{hub}", split, **settings) for split in splits}


def _whole(hub: str, **settings: Any) -> dict[str, Opener]:
    """A set published as one split, which is cut into two by the pictures' addresses."""
    return dict.fromkeys(("train", "validation"), in_parquet(f"allenai/{hub}", "train", **settings))


def _spec(hub: str, splits: dict[str, Opener], ask: Ask, rule: str | None = None, *, held_out: bool = False) -> Spec:
    get = f"the parquet files of allenai/{hub} and its images (`plait data download`), named by the sha256 of their addresses"
    return Spec(hub, splits, ask, get, rule, _of_url, "image_url", held_out)


def _docs(kind: str) -> Spec:
    def ask(row: Row, random: Random, size: Size) -> list[Asked]:
        told = row["questions"]
        pairs = (
            zip(told["question"], told["answer"], strict=True)
            if isinstance(told, Mapping)
            else ((one["question"], one["answer"]) for one in told)
        )
        return [Asked(question, answer, f"pixmo_docs_{kind}", {"answers": [answer]}) for question, answer in pairs]

    splits = _published("pixmo-docs", "train", "validation", config=kind)
    return Spec("pixmo-docs", splits, ask, f"the parquet files of allenai/pixmo-docs ({kind})")


def _method(wanted: str) -> tuple[str, Callable[[Any], bool]]:
    return "collection_method", lambda value: value == wanted


_POINTS = {False: _whole("pixmo-points", keep=_method("pointing")), True: _whole("pixmo-points", keep=_method("counting"))}
PIXMO: dict[str, Spec] = {
    "pixmo_cap": _spec("pixmo-cap", _whole("pixmo-cap"), _caption, held_out=True),
    "pixmo_cap_qa": _spec("pixmo-cap-qa", _whole("pixmo-cap-qa"), _synthetic, held_out=True),
    "pixmo_ask_model_anything": _spec("pixmo-ask-model-anything", _whole("pixmo-ask-model-anything"), _answer, "anls", held_out=True),
    "pixmo_point_explanations": _spec(
        "pixmo-point-explanations", _whole("pixmo-point-explanations", keep=("parsed_response", None)), _explained, held_out=True
    ),
    "pixmo_points": _spec("pixmo-points", _POINTS[False], _pointing(False), "pointing", held_out=True),
    "pixmo_points_counting": _spec("pixmo-points", _POINTS[False], _pointing(True), "counting", held_out=True),
    "pixmo_points_high_freq": _spec("pixmo-points", _POINTS[True], _pointing(False), "pointing", held_out=True),
    "pixmo_points_high_freq_counting": _spec("pixmo-points", _POINTS[True], _pointing(True), "counting", held_out=True),
    "pixmo_count": _spec("pixmo-count", _published("pixmo-count", "train", "validation", "test"), _counted(False), "counting"),
    "pixmo_count_counting": _spec("pixmo-count", _published("pixmo-count", "train", "validation", "test"), _counted(True), "counting"),
    **{f"pixmo_docs_{kind}": _docs(kind) for kind in ("charts", "tables", "diagrams", "other")},
    POINTS_EVAL: _spec("pixmo-points-eval", _published("pixmo-points-eval", "test"), _pointing(False), "pointing"),
}
