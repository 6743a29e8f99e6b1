"""Judges a free-form answer to a question about a scene, exactly: right or wrong, from the truth in the sample's fields.

Case, punctuation, articles and filler do not matter; digits and number words are equal. An answer that names two colours, two counts or two
sides where one is asked for is wrong, whichever of them is right. No model judges anything here.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from plait.data.synthetic.lexicon import COLOURS, NUMBERS, SHAPES, plural

Fields = dict[str, Any]

_NUMBER_OF = {word: n for n, word in enumerate(NUMBERS)} | {"no": 0, "none": 0, "nothing": 0, "single": 1}
_SHAPE_OF = {form: shape for shape in SHAPES for form in (shape, plural(shape))}
_SIDE_OF = {
    **dict.fromkeys(("left", "leftmost"), "left"),
    **dict.fromkeys(("right", "rightmost"), "right"),
    **dict.fromkeys(("above", "over", "higher"), "above"),
    **dict.fromkeys(("below", "under", "beneath", "underneath", "lower"), "below"),
}
_HALF_OF = {"left": "left", "right": "right", "top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom"}
_SIZES = ("small", "medium", "large")
_POINT = re.compile(r"""\b([xy])\d*\s*=\s*["']?\s*(-?\d+(?:\.\d+)?)""")


def judge(answer: str, fields: Fields) -> bool:
    """Whether `answer` is right for the question in `fields` (of a sample of Scenes or Nlvr)."""
    return _JUDGES[fields["task"]](answer, fields)


def can_judge(fields: Mapping[str, Any]) -> bool:
    """Whether a sample's fields say its task and the truth of it, as those of pictures made or questioned here do."""
    task = fields.get("task")
    return "truth" in fields and isinstance(task, str) and task in _JUDGES and ("objects" in fields or _JUDGES[task] is _verdict)


def points(answer: str) -> list[tuple[float, float]]:
    """The (x, y) percentages of every <point> and <points> tag, in the order written; an x without its y is dropped."""
    found: list[tuple[float, float]] = []
    for tag in re.findall(r"<points?\b([^>]*)", answer):
        values = _POINT.findall(re.sub(r"\balt\s*=.*", "", tag))
        for (axis, value), (next_axis, next_value) in zip(values[::2], values[1::2], strict=False):
            if (axis, next_axis) == ("x", "y"):
                found.append((float(value), float(next_value)))
    return found


def _words(answer: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+", answer.lower().replace("n't", " not"))


def _only(found: list[Any], truth: Any) -> bool:
    """Exactly one distinct thing was said, and it is the truth."""
    return set(found) == {truth}


def _count(answer: str, fields: Fields) -> bool:
    said = [int(word) if word.isdigit() else _NUMBER_OF[word] for word in _words(answer) if word.isdigit() or word in _NUMBER_OF]
    return _only(said, fields["truth"])


def _colour(answer: str, fields: Fields) -> bool:
    return _only([word for word in _words(answer) if word in COLOURS], fields["truth"])


def _shape(answer: str, fields: Fields) -> bool:
    return _only([_SHAPE_OF[word] for word in _words(answer) if word in _SHAPE_OF], fields["truth"])


def _relation(answer: str, fields: Fields) -> bool:
    return _only([_SIDE_OF[word] for word in _words(answer) if word in _SIDE_OF], fields["truth"])


def _exists(answer: str, fields: Fields) -> bool:
    words = _words(answer)
    said = {word for word in words if word in ("yes", "no")}
    if len(said) != 1:
        said = {"no"} if {"no", "not", "none"} & set(words) and "yes" not in said else {"yes"} if words[:1] == ["there"] else set()
    return said == {fields["truth"]}


def _verdict(answer: str, fields: Fields) -> bool:
    """True or false, whatever else is said: a number may come first as the reason."""
    return _only([word for word in _words(answer) if word in ("true", "false")], fields["truth"])


def _future(answer: str, fields: Fields) -> bool:
    return {_HALF_OF[word] for word in _words(answer) if word in _HALF_OF} == set(fields["truth"].split())


def _points(answer: str, fields: Fields) -> bool:
    """As many points as things asked for, and a one-to-one assignment in which each point lies inside its thing's radius."""
    said, wanted = points(answer), list(fields["truth"])
    return len(said) == len(wanted) and _assign(
        [[i for i in wanted if _inside(point, fields["objects"][i], fields["size"])] for point in said]
    )


def _inside(percent: tuple[float, float], thing: dict[str, Any], size: list[int]) -> bool:
    dx, dy = percent[0] / 100 * size[0] - thing["x"], percent[1] / 100 * size[1] - thing["y"]
    return dx * dx + dy * dy <= thing["radius"] ** 2


def _assign(choices: list[list[int]]) -> bool:
    """Whether every row can get a choice of its own (augmenting paths)."""
    owner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for choice in choices[row]:
            if choice not in tried:
                tried.add(choice)
                if choice not in owner or place(owner[choice], tried):
                    owner[choice] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(choices)))


# Captions


def mentions(text: str) -> list[tuple[int, str | None, str | None, str | None]]:
    """(how many, size, colour, shape) of each thing a caption names, in its order; "shape" and "object" count as shape None."""
    found: list[tuple[int, str | None, str | None, str | None]] = []
    number, size, colour = 1, None, None
    for word in _words(text):
        if word in _NUMBER_OF or word.isdigit():
            number = int(word) if word.isdigit() else _NUMBER_OF[word]
        elif word in _SIZES:
            size = word
        elif word in COLOURS:
            colour = word
        elif word in _SHAPE_OF or word in ("shape", "shapes", "object", "objects"):
            found.append((number, size, colour, _SHAPE_OF.get(word)))
            number, size, colour = 1, None, None
    return found


def _caption(answer: str, fields: Fields) -> bool:
    """The caption names exactly the scene's things by colour and shape, errs in no size, and every relation or place it states holds."""
    objects = fields["objects"]
    said, sized = Counter[Any](), Counter[Any]()
    for number, size, colour, shape in mentions(answer):
        said[colour, shape] += number
        if size:
            sized[size, colour, shape] += number
    truth = Counter((thing["colour"], thing["shape"]) for thing in objects)
    if said != truth or sized - Counter((thing["size"], thing["colour"], thing["shape"]) for thing in objects):
        return False
    return _relations_hold(answer, objects) and _place_holds(answer, fields)


def _relations_hold(text: str, objects: list[dict[str, Any]]) -> bool:
    """For each "A (direction) B" in the caption, some A lies that way from some B."""
    pieces = re.split(rf"\b({'|'.join(sorted(_SHAPE_OF, key=len, reverse=True))})\b", text.lower())
    heads = [(pieces[k], pieces[k + 1]) for k in range(0, len(pieces) - 1, 2)]
    for (before, shape), (between, other) in pairwise(heads):
        sides = [_SIDE_OF[word] for word in _words(between) if word in _SIDE_OF]
        if sides and not re.search(r"\b(and|with)\b", between):
            first = _matching(f"{before} {shape}", objects)
            second = _matching(f"{between} {other}", objects)
            if not any(_SEEN[sides[0]](a, b) for a in first for b in second):
                return False
    return True


_SEEN: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
    "left": lambda a, b: a["x"] < b["x"],
    "right": lambda a, b: a["x"] > b["x"],
    "above": lambda a, b: a["y"] < b["y"],
    "below": lambda a, b: a["y"] > b["y"],
}


def _matching(text: str, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    _, size, colour, shape = mentions(text)[-1]
    return [o for o in objects if size in (None, o["size"]) and colour in (None, o["colour"]) and shape in (None, o["shape"])]


def _place_holds(text: str, fields: Fields) -> bool:
    """A lone thing's "at the top left" or "in the middle"."""
    if len(fields["objects"]) != 1:
        return True
    thing, (width, height) = fields["objects"][0], fields["size"]
    x, y = thing["x"] / width - 0.5, thing["y"] / height - 0.5
    said = set(_words(text))
    wrong = {
        "left": x > 0,
        "right": x < 0,
        "top": y > 0,
        "bottom": y < 0,
        "middle": max(abs(x), abs(y)) > 0.15,
        "center": max(abs(x), abs(y)) > 0.15,
    }
    return not any(wrong[word] for word in said & wrong.keys())


_JUDGES: dict[str, Callable[[str, Fields], bool]] = {
    "caption": _caption,
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "relation": _relation,
    "point": _points,
    "points": _points,
    "exists": _exists,
    "truth": _verdict,
    "statement": _verdict,
    "future": _future,
}
