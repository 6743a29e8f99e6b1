"""Make scenes with questions that need several frames.

Which way does it move, where will it be, will they touch, which is faster?

No words and no single frame give the answer away (balance.py). Objects have one size, wrap around at the edges, pass before each other and
behind a bar, the screen, that is a little narrower than they are and stands anywhere: something of each stays to be seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from plait.data.synthetic import balance
from plait.data.synthetic.backgrounds import Background
from plait.data.synthetic.balance import Law
from plait.data.synthetic.physics import Scene, SceneObject
from plait.data.synthetic.questions import PROMPTS, WHEN, Question, Speech, pick, unique_names
from plait.errors import PlaitError

KeptOut = Literal["speed", "direction", "count"]
"""What can be kept out of training besides pairs of colour and shape."""

QUESTIONS: dict[str, tuple[str, ...]] = {
    "direction": ("Is the {a} moving {either}?", "Which way does the {a} move, {either}?", "Does the {a} move {either}?"),
    "touch": (
        "Will the {a} and the {b} touch in the {k} frames after the last one?",
        "Will the {a} touch the {b} within {k} frames after the last one?",
        "Do the {a} and the {b} meet in the {k} frames after the last one?",
    ),
    "faster": (
        "Which is faster, the {a} or the {b}?",
        "Which moves faster, the {a} or the {b}?",
        "The {a} or the {b}: which is the faster one?",
    ),
}
"""Wordings by task; those of "where" are the ones of "future"."""
TASKS = ("where", *QUESTIONS)
"""Tasks that need several frames."""

_LARGEST = 0.13  # radius of the largest object, as a share of the shorter side: room to pass each other
_SCREEN = 1.5  # width of the screen, in radii: narrower than an object
_NAMINGS = 200  # colours and shapes drawn until the asked objects can be named


class Asked(NamedTuple):
    """A scene, its question, what of it is kept out of training (None: nothing), and the indices of the objects asked about."""

    scene: Scene
    question: Question
    held_out_in: str | None
    objects: tuple[int, ...]


@dataclass(frozen=True)
class Setting:
    """What scenes of motion are made of: the options of `scenes` of the same names, and what is `kept_out` of training.

    `sizes`: {word: radius as a share of the largest object's}; `pairs`: (colour, shape) of training, `held_pairs`: kept out of it.
    """

    frames: int
    size: Sequence[tuple[int, int]]
    objects: tuple[int, int]
    sizes: dict[str, float]
    speed: tuple[float, float]
    horizon: tuple[int, int]
    screen: bool
    pairs: Sequence[tuple[str, str]]
    held_pairs: Sequence[tuple[str, str]]
    kept_out: Sequence[KeptOut]

    def held_out_in(self, task: str) -> list[str]:
        """Return what a scene of this task can hold that is kept out of training: "pair", "speed", "direction", "count"."""
        known = [name for name in get_args(KeptOut) if name in self.kept_out and (name != "count" or self._counts(task)[1])]
        return [*(["pair"] if self.held_pairs else []), *known]

    def check(self, task: str, held_out: bool) -> None:
        """Raise PlaitError for a task that cannot be asked, of training scenes or, with `held_out`, of those kept out too."""
        if self.objects[1] < _asked(task):
            raise PlaitError(f"scenes: '{task}' asks about two objects, and objects is {list(self.objects)}: allow 2 or more")
        for only in (None, *(self.held_out_in(task) if held_out else ())):
            for word in self.sizes:
                for axis in (0, 1):
                    balance.fit(self._law(task, self.size[0], axis, word, self.horizon[0], only))

    def _counts(self, task: str) -> tuple[range, tuple[int, ...]]:
        """Return the numbers of objects in training, and those kept out of it: the most, where there are fewer too."""
        least = max(self.objects[0], _asked(task))
        if "count" in self.kept_out and self.objects[1] > least:
            return range(least, self.objects[1]), (self.objects[1],)
        return range(least, self.objects[1] + 1), ()

    def _law(self, task: str, size: tuple[int, int], axis: int, word: str, ahead: int, held: str | None) -> Law:
        short = min(size)
        sides = (size[axis] / short, size[1 - axis] / short)
        kept_out = tuple(name for name in ("speed", "direction") if name in self.kept_out)
        radius = round(_LARGEST * self.sizes[word], 4)
        only = held if held in kept_out else None
        return Law(task, self.frames, ahead, sides, radius, speed=self.speed, kept_out=kept_out, only=only)

    def compose(self, task: str, speech: Speech, rng: np.random.Generator, *, held_out: bool, background: Background) -> Asked:
        """Return a scene with a question of `task`; with `held_out`, where it can be, one with something that training never shows.

        Raises PlaitError where no objects asked about get a name of their own, and for a motion that cannot be balanced.
        """
        kinds = self.held_out_in(task) if held_out else []
        held = pick(rng, kinds) if kinds else None
        size, axis, word = pick(rng, self.size), int(rng.integers(2)), pick(rng, list(self.sizes))
        law = self._law(task, size, axis, word, int(rng.integers(self.horizon[0], self.horizon[1] + 1)), held)
        counts, held_counts = self._counts(task)
        count = held_counts[0] if held == "count" else pick(rng, counts)
        motions = balance.draw(law, rng)
        asked = [int(i) for i in rng.permutation(count)[: _asked(task)]]
        others = balance.velocities(replace(law, only=None), count, rng)
        places = rng.random((count, 2)) * np.array(law.extent)
        moving = others
        for row, i in enumerate(asked):
            places[i], moving[i] = motions.places[0, row], motions.velocities[0, row]
        if axis:
            places, moving = places[:, ::-1], moving[:, ::-1]
        short = min(size)
        rows = (short * np.concatenate([places, moving], axis=1)).tolist()
        for looks in self._looks(rng, count, asked, held):
            objects = tuple(
                SceneObject(shape, colour, word, x=x, y=y, vx=vx, vy=vy, radius=law.radius * short, tilt=tilt)
                for (colour, shape, tilt), (x, y, vx, vy) in zip(looks, rows, strict=True)
            )
            scene = Scene(*size, background, objects, True, self._place_screen(rng, size, law.radius * short))
            names = [unique_names(objects[i], scene, speech) for i in asked]
            if all(names):
                said = _question(law, axis, [pick(rng, phrases) for phrases in names], int(motions.answers[0]), speech, rng)
                return Asked(scene, said, held, tuple(asked))
        raise PlaitError(f"scenes: no {count} objects of these shapes and colours have names of their own for '{task}'; allow more of them")

    def _looks(
        self, rng: np.random.Generator, count: int, asked: Sequence[int], held: str | None
    ) -> Iterator[list[tuple[str, str, float]]]:
        """Yield random (colour, shape, tilt) of all objects; one of those asked about has a pair kept out where `held` is "pair"."""
        special = pick(rng, asked) if held == "pair" else None
        for _ in range(_NAMINGS):
            pairs = [pick(rng, self.held_pairs if i == special else self.pairs) for i in range(count)]
            yield [(colour, shape, 24 * rng.random() - 12) for colour, shape in pairs]

    def _place_screen(self, rng: np.random.Generator, size: tuple[int, int], radius: float) -> tuple[float, float, float, float] | None:
        """Return a bar across the picture, upright or level, at a place that nothing else decides."""
        if not self.screen:
            return None
        axis, width = int(rng.integers(2)), _SCREEN * radius
        start = float((size[axis] - width) * rng.random())
        return (start, 0.0, start + width, float(size[1])) if axis == 0 else (0.0, start, float(size[0]), start + width)


def _asked(task: str) -> int:
    return 1 if task in ("where", "direction") else 2


def _question(law: Law, axis: int, names: list[str], answer: int, speech: Speech, rng: np.random.Generator) -> Question:
    """Word the question of a motion whose `answer` is as of `balance.Motions`; `axis`: 0 across, 1 down. Pairs come in either order."""
    first, *rest = names
    if law.task == "where":
        word = (("right", "left"), ("bottom", "top"))[axis][answer]
        text = pick(rng, PROMPTS["future down" if axis else "future across"]).format(a=first, when=WHEN[1].format(k=law.ahead))
        sentence = f"The {first} will be {'at' if axis else 'on'} the {word}."
        return Question(text, sentence if speech.sentences else word, word)
    if law.task == "direction":
        words = (("right", "left"), ("down", "up"))[axis]
        either = " or ".join(words if rng.random() < 0.5 else words[::-1])
        text = pick(rng, QUESTIONS["direction"]).format(a=first, either=either)
        return Question(text, f"It moves {words[answer]}." if speech.sentences else words[answer], words[answer])
    ordered = names if rng.random() < 0.5 else names[::-1]
    text = pick(rng, QUESTIONS[law.task]).format(a=ordered[0], b=ordered[1], k=law.ahead)
    if law.task == "touch":
        word = "yes" if answer else "no"
        sentence = (
            f"Yes, the {ordered[0]} will touch the {ordered[1]}." if answer else f"No, the {ordered[0]} will not touch the {ordered[1]}."
        )
        return Question(text, sentence if speech.sentences else word, word)
    faster, slower = (first, *rest) if answer else (*rest, first)
    return Question(text, f"The {faster} is faster." if speech.sentences else faster, [faster, slower])
