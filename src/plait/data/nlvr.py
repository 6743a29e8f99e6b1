"""Cornell NLVR shards with questions made from their structured boxes: true or false, counting and pointing, each answer exact.

A picture of NLVR v1 (Suhr et al. 2017) is three boxes of 100 x 100 pixels, 50 apart, and its record lists every item: `type`, `color`,
`size` and the corner `x_loc`, `y_loc` inside its box. Each sentence has six pictures, which show the boxes in six orders, while the records
keep the first: the number at the end of a sample's name says which order. Sample i is a function of (record, task, number of the question):
a held-out set stays the same. What a sample says of its items is what answers.py judges.
"""

import difflib
import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plait import keys
from plait.data.lexicon import NUMBERS, plural
from plait.data.questions import pick, point_tag
from plait.data.records import Record
from plait.errors import BadSample, PlaitError

BOX = 100  # pixels of a box's side
PITCH = 150  # pixels from one box's left edge to the next one's
BOXES = ("left", "middle", "right")
SIZE = (2 * PITCH + BOX, BOX)  # pixels of a picture
COLOURS = {"yellow": "yellow", "black": "black", "#0099ff": "blue"}  # as records write them
SHAPES = ("circle", "square", "triangle")
ORDERS = tuple(itertools.permutations(range(3)))  # by the last number of a sample's name: which of its boxes stands left, middle, right
TASKS = ("truth", "count", "point")
STYLES = {"truth": "vqa2", "count": "vqa2", "point": "pointing"}
_MOST_POINTS = 5  # in one answer; more only where every group is larger
_REVISION = 1  # of the questions: another one is another fingerprint


class NlvrOptions(BaseModel):
    """What is asked about each picture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[str, ...] = TASKS
    questions: int = Field(1, ge=1, le=100)  # of counting and of pointing per picture; its sentence is one


class Item(NamedTuple):
    """One item: its box, and its centre in pixels of the picture. `radius` is half its side: within it a point hits."""

    shape: str
    colour: str
    box: str
    x: float
    y: float
    radius: float


class Group(NamedTuple):
    """The items of a colour, of a shape, of a box; None: of any."""

    colour: str | None
    shape: str | None
    box: str | None

    def holds(self, item: Item) -> bool:
        return self.colour in (None, item.colour) and self.shape in (None, item.shape) and self.box in (None, item.box)

    def words(self, several: bool) -> str:
        """ "yellow circles", "items in the left box"."""
        noun = self.shape or "item"
        named = f"{self.colour} {noun}" if self.colour else noun
        return (plural(named) if several else named) + (f" in the {self.box} box" if self.box else "")


class Nlvr:
    """The source. `reader` gives the records; `options` are those of NlvrOptions."""

    def __init__(self, reader: Any, name: str, options: dict[str, Any], limit: int | None = None) -> None:
        found = _checked(options)
        self.reader, self.name = reader, name
        self.kinds = [(task, n) for task in found.tasks for n in range(1 if task == "truth" else found.questions)]
        self._length = len(reader) * len(self.kinds) if limit is None else min(limit, len(reader) * len(self.kinds))
        said = [_REVISION, reader.digest, self._length, found.model_dump_json()]
        self.fingerprint = xxhash.xxh3_64(repr(said).encode()).hexdigest()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> dict[str, Any]:
        number, kind = divmod(i, len(self.kinds))
        task, turn = self.kinds[kind]
        record = self.reader.read(number)
        question, answer, fields = _ask(task, record, keys.rng("nlvr", record.id, task, turn))
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        told = {"task": task, "style": STYLES[task], "question": question, "answer": answer, **fields}
        return {"id": f"{record.id}/{task}-{turn}", "images": record.images, "messages": messages, "fields": told}


def items(record: Record) -> list[Item]:
    """The items of a record's boxes. BadSample for what is no NLVR record, or an item outside its box."""
    boxes = record.fields.get("boxes")
    if not (isinstance(boxes, list) and len(boxes) == len(BOXES) and all(isinstance(box, list) for box in boxes)):
        raise BadSample(f"{record.id} has no `boxes` of {len(BOXES)} lists of items, so it is no NLVR record")
    order = re.search(r"-([0-5])$", record.id)
    if order is None:
        raise BadSample(f"{record.id} does not end in the number of its boxes' order, -0 to -5, as names of NLVR samples do")
    return [_item(one, place, record.id) for place, box in enumerate(ORDERS[int(order[1])]) for one in boxes[box]]


def _item(one: Mapping[str, Any], place: int, name: str) -> Item:
    try:
        shape, colour = str(one["type"]), COLOURS[str(one["color"]).lower()]
        side, x, y = float(one["size"]), float(one["x_loc"]), float(one["y_loc"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadSample(f"{name}: an item of its boxes has no usable {error}: {one!r}") from error
    if shape not in SHAPES or not (0 <= x <= BOX - side and 0 <= y <= BOX - side):
        raise BadSample(f"{name}: an item is not a {', '.join(SHAPES)} inside a box of {BOX} x {BOX} pixels: {one!r}")
    return Item(shape, colour, BOXES[place], PITCH * place + x + side / 2, y + side / 2, side / 2)


def _ask(task: str, record: Record, rng: np.random.Generator) -> tuple[str, str, dict[str, Any]]:
    """Question, answer, and the truth of it."""
    if task == "truth":
        sentence, label = record.fields.get("sentence"), str(record.fields.get("label")).lower()
        if not sentence or label not in ("true", "false"):
            raise BadSample(f"{record.id} has no `sentence` with a `label` true or false, so it is no NLVR record")
        return f"True or false? {sentence}", label, {}
    found = items(record)
    if not found:
        raise BadSample(f"{record.id} has three empty boxes: there is nothing to ask about")
    told = {"size": list(SIZE), "objects": [one._asdict() for one in found]}
    return _count(found, rng, told) if task == "count" else _point(found, rng, told)


def _groups() -> list[list[Group]]:
    """Every group that can be asked for, by kind: the kind is drawn first, so that the many pairs do not drown the plain ones."""
    boxes = (None, *BOXES)
    plain = [Group(None, None, box) for box in boxes]
    coloured = [Group(colour, None, box) for colour in COLOURS.values() for box in boxes]
    shaped = [Group(None, shape, box) for shape in SHAPES for box in boxes]
    return [plain, coloured, shaped, [Group(colour, shape, None) for colour in COLOURS.values() for shape in SHAPES]]


GROUPS = _groups()


def _count(found: list[Item], rng: np.random.Generator, told: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    group = pick(rng, pick(rng, GROUPS))
    count = sum(map(group.holds, found))
    word = NUMBERS[count] if count < len(NUMBERS) else str(count)
    return f"How many {group.words(True)} are there?", word, {**told, "truth": count, "count": count}


def _point(found: list[Item], rng: np.random.Generator, told: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """All items of a group that has some, few where that is possible."""
    some = [(group, inside) for kind in GROUPS for group in kind if (inside := [i for i, one in enumerate(found) if group.holds(one)])]
    few = [row for row in some if len(row[1]) <= _MOST_POINTS] or some
    group, inside = pick(rng, few)
    text = f"Point to every {group.words(False)}." if len(inside) > 1 else f"Point to the {group.words(False)}."
    places = [(100 * found[i].x / SIZE[0], 100 * found[i].y / SIZE[1]) for i in inside]
    return text, point_tag(places, group.words(len(inside) > 1)), {**told, "truth": inside, "points": [list(at) for at in places]}


def _checked(options: dict[str, Any]) -> NlvrOptions:
    try:
        found = NlvrOptions.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise PlaitError(f"nlvr has no option '{where}'; {_nearest(where, tuple(NlvrOptions.model_fields))}") from None
        raise PlaitError(f"nlvr: {where}: {first['msg']}, not {first['input']!r}") from None
    strange = [task for task in found.tasks if task not in TASKS]
    if strange:
        raise PlaitError(f"nlvr has no task '{strange[0]}'; {_nearest(strange[0], TASKS)}")
    if not found.tasks or len(set(found.tasks)) < len(found.tasks):
        raise PlaitError(f"nlvr: tasks must be a list without repeats, not {list(found.tasks)}")
    return found


def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
