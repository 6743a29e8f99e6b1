"""What is said about a scene: a caption, and questions with exactly one right answer.

A question is asked only when its answer is beyond doubt: a thing is named by words that fit it alone, and a side is asked for only where
the distance exceeds a margin. Where no such question of a task exists, `ask` returns None and the caller draws another scene.
The answer word is drawn before the question, so that left and right, yes and no, and the counts come up equally often.
It draws no pictures (drawing.py) and judges no answers (answers.py).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from plait.data.synthetic.lexicon import NUMBERS, plural
from plait.data.synthetic.physics import Scene, Thing

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
WHEN = ("in {k} frames", "{k} frames after the last one")  # after a still picture, after a clip
OPENERS = ("", "a picture of ", "an image of ", "the picture shows ", "we see ", "there {is} ")
TASKS = tuple(dict.fromkeys(kind.split()[0] for kind in PROMPTS))

T = TypeVar("T")


class Question(NamedTuple):
    """A question, its answer as it should be written, and the truth that answers.py compares with (JSON; things by number)."""

    text: str
    answer: str
    truth: Any


class Group(NamedTuple):
    """All things of a colour, of a shape, of both, or (None, None) all of them."""

    colour: str | None
    shape: str | None

    def holds(self, thing: Thing) -> bool:
        return self.colour in (None, thing.colour) and self.shape in (None, thing.shape)


@dataclass(frozen=True)
class Speech:
    """What may be said: the words in use, the colour and shape pairs never to be named, and how answers are worded."""

    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    say_sizes: bool
    silent: frozenset[tuple[str, str]]
    sentences: bool
    horizon: tuple[int, int]  # frames, fewest and most, that a future question looks ahead
    shown: int  # frames the model sees: 0 for a still picture


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def ask(task: str, scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question | None:
    """A question of the task about the scene, about thing number `focus` where that is possible; None where nothing can be asked."""
    return _ASKERS[task](scene, speech, rng, focus)


def caption(scene: Scene, speech: Speech, rng: np.random.Generator) -> str:
    """A phrase that names every thing once, with one spatial relation or place where it is beyond doubt."""
    things = list(scene.things)
    opener = pick(rng, OPENERS)
    pairs = [(a, b, word) for a in things for b in things if (word := facing(a, b)) and _full(a, speech) != _full(b, speech)]
    if len(things) == 1 and rng.random() < 0.6 and (place := _place(things[0], scene)):
        body, several = f"{article(_full(things[0], speech))} {place}", False
    elif pairs and rng.random() < 0.7:
        first, second, word = pick(rng, pairs)
        body = f"{article(_full(first, speech))} {DIRECTIONS[word]} {article(_full(second, speech))}"
        rest = [thing for thing in things if thing is not first and thing is not second]
        body, several = body + (f", with {_listing(rest, speech)[0]}" if rest else ""), False
    else:
        order = [things[i] for i in rng.permutation(len(things))]
        body, several = _listing(order, speech)
    return opener.format(**{"is": "are" if several else "is"}) + body


def across(a: Thing, b: Thing) -> str | None:
    """ "left" or "right": where a is, seen from b; None when too close to call (less than half their radii together)."""
    return None if abs(a.x - b.x) < (a.radius + b.radius) / 2 else ("left" if a.x < b.x else "right")


def down(a: Thing, b: Thing) -> str | None:
    """ "above" or "below", likewise."""
    return None if abs(a.y - b.y) < (a.radius + b.radius) / 2 else ("above" if a.y < b.y else "below")


def facing(a: Thing, b: Thing) -> str | None:
    """The one direction out of four in which a lies from b; None unless one axis has at least 1.7 times the distance of the other."""
    dx, dy = abs(a.x - b.x), abs(a.y - b.y)
    return across(a, b) if dx > 1.7 * dy else down(a, b) if dy > 1.7 * dx else None


def halves(x: float, y: float, radius: float, width: int, height: int) -> tuple[str | None, str | None]:
    """("left" | "right", "top" | "bottom"), each None within a margin of the middle line: 8 % of the side, or half the radius."""
    return (
        None if abs(x - width / 2) < max(0.08 * width, radius / 2) else ("left" if x < width / 2 else "right"),
        None if abs(y - height / 2) < max(0.08 * height, radius / 2) else ("top" if y < height / 2 else "bottom"),
    )


def point_tag(places: Sequence[tuple[float, float]], alt: str) -> str:
    """`<point x= y= alt=>` or, for several, `<points x1= y1= ...>`: percent of width and height, one decimal, sorted by x, then y."""
    places = sorted(places)
    if len(places) == 1:
        return f'<point x="{places[0][0]:.1f}" y="{places[0][1]:.1f}" alt="{alt}">{alt}</point>'
    body = " ".join(f'x{i}="{x:.1f}" y{i}="{y:.1f}"' for i, (x, y) in enumerate(places, 1))
    return f'<points {body} alt="{alt}">{alt}</points>'


# Words for things


DIRECTIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
_TRAITS = (("shape",), ("colour",), ("colour", "shape"), ("size", "shape"), ("size", "colour"), ("size", "colour", "shape"))


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _noun(group: Group, several: bool) -> str:
    noun = group.shape or "shape"
    return f"{group.colour + ' ' if group.colour else ''}{plural(noun) if several else noun}"


def _full(thing: Thing, speech: Speech) -> str:
    return f"{thing.size + ' ' if speech.say_sizes else ''}{thing.colour} {thing.shape}"


def _listing(things: Iterable[Thing], speech: Speech) -> tuple[str, bool]:
    """ "two small red circles, a ring and an ...", and whether its first item is plural."""
    counts = Counter(_full(thing, speech) for thing in things)
    items = [
        article(what) if n == 1 else f"{NUMBERS[n]} {' '.join(what.split()[:-1])} {plural(what.split()[-1])}" for what, n in counts.items()
    ]
    text = items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
    return text, next(iter(counts.values())) > 1


def _place(thing: Thing, scene: Scene) -> str | None:
    side, level = halves(thing.x, thing.y, thing.radius, scene.width, scene.height)
    if side and level:
        return f"at the {level} {side}"
    near = abs(thing.x / scene.width - 0.5) < 0.06 and abs(thing.y / scene.height - 0.5) < 0.06
    return "in the middle" if near else None


def _names(thing: Thing, scene: Scene, speech: Speech, hide: str = "") -> list[str]:
    """The noun phrases that fit this thing and no other of the scene, without the trait `hide`."""
    found = []
    for traits in _TRAITS:
        if hide in traits or ("size" in traits and not speech.say_sizes):
            continue
        if sum(all(getattr(thing, t) == getattr(other, t) for t in traits) for other in scene.things) == 1:
            found.append(" ".join(getattr(thing, t) for t in traits) + ("" if "shape" in traits else " shape"))
    return found


def _groups(scene: Scene, speech: Speech) -> dict[str, dict[int, list[Group]]]:
    """Kind of group -> how many things it holds here -> the groups. Pairs that share nothing with the scene are left out: too easy."""
    seen_colours, seen_shapes = {thing.colour for thing in scene.things}, {thing.shape for thing in scene.things}
    pairs = [
        Group(colour, shape)
        for colour in speech.colours
        for shape in speech.shapes
        if (colour in seen_colours or shape in seen_shapes) and (colour, shape) not in speech.silent
    ]
    kinds = {"colour": [Group(c, None) for c in speech.colours], "shape": [Group(None, s) for s in speech.shapes], "both": pairs}
    table: dict[str, dict[int, list[Group]]] = {}
    for kind, groups in kinds.items():
        rows = table.setdefault(kind, {})
        for group in groups:
            rows.setdefault(sum(map(group.holds, scene.things)), []).append(group)
    return table


def _about(groups: list[Group], scene: Scene, focus: int | None) -> list[Group]:
    return [group for group in groups if focus is not None and group.holds(scene.things[focus])] or groups


def _named(scene: Scene, speech: Speech, focus: int | None, hide: str = "") -> list[tuple[Thing, list[str]]]:
    """The things that have a name of their own; only the one in focus if it is among them."""
    named = [(i, thing, names) for i, thing in enumerate(scene.things) if (names := _names(thing, scene, speech, hide))]
    return [(thing, names) for i, thing, names in named if i == focus] or [(thing, names) for _, thing, names in named]


# One asker per task


def _ask_caption(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question:
    text = caption(scene, speech, rng)
    return Question(pick(rng, PROMPTS["caption"]), f"{text[0].upper()}{text[1:]}." if speech.sentences else text, None)


def _ask_count(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question:
    table = _groups(scene, speech)
    table["all"] = {len(scene.things): [Group(None, None)]}
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
    thing, names = pick(rng, named)
    name = pick(rng, names)
    sentence = f"The {name} is {thing.colour}."
    return Question(pick(rng, PROMPTS["colour"]).format(a=name), sentence if speech.sentences else thing.colour, thing.colour)


def _ask_shape(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question | None:
    if not (named := _named(scene, speech, focus, hide="shape")):
        return None
    thing, names = pick(rng, named)
    name = pick(rng, names).removesuffix("shape") + "thing"
    sentence = f"The {name} is {article(thing.shape)}."
    return Question(pick(rng, PROMPTS["shape"]).format(a=name), sentence if speech.sentences else thing.shape, thing.shape)


def _ask_relation(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question | None:
    everything, about = _named(scene, speech, None), _named(scene, speech, focus)
    views = {"across": across, "down": down, "any": facing}
    for kind in (list(views)[i] for i in rng.permutation(len(views))):
        found = [(a, b, word) for a in about for b in everything if a[0] is not b[0] and (word := views[kind](a[0], b[0]))]
        if found:
            word = pick(rng, sorted({word for _, _, word in found}))
            a, b, _ = pick(rng, [row for row in found if row[2] == word])
            first, second = pick(rng, a[1]), pick(rng, b[1])
            sentence = f"The {first} is {DIRECTIONS[word]} the {second}."
            return Question(pick(rng, PROMPTS[f"relation {kind}"]).format(a=first, b=second), sentence if speech.sentences else word, word)
    return None


def _ask_point(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question | None:
    if not (named := _named(scene, speech, focus)):
        return None
    thing, names = pick(rng, named)
    name = pick(rng, names)
    place = (100 * thing.x / scene.width, 100 * thing.y / scene.height)
    return Question(pick(rng, PROMPTS["point"]).format(a=name), point_tag([place], name), [scene.things.index(thing)])


def _ask_points(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question:
    table = _groups(scene, speech)
    table["all"] = {len(scene.things): [Group(None, None)]}
    n = pick(rng, sorted({n for rows in table.values() for n in rows if n}))
    group = pick(rng, _about([group for rows in table.values() for group in rows.get(n, [])], scene, focus))
    hits = [i for i, thing in enumerate(scene.things) if group.holds(thing)]
    places = [(100 * scene.things[i].x / scene.width, 100 * scene.things[i].y / scene.height) for i in hits]
    one, many = _noun(group, False), _noun(group, True)
    return Question(pick(rng, PROMPTS["points"]).format(many=many, one=one), point_tag(places, one if len(hits) == 1 else many), hits)


def _ask_future(scene: Scene, speech: Speech, rng: np.random.Generator, focus: int | None) -> Question | None:
    """Half of the questions, where possible, are about a thing that changes sides: where it is now answers only the rest."""
    last = max(speech.shown - 1, 0)
    ahead = int(rng.integers(speech.horizon[0], speech.horizon[1] + 1))
    found: list[tuple[str, str, list[str], bool]] = []
    for thing, names in _named(scene, speech, focus):
        now, then = (halves(*thing.at(k, scene.width, scene.height), thing.radius, scene.width, scene.height) for k in (last, last + ahead))
        for kind, old, new in zip(("across", "down"), now, then, strict=True):
            if new:
                found.append((kind, new, names, old not in (None, new)))
        if then[0] and then[1]:
            found.append(("quarter", f"{then[1]} {then[0]}", names, None not in now and now != then))
    changing = rng.random() < 0.5
    found = [row for row in found if row[3] == changing] or found
    if not found:
        return None
    kind = pick(rng, sorted({row[0] for row in found}))
    word = pick(rng, sorted({row[1] for row in found if row[0] == kind}))
    name = pick(rng, pick(rng, [row[2] for row in found if row[:2] == (kind, word)]))
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
