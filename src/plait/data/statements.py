"""What is said of a picture of NLVR without being asked for a number or a place: a description, and statements that hold or do not.

Both are exact by the record, and worded as people word NLVR's sentences: groups of items, boxes with some of them, towers by their top,
base and height, items that touch a wall. A statement tells a picture from another of the data, and is asked of either: so no wording
holds more often than not, and nothing is learned without looking.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from plait.data.boxes import BOX, BOXES, COLOURS, GROUPS, PITCH, SHAPES, Group, Item, boxes, is_tower
from plait.data.lexicon import number_word, plural
from plait.data.questions import article, pick

_COLOURS = tuple(COLOURS.values())
_DRAWS = 20  # of something to count, for one of which two pictures have different numbers

Picture = Sequence[Item]


class Kind(NamedTuple):
    """Something that a picture has a number of: its name for one and for several."""

    one: str
    many: str
    count: Callable[[Picture], int]


def describe(found: Picture) -> str:
    """Every item by colour and shape, box after box; a tower from its top to its base."""
    return "; ".join(f"{name}: {_inside(inside)}" for name, inside in zip(BOXES, boxes(found), strict=True))


def all_towers(found: Picture) -> bool:
    """Whether the picture shows a tower, of one block or more, in each box."""
    return all(map(is_tower, boxes(found)))


def statement(found: Picture, other: Picture, rng: np.random.Generator) -> tuple[str, int, bool] | None:
    """A sentence about a number, that of `found`, and whether it holds; it holds for one of two pictures. None where none was found."""
    kinds = _OF_TOWERS if all_towers(found) and all_towers(other) else _OF_ITEMS
    for _ in range(_DRAWS):
        kind = pick(rng, kinds)(rng)
        mine, theirs = kind.count(found), kind.count(other)
        if mine != theirs:
            said, holds = pick(rng, _ways(kind, sorted((mine, theirs))))
            return f"There {said}.", mine, holds(mine)
    return None


def _inside(inside: Picture) -> str:
    if not inside:
        return "nothing"
    if len(inside) > 1 and is_tower(inside):
        return "a tower of " + ", ".join(one.colour for one in reversed(inside))
    groups = [Group(colour, shape, None) for colour in _COLOURS for shape in SHAPES]
    return ", ".join(_several(group, count) for group in groups if (count := _number(group, inside)))


def _several(group: Group, count: int) -> str:
    return article(group.words(False)) if count == 1 else f"{number_word(count)} {group.words(True)}"


def _number(group: Group, found: Picture) -> int:
    return sum(map(group.holds, found))


def _ways(kind: Kind, numbers: list[int]) -> list[tuple[str, Callable[[int], bool]]]:
    """Sentences that hold for one of two different numbers, the smaller first, and what they say of a number."""
    few, many = numbers
    ways: list[tuple[str, Callable[[int], bool]]] = [(_amount("exactly", n, kind), n.__eq__) for n in numbers if n]
    ways.append((_amount("at least", many, kind), lambda n: n >= many))
    if few == 0:
        ways += [(f"is {article(kind.one)}", bool), (f"is no {kind.one}", lambda n: n == 0)]
    return ways


def _amount(how: str, number: int, kind: Kind) -> str:
    return f"is {how} one {kind.one}" if number == 1 else f"are {how} {number_word(number)} {kind.many}"


# What is counted


def _group(rng: np.random.Generator) -> Kind:
    group = pick(rng, pick(rng, GROUPS))
    return Kind(group.words(False), group.words(True), lambda found: _number(group, found))


def _box(rng: np.random.Generator) -> Kind:
    """Boxes with so many items of a group, or with items of one colour only."""
    if rng.integers(2):
        colour = pick(rng, _COLOURS)
        which = f"with only {colour} items"
        return Kind(f"box {which}", f"boxes {which}", lambda found: sum({i.colour for i in inside} == {colour} for inside in boxes(found)))
    group, number = Group(pick(rng, _COLOURS), pick(rng, (None, *SHAPES)), None), int(rng.integers(1, 4))
    which = f"with {_several(group, number)}"
    return Kind(f"box {which}", f"boxes {which}", lambda found: sum(_number(group, inside) == number for inside in boxes(found)))


def _wall(rng: np.random.Generator) -> Kind:
    """Items that touch a wall of their box, or any."""
    group, side = pick(rng, [group for kind in GROUPS for group in kind if group.box is None]), pick(rng, (*_TOUCHES, None))
    touches = [_TOUCHES[side]] if side else list(_TOUCHES.values())
    where = f"touching {f'the {side}' if side else 'an edge'}"
    return Kind(
        f"{group.words(False)} {where}",
        f"{group.words(True)} {where}",
        lambda found: sum(group.holds(item) and any(touch(item) for touch in touches) for item in found),
    )


def _left(item: Item) -> float:
    return item.x - item.radius - PITCH * BOXES.index(item.box)


_TOUCHES: dict[str, Callable[[Item], bool]] = {
    "left wall": lambda item: _left(item) == 0,
    "right wall": lambda item: _left(item) + 2 * item.radius == BOX,
    "top": lambda item: item.y == item.radius,
    "bottom": lambda item: item.y + item.radius == BOX,
}


def _block(rng: np.random.Generator) -> Kind:
    colour = pick(rng, _COLOURS)
    return Kind(f"{colour} block", plural(f"{colour} block"), lambda found: sum(item.colour == colour for item in found))


def _tower(rng: np.random.Generator) -> Kind:
    """Towers by the colour of their top or base, or by their height."""
    if rng.integers(2):
        number = int(rng.integers(1, 5))
        which = "with exactly one block" if number == 1 else f"with exactly {number_word(number)} blocks"
        return Kind(f"tower {which}", f"towers {which}", lambda found: sum(len(inside) == number for inside in boxes(found)))
    colour, (place, at) = pick(rng, _COLOURS), pick(rng, (("top", -1), ("base", 0)))
    which = f"with a {colour} block at the {place}"
    return Kind(f"tower {which}", f"towers {which}", lambda found: sum(inside[at].colour == colour for inside in boxes(found)))


def _over(rng: np.random.Generator) -> Kind:
    """Blocks that stand right on others."""
    upper, lower = pick(rng, _COLOURS), pick(rng, _COLOURS)
    return Kind(
        f"{upper} block over a {lower} block",
        f"{upper} blocks over a {lower} block",
        lambda found: sum((high.colour, low.colour) == (upper, lower) for inside in boxes(found) for low, high in pairwise(inside)),
    )


_OF_ITEMS = (_group, _box, _wall)
_OF_TOWERS = (_block, _box, _tower, _tower, _over)
