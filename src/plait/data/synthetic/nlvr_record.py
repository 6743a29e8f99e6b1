"""Parse records of Cornell NLVR: the items in their boxes with positions in the picture, and the groups that questions are about.

A picture of NLVR v1 (Suhr et al. 2017) is three boxes of 100 x 100 pixels, 50 apart, and its record lists every item: `type`, `color`,
`size` and the corner `x_loc`, `y_loc` inside its box. Each sentence has six pictures, which show the boxes in six orders, while records
list them in the first; a sample's name ends in the number of its order. Half of the pictures show towers, blocks stacked on each other.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from plait.data.records import Record
from plait.data.synthetic.lexicon import plural
from plait.errors import BadSample

BOX = 100
"""Pixels along a box's side."""
PITCH = 150
"""Pixels from one box's left edge to the next one's."""
BOXES = ("left", "middle", "right")
SIZE = (2 * PITCH + BOX, BOX)
"""Width and height of a picture in pixels."""
COLOURS = {"yellow": "yellow", "black": "black", "#0099ff": "blue"}
"""Names of colours by how records write them."""
SHAPES = ("circle", "square", "triangle")
ORDERS = tuple(itertools.permutations(range(3)))
"""By the last number of a sample's name: indices of the boxes at left, middle, right."""

_GAP = 1  # pixels between a block and the one below it


class Item(NamedTuple):
    """One item: its box ("left", ...), its centre (x, y) in pixels of the picture, and `radius`, half its square's side."""

    shape: str
    colour: str
    box: str
    x: float
    y: float
    radius: float


class ObjectGroup(NamedTuple):
    """The items that a question is about: those of this colour, this shape and this box; None means any."""

    colour: str | None
    shape: str | None
    box: str | None

    def holds(self, item: Item) -> bool:
        """Return whether the item belongs to the group."""
        return self.colour in (None, item.colour) and self.shape in (None, item.shape) and self.box in (None, item.box)

    def words(self, several: bool) -> str:
        """Return the group's name: "yellow circles" or "items in the left box"; singular unless `several`."""
        noun = self.shape or "item"
        named = f"{self.colour} {noun}" if self.colour else noun
        return (plural(named) if several else named) + (f" in the {self.box} box" if self.box else "")


def items(record: Record) -> list[Item]:
    """Return all items of a record's picture, box by box. Raises BadSample if it is no NLVR record, or an item is outside its box."""
    boxes = record.fields.get("boxes")
    if not (isinstance(boxes, list) and len(boxes) == len(BOXES) and all(isinstance(box, list) for box in boxes)):
        raise BadSample(f"{record.id} has no `boxes` of {len(BOXES)} lists of items, so it is no NLVR record")
    return [_item(entry, column, record.id) for column, box in enumerate(order_of(record.id)) for entry in boxes[box]]


def order_of(name: str) -> tuple[int, ...]:
    """Return which of the record's boxes are at left, middle and right. A name that ends in -1 gives (0, 2, 1).

    Raises BadSample for a name that does not end in an order.
    """
    order = re.search(r"-([0-5])$", name)
    if order is None:
        raise BadSample(f"{name} does not end in the number of its boxes' order, -0 to -5, as names of NLVR samples do")
    return ORDERS[int(order[1])]


def _item(entry: Mapping[str, Any], column: int, name: str) -> Item:
    try:
        shape, colour = str(entry["type"]), COLOURS[str(entry["color"]).lower()]
        side, x, y = float(entry["size"]), float(entry["x_loc"]), float(entry["y_loc"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadSample(f"{name}: an item of its boxes has no usable {error}: {entry!r}") from error
    if shape not in SHAPES or not (0 <= x <= BOX - side and 0 <= y <= BOX - side):
        raise BadSample(f"{name}: an item is not a {', '.join(SHAPES)} inside a box of {BOX} x {BOX} pixels: {entry!r}")
    return Item(shape, colour, BOXES[column], PITCH * column + x + side / 2, y + side / 2, side / 2)


def boxes(picture: Sequence[Item]) -> list[list[Item]]:
    """Split the items of a picture by box, from left to right; within a box the lowest item is first."""
    return [sorted((item for item in picture if item.box == box), key=lambda item: -item.y) for box in BOXES]


def is_tower(box: Sequence[Item]) -> bool:
    """Return whether the items of one box, the lowest first, are square blocks stacked on the ground. One alone is; none are not."""
    bottoms = [item.y + item.radius for item in box]
    supports = [float(BOX), *(item.y - item.radius - _GAP for item in box)]
    return bool(box) and len({item.x for item in box}) == 1 and bottoms == supports[:-1] and {item.shape for item in box} == {"square"}


def _groups() -> list[list[ObjectGroup]]:
    """Return every group that can be asked for, by kind: the kind is drawn first, so that kinds are equally frequent."""
    boxes = (None, *BOXES)
    plain = [ObjectGroup(None, None, box) for box in boxes]
    coloured = [ObjectGroup(colour, None, box) for colour in COLOURS.values() for box in boxes]
    shaped = [ObjectGroup(None, shape, box) for shape in SHAPES for box in boxes]
    return [plain, coloured, shaped, [ObjectGroup(colour, shape, None) for colour in COLOURS.values() for shape in SHAPES]]


GROUPS = _groups()
