"""The source (data set) `scenes`: pictures generated on the fly, with captions, questions and exact answers. Nothing is read or stored.

A scene is a few coloured shapes on a background. Scene i of a split is a pure function of (seed, split, i): the same in any process,
thread and order. This file decides what is in a scene (options, layout, held-out pairs of colour and shape); motion is in physics.py,
looks are in drawing.py, texts in questions.py, the scoring of answers in answers.py.
"""

import difflib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from plait import keys
from plait.data.synthetic import motion, questions
from plait.data.synthetic.backgrounds import draw_background
from plait.data.synthetic.blanks import blank
from plait.data.synthetic.drawing import DRAWING, encode, render
from plait.data.synthetic.lexicon import COLOURS, SHAPES
from plait.data.synthetic.physics import Scene, SceneObject
from plait.data.synthetic.questions import Question, Speech
from plait.errors import PlaitError

SPLITS = {"train": 100_000, "validation": 1_000, "test": 1_000}
"""Default number of scenes by split."""
SIZES = {"small": (0.55, 0.65), "medium": (0.73, 0.81), "large": (0.90, 1.0)}
"""Least and greatest radius of an object by word, as shares of the largest that fits."""

TASKS = (*questions.TASKS, *motion.TASKS)
"""Kinds of question."""

_LARGEST = 0.2  # largest radius, as a share of the shorter side
_FASTEST = 0.2  # share of the shorter side per frame where edges are joined
_GAP = 1.12  # space around an object, in its radii: objects never touch at frame 0
_SMALLEST_PX = 2.0  # radius below which shapes cannot be distinguished
_LAYOUTS = 1000  # scenes tried until one allows a question of the task: far more than any sensible options need
_PLACINGS = 24  # random positions tried per object before the whole scene is put onto a grid, where everything fits


class SceneOptions(BaseModel):
    """Options of the source `scenes`: what the pictures contain and what is asked about them.

    `shapes`, `colours`, `sizes`: words of the objects drawn. `tasks`: {kind of question: how often, relative to the others}; beside the
    default ones there are `points` and `future`. `answers`: a word or a sentence. `supersample`: samples per pixel side, for smooth edges.
    `format`: the encoding of pictures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[tuple[int, int], ...] = ((64, 64),)
    """(width, height) in pixels; several are drawn equally often."""
    objects: tuple[int, int] = (1, 4)
    """Fewest and most objects."""
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    sizes: tuple[str, ...] = ("small", "large")
    tasks: dict[str, float] = {"caption": 1, "count": 1, "colour": 1, "shape": 1, "relation": 1, "point": 1, "exists": 1}
    questions: int = Field(1, ge=1, le=24)
    """Questions about each picture; fewer where the scene allows no other."""
    asked_as: Literal["annotations", "turns"] = "annotations"
    """How several questions are asked: as separate conversations, or as turns of one."""
    answers: Literal["short", "sentence"] = "short"
    frames: int = Field(0, ge=0, le=1000)
    """Frames of video beside the picture, its first frame among them; 0: a still picture."""
    horizon: tuple[int, int] = (4, 12)
    """Fewest and most frames that a question of task "future" looks ahead."""
    speed: tuple[float, float] = (0.015, 0.05)
    """Slowest and fastest motion, as shares of the shorter side per frame."""
    trails: Literal["auto", "always", "never"] = "auto"
    """Whether faded copies show the motion; auto: where "future" is asked of stills, which show none otherwise."""
    background: Literal["light", "dark", "mixed", "white"] = "mixed"
    holdout: float | tuple[str, ...] = 0.1
    """Share of colour and shape pairs, or the pairs ("red circle"), kept out of training."""
    held_out_share: float = Field(0.5, ge=0, le=1)
    """Share of validation scenes with a held-out pair."""
    motion_holdout: tuple[motion.KeptOut, ...] = ("speed", "direction", "count")
    """What is kept out of training where motion is asked: the middle fifth of speeds, directions near the diagonals, the most objects."""
    screen: bool = True
    """Whether a bar hides a part of each picture where motion is asked."""
    supersample: int = Field(3, ge=1, le=8)
    format: Literal["png", "jpeg"] = "png"

    @field_validator("size", mode="before")
    @classmethod
    def _sizes_in_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, (list, tuple)) and value and isinstance(value[0], int) else value

    @field_validator("objects", "horizon", mode="before")
    @classmethod
    def _one_number_is_a_range(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value

    @field_validator("tasks", mode="before")
    @classmethod
    def _names_weigh_the_same(cls, value: Any) -> Any:
        return dict.fromkeys([value] if isinstance(value, str) else value, 1.0) if isinstance(value, (str, list, tuple)) else value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for what, given, known in (
            ("shape", self.shapes, SHAPES),
            ("colour", self.colours, tuple(COLOURS)),
            ("size", self.sizes, tuple(SIZES)),
            ("task", tuple(self.tasks), TASKS),
        ):
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{what}s must be a list without repeats, not {list(given)}")
            for name in given:
                if name not in known:
                    raise ValueError(f"there is no {what} '{name}'; {_nearest(name, known)}")
        if min(self.tasks.values()) < 0 or sum(self.tasks.values()) <= 0:
            raise ValueError(f"task weights must not be negative and must not all be 0: {self.tasks}")
        for name, (low, high), least, most in (
            ("objects", self.objects, 1, 20),
            ("horizon", self.horizon, 1, 10_000),
            ("speed", self.speed, 0, 1),
        ):
            if not least <= low <= high <= most:
                raise ValueError(f"{name} must be [fewest, most] within {least} to {most}, not {[low, high]}")
        if not self.size or min(min(pair) for pair in self.size) < 16 or max(max(pair) for pair in self.size) > 4096:
            raise ValueError(
                f"size must be [width, height], or a list of them, of 16 to 4096 pixels, not {[list(pair) for pair in self.size]}"
            )
        for width, height in self.size:
            if (smallest := largest_radius(width, height, self.objects[1]) * min(SIZES[size][0] for size in self.sizes)) < _SMALLEST_PX:
                crowd = f"{self.objects[1]} objects in {width}x{height} pixels"
                raise ValueError(f"{crowd} leave {smallest:.1f} pixels of radius; take fewer or a larger size")
        if self.tasks.get("future") and self.frames < 2 and self.trails == "never":
            raise ValueError("'future' cannot be asked of a still picture without trails: set frames to 2 or more, or trails to auto")
        if self.moving and (self.frames < 2 or self.questions > 1):
            raise ValueError(f"'{self.moving[0]}' needs frames of 2 or more and is the one question of its scene: frames 9, questions 1")
        if self.moving and self.speed[1] > _FASTEST:
            raise ValueError(f"'{self.moving[0]}' takes speeds of at most {_FASTEST}, not {self.speed[1]}")
        if self.asked_as == "turns" and self.questions == 1:
            raise ValueError("asked_as: turns needs questions of 2 or more: one question is one turn")
        held_out(self.colours, self.shapes, self.holdout)
        return self

    @property
    def moving(self) -> list[str]:
        """Return the tasks in use that need several frames."""
        return [task for task in motion.TASKS if self.tasks.get(task)]


def largest_radius(width: int, height: int, count: int) -> float:
    """Return the largest radius, in pixels, that objects may have in a scene of `count` objects on width x height pixels.

    At most a fifth of the shorter side, and small enough that the objects always fit into a grid of `count` cells.
    """
    best = 0.0
    for columns in range(1, count + 1):
        rows = math.ceil(count / columns)
        best = max(best, min(width / columns, height / rows) / (2 * _GAP))
    return min(best, _LARGEST * min(width, height))


def held_out(colours: Sequence[str], shapes: Sequence[str], holdout: float | tuple[str, ...]) -> frozenset[tuple[str, str]]:
    """Return the (colour, shape) pairs that training never shows or names, to test generalisation.

    `holdout`: the pairs ("red circle"), or their share; then a hash picks them, the same for any seed, such that every word stays in use.
    Raises ValueError for pairs that are not among `colours` and `shapes`, and for a holdout that leaves nothing to train on.
    """
    pairs = [(colour, shape) for colour in colours for shape in shapes]
    if isinstance(holdout, tuple):
        unknown = [name for name in holdout if tuple(name.split()) not in pairs]
        if unknown:
            raise ValueError(f"holdout names '{unknown[0]}', which is not a colour and a shape in use, like '{' '.join(pairs[0])}'")
        if len(set(holdout)) == len(pairs):
            raise ValueError("holdout leaves nothing to train on")
        return frozenset(pair for pair in pairs if " ".join(pair) in holdout)
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout must be a share from 0 to below 1, or a list of pairs, not {holdout}")
    held: set[tuple[str, str]] = set()
    for colour, shape in sorted(pairs, key=lambda pair: keys.key("held out", *pair)):
        kept = [pair for pair in pairs if pair not in held and pair != (colour, shape)]
        if len(held) + 1 <= holdout * len(pairs) + 1e-9 and colour in {c for c, _ in kept} and shape in {s for _, s in kept}:
            held.add((colour, shape))
    return frozenset(held)


class Scenes:
    """Generated pictures with questions as training samples. `options`: the fields of SceneOptions; `split`: train, validation or test.

    `seed`: with the split it decides which scenes are drawn. `length`: their number; None: the split's default. Raises PlaitError for
    invalid arguments, and for a task that no scene of these options can be asked about.
    """

    def __init__(self, options: dict[str, Any], *, seed: int, split: str, length: int | None = None) -> None:
        if split not in SPLITS:
            raise PlaitError(f"scenes have no split '{split}'; {_nearest(split, tuple(SPLITS))}")
        if length is not None and length < 1:
            raise PlaitError(f"scenes need a length of at least 1, not {length}")
        self.options = _checked(options)
        self.seed, self.split, self.length = seed, split, SPLITS[split] if length is None else length
        self.name = f"scenes {split}"
        later = {"questions": self.options.questions == 1, "asked_as": self.options.asked_as == "annotations"}
        later |= dict.fromkeys(("motion_holdout", "screen"), not self.options.moving)
        settings = self.options.model_dump_json(exclude={name for name, default in later.items() if default})  # old fingerprints stay
        self.fingerprint = f"{keys.key(DRAWING, settings, seed, split, self.length):016x}"
        weights = np.array(list(self.options.tasks.values()))
        self._task_ends = np.cumsum(weights) / weights.sum()
        self.held_out = held_out(self.options.colours, self.options.shapes, self.options.holdout)
        for task, weight in self.options.tasks.items():
            if weight and task in motion.TASKS:
                self._setting.check(task, held_out=split != "train" and self.options.held_out_share > 0)
            if weight:
                self._compose(-1, task)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return sample `index`: {`id`, `images`, `messages`, `fields`[, `frames`][, `annotations`]}; IndexError outside.

        `fields`: the picture's objects and background, and the question (of several turns the last) with its truth (docs/scenes.md).
        """
        draw = functools.partial(render, supersample=self.options.supersample, trails=self._trails)
        return self._sample(index, lambda scene, frame: encode(draw(scene, frame), self.options.format))

    def sketch(self, index: int) -> dict[str, Any]:
        """Return sample `index` with blank pictures of its sizes, which cost no drawing; IndexError outside."""
        return self._sample(index, lambda scene, frame: blank(scene.width, scene.height, self.options.format))

    worded = sketch

    def _sample(self, index: int, picture: Callable[[Scene, int], bytes]) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        options = self.options
        scene, question, caption, task, more_fields = self._compose(index)
        frames = [picture(scene, frame) for frame in range(max(options.frames, 1))]
        sample: dict[str, Any] = {
            "id": f"{self.split}-{self.seed}-{index}",
            "images": frames[:1],
            "messages": _messages(question),
            "fields": {
                "task": task,
                "question": question.text,
                "answer": question.answer,
                "truth": question.truth,
                "caption": caption,
                "size": [scene.width, scene.height],
                "objects": [{name: getattr(obj, name) for name in SceneObject.__match_args__} for obj in scene.objects],
                "background": [list(scene.background[0]), list(scene.background[1]), scene.background[2]],
                "frames": options.frames,
                "held_out": any((obj.colour, obj.shape) in self.held_out for obj in scene.objects),
                **more_fields,
            },
        }
        sample |= {"frames": frames} if options.frames else {}
        if options.questions > 1:
            more = self._more(index, scene, question)
            if options.asked_as == "turns":
                sample["messages"] = [message for q in (*more, question) for message in _messages(q)]
            else:
                sample["annotations"] = [{"messages": _messages(q)} for q in (question, *more)]
        return sample

    @property
    def _trails(self) -> bool:
        asked_of_stills = bool(self.options.tasks.get("future")) and self.options.frames < 2
        return self.options.trails == "always" or (self.options.trails == "auto" and asked_of_stills)

    @functools.cached_property
    def _common(self) -> list[tuple[str, str]]:
        return [pair for colour in self.options.colours for shape in self.options.shapes if (pair := (colour, shape)) not in self.held_out]

    @functools.cached_property
    def _setting(self) -> motion.Setting:
        options = self.options
        return motion.Setting(
            options.frames,
            options.size,
            options.objects,
            {word: sum(SIZES[word]) / 2 for word in options.sizes},
            options.speed,
            options.horizon,
            screen=options.screen,
            pairs=self._common,
            held_pairs=sorted(self.held_out),
            kept_out=options.motion_holdout,
        )

    @functools.cached_property
    def _speech(self) -> Speech:
        options = self.options
        excluded = self.held_out if self.split == "train" else frozenset()  # in training, "is there a ...?" would always be answered "no"
        return Speech(
            colours=options.colours,
            shapes=options.shapes,
            say_sizes=len(options.sizes) > 1,
            excluded=excluded,
            sentences=options.answers == "sentence",
            horizon=options.horizon,
            shown=options.frames,
        )

    def _compose(self, index: int, task: str | None = None) -> tuple[Scene, Question, str, str, dict[str, Any]]:
        """Return scene, question, caption, task and further fields of an index.

        The task is drawn first, then scenes until one allows such a question. Raises PlaitError where none does.
        """
        rng = keys.rng(self.seed, "scenes", self.split, index)
        drawn = self._task(rng)
        task = task or drawn
        speech, apart = self._speech, self.split != "train"
        if task in motion.TASKS:
            held, background = apart and rng.random() < self.options.held_out_share, draw_background(rng, self.options.background)
            asked = self._setting.compose(task, speech, rng, held_out=held, background=background)
            fields = {"wraps": True, "screen": asked.scene.screen, "asked": list(asked.objects), "held_out_in": asked.held_out_in}
            caption = questions.caption(asked.scene, speech, rng)
            return asked.scene, asked.question, caption, task, fields | {"held_out": asked.held_out_in is not None}
        with_held_out = apart and bool(self.held_out) and rng.random() < self.options.held_out_share
        for _ in range(_LAYOUTS):
            scene, focus = self._scene(rng, with_held_out)
            if question := questions.ask(task, scene, speech, rng, focus):
                return scene, question, questions.caption(scene, speech, rng), task, {}
        raise PlaitError(
            f"no scene of these options allows a question of the task '{task}'; allow more objects, shapes or colours, or drop the task"
        )

    def _task(self, rng: np.random.Generator) -> str:
        return list(self.options.tasks)[int(self._task_ends.searchsorted(rng.random(), side="right"))]

    def _more(self, index: int, scene: Scene, first: Question) -> list[Question]:
        """Return further questions about a scene, without repeats."""
        rng, speech = keys.rng(self.seed, "scenes", self.split, index, "more"), self._speech
        drawn = [questions.ask(self._task(rng), scene, speech, rng, None) for _ in range(self.options.questions - 1)]
        return list({question.text: question for question in drawn if question and question.text != first.text}.values())

    def _scene(self, rng: np.random.Generator, with_held_out: bool) -> tuple[Scene, int | None]:
        """Return a scene and the index of its object of a held-out pair, if it has one."""
        options = self.options
        width, height = questions.pick(rng, options.size)
        count = int(rng.integers(options.objects[0], options.objects[1] + 1))
        special = int(rng.integers(count)) if with_held_out else None
        pairs = [questions.pick(rng, sorted(self.held_out) if i == special else self._common) for i in range(count)]
        sizes = [questions.pick(rng, options.sizes) for _ in range(count)]
        largest = largest_radius(width, height, options.objects[1])
        radii = [largest * (SIZES[size][0] + (SIZES[size][1] - SIZES[size][0]) * rng.random()) for size in sizes]
        objects = []
        for (colour, shape), size, radius, (x, y) in zip(pairs, sizes, radii, place_circles(rng, radii, width, height), strict=True):
            speed = min(width, height) * (options.speed[0] + (options.speed[1] - options.speed[0]) * rng.random())
            angle = 2 * math.pi * rng.random()
            motion_xy = {"vx": speed * math.cos(angle), "vy": speed * math.sin(angle)}
            objects.append(SceneObject(shape, colour, size, x=x, y=y, **motion_xy, radius=radius, tilt=24 * rng.random() - 12))
        return Scene(width, height, draw_background(rng, options.background), tuple(objects)), special


def _messages(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.text}, {"role": "assistant", "content": question.answer}]


def place_circles(rng: np.random.Generator, radii: list[float], width: int, height: int) -> list[tuple[float, float]]:
    """Return a random centre (x, y) for a circle of each of `radii`; all lie inside width x height and none touch.

    Where no such places are found, the centres are those of a grid, on which large circles may touch.
    """
    centres: list[tuple[float, float]] = []
    for radius in radii:
        for _ in range(_PLACINGS):
            x, y = radius + (width - 2 * radius) * rng.random(), radius + (height - 2 * radius) * rng.random()
            if all(math.hypot(x - u, y - v) >= _GAP * (radius + r) for (u, v), r in zip(centres, radii, strict=False)):
                centres.append((x, y))
                break
        else:
            break
    if len(centres) == len(radii):
        return centres
    count = len(radii)
    columns = max(range(1, count + 1), key=lambda n: min(width / n, height / math.ceil(count / n)))
    cell_w, cell_h = width / columns, height / math.ceil(count / columns)
    cells = rng.permutation(columns * math.ceil(count / columns))[:count]
    spare = [(max(cell_w - 2 * _GAP * r, 0.0), max(cell_h - 2 * _GAP * r, 0.0)) for r in radii]
    return [
        ((cell % columns + 0.5) * cell_w + w * (rng.random() - 0.5), (cell // columns + 0.5) * cell_h + h * (rng.random() - 0.5))
        for cell, (w, h) in zip(cells.tolist(), spare, strict=True)
    ]


def _checked(options: dict[str, Any]) -> SceneOptions:
    try:
        return SceneOptions.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(str(part) for part in first["loc"][:1])
        if first["type"] == "extra_forbidden":
            raise PlaitError(f"scenes have no option '{option}'; {_nearest(option, tuple(SceneOptions.model_fields))}") from None
        text = first["msg"].removeprefix("Value error, ")
        raise PlaitError(f"scenes: {option}: {text}, not {first['input']!r}" if option else f"scenes: {text}") from None


def _nearest(name: str, known: tuple[str, ...]) -> str:
    """Return the end of an error message about an unknown name: the closest known one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
