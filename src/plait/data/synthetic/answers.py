"""Score free-form answers to questions about generated pictures: right or wrong, by rules, given the truth in a sample's fields.

Case, punctuation, articles and filler words do not matter; digits and number words are equal. An answer that names two colours, two counts
or two sides where one is asked for is wrong, whichever of them is right. No model is involved.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from plait.data.synthetic.lexicon import COLOURS, NUMBERS, SHAPES, plural

Fields = Mapping[str, Any]
"""The `fields` of a sample of `scenes` or `nlvr`: `task`, `truth` and others, by name."""
Object = Mapping[str, Any]
"""An entry of `fields["objects"]`: `shape`, `colour`, `size`, centre `x`, `y` and `radius` in pixels."""

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


def score(answer: str, fields: Fields) -> bool:
    """Return whether `answer` is right for a sample of the sources `scenes` or `nlvr`, given its `fields` (`task`, `truth`, `objects`).

    `task` decides by which rule it is scored; KeyError for a task without one (ask `can_score` first).
    """
    return _SCORERS[fields["task"]](answer, fields)


def can_score(fields: Fields) -> bool:
    """Return whether `score` can be called with these `fields`: they have a known `task` and what its scoring needs."""
    task = fields.get("task")
    return "truth" in fields and isinstance(task, str) and task in _SCORERS and ("objects" in fields or _SCORERS[task] is _verdict)


def points(answer: str) -> list[tuple[float, float]]:
    """Return the points (x, y) of all <point> and <points> tags in order, in percent of width and height. An x without y is dropped."""
    parsed: list[tuple[float, float]] = []
    for tag in re.findall(r"<points?\b([^>]*)", answer):
        values = _POINT.findall(re.sub(r"\balt\s*=.*", "", tag))
        for (axis, value), (next_axis, next_value) in zip(values[::2], values[1::2], strict=False):
            if (axis, next_axis) == ("x", "y"):
                parsed.append((float(value), float(next_value)))
    return parsed


def _words(answer: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+", answer.lower().replace("n't", " not"))


def _only(values: list[Any], truth: Any) -> bool:
    """Return whether the answer contains exactly one distinct value, the true one."""
    return set(values) == {truth}


def _count(answer: str, fields: Fields) -> bool:
    counts = [int(word) if word.isdigit() else _NUMBER_OF[word] for word in _words(answer) if word.isdigit() or word in _NUMBER_OF]
    return _only(counts, fields["truth"])


def _colour(answer: str, fields: Fields) -> bool:
    return _only([word for word in _words(answer) if word in COLOURS], fields["truth"])


def _shape(answer: str, fields: Fields) -> bool:
    return _only([_SHAPE_OF[word] for word in _words(answer) if word in _SHAPE_OF], fields["truth"])


def _relation(answer: str, fields: Fields) -> bool:
    return _only([_SIDE_OF[word] for word in _words(answer) if word in _SIDE_OF], fields["truth"])


def _exists(answer: str, fields: Fields) -> bool:
    words = _words(answer)
    verdicts = {word for word in words if word in ("yes", "no")}
    if len(verdicts) != 1:
        negated = bool({"no", "not", "none"} & set(words)) and "yes" not in verdicts
        verdicts = {"no"} if negated else {"yes"} if words[:1] == ["there"] else set()
    return verdicts == {fields["truth"]}


def _verdict(answer: str, fields: Fields) -> bool:
    """Score true or false; other words do not matter, because a number may come first as the reason. "Not true" is false."""
    words = _words(answer)
    said = [(word == "true") != ("not" in words[max(i - 2, 0) : i]) for i, word in enumerate(words) if word in ("true", "false")]
    return _only(said, fields["truth"] == "true")


def _future(answer: str, fields: Fields) -> bool:
    truth: str = fields["truth"]
    return {_HALF_OF[word] for word in _words(answer) if word in _HALF_OF} == set(truth.split())


def _direction(answer: str, fields: Fields) -> bool:
    """Score which way an object moves: exactly one of left, right, up and down, the true one."""
    names = {"left": "left", "right": "right", "up": "up", "upwards": "up", "down": "down", "downwards": "down"}
    return _only([names[word] for word in _words(answer) if word in names], fields["truth"])


def _touch(answer: str, fields: Fields) -> bool:
    """Score yes or no; without either word, whether the answer says that they touch or meet, or denies it."""
    words = _words(answer)
    verdicts = {word for word in words if word in ("yes", "no")}
    if not verdicts and {"touch", "meet"} & set(words):
        verdicts = {"no" if {"not", "never"} & set(words) else "yes"}
    return verdicts == {fields["truth"]}


def _faster(answer: str, fields: Fields) -> bool:
    """Score the name of the faster of two objects, `truth`: its words stand together, and those of the slower one do not."""
    said = f" {' '.join(_words(answer))} "
    faster, slower = (f" {name.removesuffix(' shape')} " in said for name in fields["truth"])
    return faster and not slower


def _points(answer: str, fields: Fields) -> bool:
    """Score points: as many as objects asked for, with a one-to-one assignment in which each lies within its object's radius."""
    given, targets = points(answer), list(fields["truth"])
    hits = [[i for i in targets if _inside(point, fields["objects"][i], fields["size"])] for point in given]
    return len(given) == len(targets) and _has_perfect_matching(hits)


def _inside(percent: tuple[float, float], obj: Object, size: Sequence[int]) -> bool:
    dx, dy = percent[0] / 100 * size[0] - float(obj["x"]), percent[1] / 100 * size[1] - float(obj["y"])
    return dx * dx + dy * dy <= float(obj["radius"]) ** 2


def _has_perfect_matching(choices: list[list[int]]) -> bool:
    """Return whether every row can be given a choice that no other row has (by augmenting paths)."""
    owner: dict[int, int] = {}

    def assign(row: int, tried: set[int]) -> bool:
        for choice in choices[row]:
            if choice not in tried:
                tried.add(choice)
                if choice not in owner or assign(owner[choice], tried):
                    owner[choice] = row
                    return True
        return False

    return all(assign(row, set()) for row in range(len(choices)))


# Captions


def _mentions(text: str) -> list[tuple[int, str | None, str | None, str | None]]:
    """Return (number, size, colour, shape) of each noun in a caption, in order; "shape" and "object" have shape None."""
    mentions: list[tuple[int, str | None, str | None, str | None]] = []
    number, size, colour = 1, None, None
    for word in _words(text):
        if word in _NUMBER_OF or word.isdigit():
            number = int(word) if word.isdigit() else _NUMBER_OF[word]
        elif word in _SIZES:
            size = word
        elif word in COLOURS:
            colour = word
        elif word in _SHAPE_OF or word in ("shape", "shapes", "object", "objects"):
            mentions.append((number, size, colour, _SHAPE_OF.get(word)))
            number, size, colour = 1, None, None
    return mentions


def _caption(answer: str, fields: Fields) -> bool:
    """Score a caption: it names exactly the scene's objects by colour and shape, and its sizes, relations and position are right."""
    objects = fields["objects"]
    named, sized = Counter[Any](), Counter[Any]()
    for number, size, colour, shape in _mentions(answer):
        named[colour, shape] += number
        if size:
            sized[size, colour, shape] += number
    truth = Counter((obj["colour"], obj["shape"]) for obj in objects)
    if named != truth or sized - Counter((obj["size"], obj["colour"], obj["shape"]) for obj in objects):
        return False
    return _relations_hold(answer, objects) and _position_holds(answer, fields)


def _relations_hold(text: str, objects: Sequence[Object]) -> bool:
    """Return whether for each "A (direction) B" in the caption some A lies in that direction from some B."""
    parts = re.split(rf"\b({'|'.join(sorted(_SHAPE_OF, key=len, reverse=True))})\b", text.lower())
    nouns = [(parts[k], parts[k + 1]) for k in range(0, len(parts) - 1, 2)]
    for (before, shape), (between, other) in pairwise(nouns):
        sides = [_SIDE_OF[word] for word in _words(between) if word in _SIDE_OF]
        if sides and not re.search(r"\b(and|with)\b", between):
            first = _matching(f"{before} {shape}", objects)
            second = _matching(f"{between} {other}", objects)
            if not any(_LIES[sides[0]](a, b) for a in first for b in second):
                return False
    return True


_LIES: dict[str, Callable[[Object, Object], bool]] = {
    "left": lambda a, b: bool(a["x"] < b["x"]),
    "right": lambda a, b: bool(a["x"] > b["x"]),
    "above": lambda a, b: bool(a["y"] < b["y"]),
    "below": lambda a, b: bool(a["y"] > b["y"]),
}


def _matching(text: str, objects: Sequence[Object]) -> list[Object]:
    """Return the objects that fit the last noun of the text."""
    _, size, colour, shape = _mentions(text)[-1]
    return [o for o in objects if size in (None, o["size"]) and colour in (None, o["colour"]) and shape in (None, o["shape"])]


def _position_holds(text: str, fields: Fields) -> bool:
    """Return whether "at the top left" or "in the middle" is right for a single object; True for several."""
    if len(fields["objects"]) != 1:
        return True
    obj, (width, height) = fields["objects"][0], fields["size"]
    x, y = obj["x"] / width - 0.5, obj["y"] / height - 0.5
    wrong = {
        "left": x > 0,
        "right": x < 0,
        "top": y > 0,
        "bottom": y < 0,
        "middle": max(abs(x), abs(y)) > 0.15,
        "center": max(abs(x), abs(y)) > 0.15,
    }
    return not any(wrong[word] for word in set(_words(text)) & wrong.keys())


_SCORERS: dict[str, Callable[[str, Fields], bool]] = {
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
    "where": _future,
    "direction": _direction,
    "touch": _touch,
    "faster": _faster,
}
