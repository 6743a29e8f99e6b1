"""What stands in a picture of Cornell NLVR: the items of its record, where they lie, and the groups that can be spoken of.

A picture of NLVR v1 (Suhr et al. 2017) is three boxes of 100 x 100 pixels, 50 apart, and its record lists every item: `type`, `color`,
`size` and the corner `x_loc`, `y_loc` inside its box. Each sentence has six pictures, which show the boxes in six orders, while the records
keep the first: the number at the end of a sample's name says which order. Half of the pictures show towers, blocks that stand on each
other.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from plait.data.records import Record
from plait.data.synthetic.lexicon import plural
from plait.errors import BadSample

BOX = 100  # pixels of a box's side
PITCH = 150  # pixels from one box's left edge to the next one's
BOXES = ("left", "middle", "right")
SIZE = (2 * PITCH + BOX, BOX)  # pixels of a picture
COLOURS = {"yellow": "yellow", "black": "black", "#0099ff": "blue"}  # as records write them
SHAPES = ("circle", "square", "triangle")
ORDERS = tuple(itertools.permutations(range(3)))  # by the last number of a sample's name: which of its boxes stands left, middle, right

_GAP = 1  # pixels between a block and the one it stands on


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


def items(record: Record) -> list[Item]:
    """The items of a record's boxes. BadSample for what is no NLVR record, or an item outside its box."""
    boxes = record.fields.get("boxes")
    if not (isinstance(boxes, list) and len(boxes) == len(BOXES) and all(isinstance(box, list) for box in boxes)):
        raise BadSample(f"{record.id} has no `boxes` of {len(BOXES)} lists of items, so it is no NLVR record")
    return [_item(one, place, record.id) for place, box in enumerate(order_of(record.id)) for one in boxes[box]]


def order_of(name: str) -> tuple[int, ...]:
    """Which of a record's boxes stands left, middle, right, by the record's name."""
    order = re.search(r"-([0-5])$", name)
    if order is None:
        raise BadSample(f"{name} does not end in the number of its boxes' order, -0 to -5, as names of NLVR samples do")
    return ORDERS[int(order[1])]


def _item(one: Mapping[str, Any], place: int, name: str) -> Item:
    try:
        shape, colour = str(one["type"]), COLOURS[str(one["color"]).lower()]
        side, x, y = float(one["size"]), float(one["x_loc"]), float(one["y_loc"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadSample(f"{name}: an item of its boxes has no usable {error}: {one!r}") from error
    if shape not in SHAPES or not (0 <= x <= BOX - side and 0 <= y <= BOX - side):
        raise BadSample(f"{name}: an item is not a {', '.join(SHAPES)} inside a box of {BOX} x {BOX} pixels: {one!r}")
    return Item(shape, colour, BOXES[place], PITCH * place + x + side / 2, y + side / 2, side / 2)


def boxes(found: Sequence[Item]) -> list[list[Item]]:
    """The items of each box, from left to right, the lowest first."""
    return [sorted((one for one in found if one.box == box), key=lambda one: -one.y) for box in BOXES]


def is_tower(inside: Sequence[Item]) -> bool:
    """Whether the items of one box, the lowest first, stand on each other and on the ground."""
    feet = [one.y + one.radius for one in inside]
    tops = [float(BOX), *(one.y - one.radius - _GAP for one in inside)]
    return bool(inside) and len({one.x for one in inside}) == 1 and feet == tops[:-1] and {one.shape for one in inside} == {"square"}


def _groups() -> list[list[Group]]:
    """Every group that can be asked for, by kind: the kind is drawn first, so that the many pairs do not drown the plain ones."""
    boxes = (None, *BOXES)
    plain = [Group(None, None, box) for box in boxes]
    coloured = [Group(colour, None, box) for colour in COLOURS.values() for box in boxes]
    shaped = [Group(None, shape, box) for shape in SHAPES for box in boxes]
    return [plain, coloured, shaped, [Group(colour, shape, None) for colour in COLOURS.values() for shape in SHAPES]]


GROUPS = _groups()
