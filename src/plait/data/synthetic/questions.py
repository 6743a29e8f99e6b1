"""Make captions of scenes (generated pictures of coloured shapes), and questions about them with exactly one right answer.

Questions are unambiguous: an object is named by words that fit it alone, and a side is asked for only where the distance exceeds a margin.
Where no such question of a task exists, `ask` returns None and the caller draws another scene. The answer is drawn before the question, so
that left and right, yes and no, and the counts are equally frequent. Not here: pictures (drawing.py), scoring of answers (answers.py).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from plait.data.synthetic.lexicon import NUMBERS, article, plural
from plait.data.synthetic.physics import Scene, SceneObject

PROMPTS: dict[str, tuple[str, ...]] = {
    "caption": ("Describe the picture.", "What is in the picture?", "Write a caption for this image.", "What does the image show?"),
    "count": ("How many {many} are there?", "How many {many} are in the picture?", "Count the {many}.", "What is the number of {many}?"),
    "colour": ("What colour is the {a}?", "Which colour does the {a} have?", "Name the colour of the {a}.", "The {a} has which colour?"),
    "shape": ("What shape is the {a}?", "Which shape does the {a} have?", "What is the {a}?", "Name the {a}."),
    "relation across": (
        "Is the {a} to the left or to the right of the {b}?",
        "Is the {a} to the right or to the left of the {b}?",
        "Is the {a} left or right of the {b}?",
        "On which side of the {b} is the {a}, left or right?",
    ),
    "relation down": (
        "Is the {a} above or below the {b}?",
        "Is the {a} below or above the {b}?",
        "Where is the {a}, above or below the {b}?",
    ),
    "relation any": ("Where is the {a}, seen from the {b}?", "In which direction from the {b} is the {a}: left, right, above or below?"),
    "point": ("Point at the {a}.", "Point to the {a}.", "Where is the {a}? Point at it.", "Show me the {a}."),
    "points": ("Point at all {many}.", "Point to every {one}.", "Show me all {many}.", "Where are the {many}? Point at each."),
    "exists": (
        "Is there {an} {one}?",
        "Is there {an} {one} in the picture?",
        "Does the picture show {an} {one}?",
        "Can you see {an} {one}?",
    ),
    "future across": (
        "Will the {a} be on the left or on the right {when}?",
        "Will the {a} be on the right or on the left {when}?",
        "In which half of the picture will the {a} be {when}, the left or the right?",
    ),
    "future down": (
        "Will the {a} be at the top or at the bottom {when}?",
        "Will the {a} be at the bottom or at the top {when}?",
        "In which half of the picture will the {a} be {when}, the top or the bottom?",
    ),
    "future quarter": ("Where will the {a} be {when}?", "In which quarter of the picture will the {a} be {when}?"),
}
WHEN = ("in {k} frames", "{k} frames after the last one")
"""When a question about the future asks: after a still picture, after a clip."""
OPENERS = ("", "a picture of ", "an image of ", "the picture shows ", "we see ", "there {is} ")
"""What captions begin with."""
TASKS = tuple(dict.fromkeys(kind.split()[0] for kind in PROMPTS))
"""Kinds of question, such as "count"; PROMPTS has the wordings of each and of its variants."""

T = TypeVar("T")


class Question(NamedTuple):
    """A question (`text`), the answer to train on, and the truth that answers are scored by.

    The truth is a word, a number, object indices, or None for a caption.
    """

    text: str
    answer: str
    truth: Any


class Group(NamedTuple):
    """The objects of a scene of this colour and this shape; None means any."""

    colour: str | None
    shape: str | None

    def holds(self, obj: SceneObject) -> bool:
        """Return whether the object belongs to the group."""
        return self.colour in (None, obj.colour) and self.shape in (None, obj.shape)


@dataclass(frozen=True)
class Speech:
    """Settings of texts: words in use, `excluded` (colour, shape) pairs that are never named, whether answers are sentences or words.

    `say_sizes`: name sizes too. `horizon`: fewest and most frames that a question about the future looks ahead. `shown`: frames that the
    model sees, 0 for a still picture.
    """

    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    say_sizes: bool
    excluded: frozenset[tuple[str, str]]
    sentences: bool
    horizon: tuple[int, int]
    shown: int


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Return one of the options at random, each with the same probability."""
    return options[int(rng.integers(len(options)))]


def ask(task: str, scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question | None:
    """Return a random question of a task such as "count" about a scene, or None if the scene allows no unambiguous one.

    `speech`: the words in use and the form of answers. `focus`: index of the object that the question is about where the scene allows one,
    else of another; None: any. Raises KeyError for an unknown task.
    """
    return _ASKERS[task](scene, speech, rng, focus)


def caption(scene: Scene, speech: Speech, rng: np.random.Generator) -> str:
    """Return a random caption, in the words of `speech`, that names every object once, with at most one relation or position."""
    objects = list(scene.objects)
    opener = pick(rng, OPENERS)
    pairs = [(a, b, word) for a in objects for b in objects if (word := facing(a, b)) and _full(a, speech) != _full(b, speech)]
    if len(objects) == 1 and rng.random() < 0.6 and (position := _position(objects[0], scene)):
        body, several = f"{article(_full(objects[0], speech))} {position}", False
    elif pairs and rng.random() < 0.7:
        first, second, word = pick(rng, pairs)
        body = f"{article(_full(first, speech))} {DIRECTIONS[word]} {article(_full(second, speech))}"
        rest = [obj for obj in objects if obj is not first and obj is not second]
        body, several = body + (f", with {_listing(rest, speech)[0]}" if rest else ""), False
    else:
        order = [objects[i] for i in rng.permutation(len(objects))]
        body, several = _listing(order, speech)
    return opener.format(**{"is": "are" if several else "is"}) + body


def across(a: SceneObject, b: SceneObject) -> str | None:
    """Return whether a is to the "left" or "right" of b. None if their x differ by less than half the sum of their radii."""
    return None if abs(a.x - b.x) < (a.radius + b.radius) / 2 else ("left" if a.x < b.x else "right")


def down(a: SceneObject, b: SceneObject) -> str | None:
    """Return whether a is "above" or "below" b; None if their y differ by less than half the sum of their radii."""
    return None if abs(a.y - b.y) < (a.radius + b.radius) / 2 else ("above" if a.y < b.y else "below")


def facing(a: SceneObject, b: SceneObject) -> str | None:
    """Return where a is from b: "left", "right", "above" or "below". None unless one axis has over 1.7 times the distance of the other."""
    dx, dy = abs(a.x - b.x), abs(a.y - b.y)
    return across(a, b) if dx > 1.7 * dy else down(a, b) if dy > 1.7 * dx else None


def halves(x: float, y: float, radius: float, width: int, height: int) -> tuple[str | None, str | None]:
    """Return the halves of a picture that the centre (x, y) of an object is in, such as ("left", "top").

    Each is None within a margin of the middle line: 8 % of the side, or half the object's `radius` if that is more.
    """
    return (
        None if abs(x - width / 2) < max(0.08 * width, radius / 2) else ("left" if x < width / 2 else "right"),
        None if abs(y - height / 2) < max(0.08 * height, radius / 2) else ("top" if y < height / 2 else "bottom"),
    )


def point_tag(points: Sequence[tuple[float, float]], alt: str) -> str:
    """Return the answer `<point x="" y="" alt="">` or, for several points, `<points x1="" y1="" ...>`; `alt` names what they point to.

    `points`: (x, y) in percent of width and height; they are written with one decimal, sorted by x, then y.
    """
    points = sorted(points)
    if len(points) == 1:
        return f'<point x="{points[0][0]:.1f}" y="{points[0][1]:.1f}" alt="{alt}">{alt}</point>'
    body = " ".join(f'x{i}="{x:.1f}" y{i}="{y:.1f}"' for i, (x, y) in enumerate(points, 1))
    return f'<points {body} alt="{alt}">{alt}</points>'


# Names of objects


DIRECTIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
"""The words that relate one object to another, by direction."""
_TRAITS = (("shape",), ("colour",), ("colour", "shape"), ("size", "shape"), ("size", "colour"), ("size", "colour", "shape"))


def _noun(group: Group, several: bool) -> str:
    noun = group.shape or "shape"
    return f"{group.colour + ' ' if group.colour else ''}{plural(noun) if several else noun}"


def _full(obj: SceneObject, speech: Speech) -> str:
    return f"{obj.size + ' ' if speech.say_sizes else ''}{obj.colour} {obj.shape}"


def _listing(objects: Iterable[SceneObject], speech: Speech) -> tuple[str, bool]:
    """List objects ("two small red circles, a ring and a star") and return whether the first item is plural."""
    counts = Counter(_full(obj, speech) for obj in objects)
    items = [
        article(name) if n == 1 else f"{NUMBERS[n]} {' '.join(name.split()[:-1])} {plural(name.split()[-1])}" for name, n in counts.items()
    ]
    text = items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
    return text, next(iter(counts.values())) > 1


def _position(obj: SceneObject, scene: Scene) -> str | None:
    side, level = halves(obj.x, obj.y, obj.radius, scene.width, scene.height)
    if side and level:
        return f"at the {level} {side}"
    central = abs(obj.x / scene.width - 0.5) < 0.06 and abs(obj.y / scene.height - 0.5) < 0.06
    return "in the middle" if central else None


def unique_names(obj: SceneObject, scene: Scene, speech: Speech, hide: str = "") -> list[str]:
    """Return the noun phrases that fit this object and no other of the scene, of the words in use, `speech`.

    `hide`: "colour", "shape" or "size", which no phrase then names; "": each may be named.
    """
    names = []
    for traits in _TRAITS:
        if hide in traits or ("size" in traits and not speech.say_sizes):
            continue
        if sum(all(getattr(obj, t) == getattr(other, t) for t in traits) for other in scene.objects) == 1:
            names.append(" ".join(getattr(obj, t) for t in traits) + ("" if "shape" in traits else " shape"))
    return names


def _groups(scene: Scene, speech: Speech) -> dict[str, dict[int, list[Group]]]:
    """Return the groups by kind and by their number of objects in the scene.

    Pairs of which the scene has neither the colour nor the shape are left out: their count would be too easy.
    """
    colours, shapes = Counter(obj.colour for obj in scene.objects), Counter(obj.shape for obj in scene.objects)
    both = Counter((obj.colour, obj.shape) for obj in scene.objects)
    pairs = (
        ((colour, shape), both[colour, shape])
        for colour in speech.colours
        for shape in speech.shapes
        if (colour in colours or shape in shapes) and (colour, shape) not in speech.excluded
    )
    kinds = {"colour": (((c, None), colours[c]) for c in speech.colours), "shape": (((None, s), shapes[s]) for s in speech.shapes)}
    table: dict[str, dict[int, list[Group]]] = {}
    for kind, groups in {**kinds, "both": pairs}.items():
        rows = table.setdefault(kind, {})
        for pair, count in groups:
            rows.setdefault(count, []).append(Group(*pair))
    return table


def _about(groups: list[Group], scene: Scene, focus: int | None) -> list[Group]:
    return [group for group in groups if focus is not None and group.holds(scene.objects[focus])] or groups


def _named(scene: Scene, speech: Speech, focus: int | None, hide: str = "") -> list[tuple[SceneObject, list[str]]]:
    """Return the objects that have unique names, with these; only the one in focus if it is among them."""
    named = [(i, obj, names) for i, obj in enumerate(scene.objects) if (names := unique_names(obj, scene, speech, hide))]
    return [(obj, names) for i, obj, names in named if i == focus] or [(obj, names) for _, obj, names in named]


# One function per task


def _ask_caption(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question:
    text = caption(scene, speech, rng)
    return Question(pick(rng, PROMPTS["caption"]), f"{text[0].upper()}{text[1:]}." if speech.sentences else text, None)


def _ask_count(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question:
    table = _groups(scene, speech)
    table["all"] = {len(scene.objects): [Group(None, None)]}
    n = pick(rng, sorted({n for rows in table.values() for n in rows}))
    group = pick(rng, _about(table[pick(rng, [kind for kind, rows in table.items() if n in rows])][n], scene, focus))
    short = NUMBERS[n]
    sentence = f"There {'is' if n == 1 else 'are'} {short if n else 'no'} {_noun(group, n != 1)}."
    return Question(pick(rng, PROMPTS["count"]).format(many=_noun(group, True)), sentence if speech.sentences else short, n)


def _ask_exists(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question:
    table = _groups(scene, speech)
    sides = {
        "yes": {kind: [g for n, groups in rows.items() if n for g in groups] for kind, rows in table.items()},
        "no": {kind: rows.get(0, []) for kind, rows in table.items()},
    }
    word = pick(rng, [word for word, kinds in sides.items() if any(kinds.values())])
    both = {kind for kind in table if sides["yes"][kind] and sides["no"][kind]}  # else the kind of question would betray its answer
    kind = pick(rng, [kind for kind, groups in sides[word].items() if groups and (kind in both or not both)])
    one = _noun(pick(rng, _about(sides[word][kind], scene, focus)), False)
    text = pick(rng, PROMPTS["exists"]).format(an=article(one).split()[0], one=one)
    sentence = f"Yes, there is {article(one)}." if word == "yes" else f"No, there is no {one}."
    return Question(text, sentence if speech.sentences else word, word)


def _ask_colour(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question | None:
    if not (named := _named(scene, speech, focus, hide="colour")):
        return None
    obj, names = pick(rng, named)
    name = pick(rng, names)
    sentence = f"The {name} is {obj.colour}."
    return Question(pick(rng, PROMPTS["colour"]).format(a=name), sentence if speech.sentences else obj.colour, obj.colour)


def _ask_shape(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question | None:
    if not (named := _named(scene, speech, focus, hide="shape")):
        return None
    obj, names = pick(rng, named)
    name = pick(rng, names).removesuffix("shape") + "thing"
    sentence = f"The {name} is {article(obj.shape)}."
    return Question(pick(rng, PROMPTS["shape"]).format(a=name), sentence if speech.sentences else obj.shape, obj.shape)


def _ask_relation(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question | None:
    named, about = _named(scene, speech, None), _named(scene, speech, focus)
    views = {"across": across, "down": down, "any": facing}
    for kind in (list(views)[i] for i in rng.permutation(len(views))):
        pairs = [(a, b, word) for a in about for b in named if a[0] is not b[0] and (word := views[kind](a[0], b[0]))]
        if pairs:
            word = pick(rng, sorted({word for _, _, word in pairs}))
            a, b, _ = pick(rng, [pair for pair in pairs if pair[2] == word])
            first, second = pick(rng, a[1]), pick(rng, b[1])
            sentence = f"The {first} is {DIRECTIONS[word]} the {second}."
            return Question(pick(rng, PROMPTS[f"relation {kind}"]).format(a=first, b=second), sentence if speech.sentences else word, word)
    return None


def _ask_point(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question | None:
    if not (named := _named(scene, speech, focus)):
        return None
    obj, names = pick(rng, named)
    name = pick(rng, names)
    point = (100 * obj.x / scene.width, 100 * obj.y / scene.height)
    return Question(pick(rng, PROMPTS["point"]).format(a=name), point_tag([point], name), [scene.objects.index(obj)])


def _ask_points(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question:
    table = _groups(scene, speech)
    table["all"] = {len(scene.objects): [Group(None, None)]}
    n = pick(rng, sorted({n for rows in table.values() for n in rows if n}))
    group = pick(rng, _about([group for rows in table.values() for group in rows.get(n, [])], scene, focus))
    indices = [i for i, obj in enumerate(scene.objects) if group.holds(obj)]
    points = [(100 * scene.objects[i].x / scene.width, 100 * scene.objects[i].y / scene.height) for i in indices]
    one, many = _noun(group, False), _noun(group, True)
    return Question(pick(rng, PROMPTS["points"]).format(many=many, one=one), point_tag(points, one if len(indices) == 1 else many), indices)


def _ask_future(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question | None:
    """Ask where an object will be. In half of the questions, where possible, it changes sides, so its present side is no answer."""
    last = max(speech.shown - 1, 0)
    ahead = int(rng.integers(speech.horizon[0], speech.horizon[1] + 1))
    candidates: list[tuple[str, str, list[str], bool]] = []  # kind of question, answer, names, whether the object changes sides
    for obj, names in _named(scene, speech, focus):
        now, then = (halves(*obj.centre(k, scene.width, scene.height), obj.radius, scene.width, scene.height) for k in (last, last + ahead))
        for kind, old, new in zip(("across", "down"), now, then, strict=True):
            if new:
                candidates.append((kind, new, names, old not in (None, new)))
        if then[0] and then[1]:
            candidates.append(("quarter", f"{then[1]} {then[0]}", names, None not in now and now != then))
    changing = rng.random() < 0.5
    candidates = [row for row in candidates if row[3] == changing] or candidates
    if not candidates:
        return None
    kind = pick(rng, sorted({row[0] for row in candidates}))
    word = pick(rng, sorted({row[1] for row in candidates if row[0] == kind}))
    name = pick(rng, pick(rng, [row[2] for row in candidates if row[:2] == (kind, word)]))
    when = WHEN[speech.shown >= 2].format(k=ahead)
    sentence = f"The {name} will be {'on' if kind == 'across' else 'at'} the {word}."
    return Question(pick(rng, PROMPTS[f"future {kind}"]).format(a=name, when=when), sentence if speech.sentences else word, word)


_ASKERS: dict[str, Callable[[Scene, Speech, np.random.Generator, int | None], Question | None]] = {
    "caption": _ask_caption,
    "count": _ask_count,
    "colour": _ask_colour,
    "shape": _ask_shape,
    "relation": _ask_relation,
    "point": _ask_point,
    "points": _ask_points,
    "exists": _ask_exists,
    "future": _ask_future,
}
