"""What a statement about a picture of NLVR can be about: things that a picture has a number of, in the words of people.

Of pictures with loose items: groups of them, those that touch a wall, boxes that hold some. Of towers: blocks, by what they stand on or
where, and towers by their height, ends and colours. statements.py says something of the number.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from plait.data.boxes import BOX, BOXES, COLOURS, GROUPS, PITCH, SHAPES, Group, Item
from plait.data.lexicon import number_word, plural
from plait.data.questions import article, pick

_COLOURS = tuple(COLOURS.values())

Picture = Sequence[Item]
Rng = np.random.Generator


class Kind(NamedTuple):
    """Something that boxes have a number of: a noun, what tells which ("touching an edge", or nothing), and the number in one box."""

    noun: str
    which: str
    count: Callable[[Picture], int]  # of the items of a box, the lowest first
    part: str = ""  # what each of them holds, where they are boxes or towers

    def words(self, several: bool) -> str:
        """ "tower that has a blue block", "towers that have a blue block"."""
        return f"{plural(self.noun) if several else self.noun} {self.which.format(has='have' if several else 'has')}".rstrip()


class Part(NamedTuple):
    """Something that a box or a tower may hold: its words, and whether it does."""

    words: str
    holds: Callable[[Picture], bool]


def number_of(group: Group, found: Picture) -> int:
    return sum(map(group.holds, found))


def numeral(number: int, rng: Rng) -> str:
    return pick(rng, (number_word(number), str(number)))


def _so_many(noun: str, count: Callable[[Picture], int], rng: Rng, most: int) -> Part:
    """Exactly a number of something, or at least one."""
    number = int(rng.integers(1, most + 1))
    named = f"{numeral(number, rng)} {plural(noun) if number > 1 else noun}"
    exactly = Part(pick(rng, ("exactly ", "only ", "")) + named, lambda inside: count(inside) == number)
    return pick(rng, (exactly, exactly, Part(f"at least {named}", lambda inside: count(inside) >= number)))


def _some(noun: str, count: Callable[[Picture], int], rng: Rng) -> Part:
    """One or more, or so many."""
    return pick(rng, (Part(article(noun), lambda inside: count(inside) > 0), _so_many(noun, count, rng, 3)))


def _holding(noun: str, part: Part, rng: Rng) -> Kind:
    """Boxes, or the towers in them, that hold something."""
    joint = pick(rng, ("with", "with", "with", "that {has}", "which {has}"))
    return Kind(noun, f"{joint} {part.words}", lambda inside: int(part.holds(inside)), part.words)


def _both(one: Part, two: Part, joint: str = "and") -> Part:
    return Part(f"{one.words} {joint} {two.words}", lambda inside: one.holds(inside) and two.holds(inside))


# Items that lie about


def _group(rng: Rng) -> Kind:
    group = pick(rng, pick(rng, GROUPS))
    noun = _noun(group, rng)
    return Kind(noun, f"in the {group.box} box" if group.box else "", partial(number_of, group))


def _noun(group: Group, rng: Rng) -> str:
    noun = group.shape or pick(rng, ("item", "item", "object"))
    return f"{group.colour} {noun}" if group.colour else noun


def _anywhere(rng: Rng) -> Group:
    return pick(rng, [group for group in pick(rng, GROUPS) if group.box is None])


def _wall(rng: Rng) -> Kind:
    """Items that touch a wall of their box, a corner, or none."""
    group, place = _anywhere(rng), pick(rng, ("any", pick(rng, tuple(_PLACES))))
    how = pick(rng, ("touching", "touching", "closely touching", *(["not touching"] if place == "any" else [])))
    wanted = not how.startswith("not")
    return Kind(
        _noun(group, rng),
        f"{how} {pick(rng, _PLACES[place])}",
        lambda inside: sum(group.holds(item) and _touches(item, place) is wanted for item in inside),
    )


_PLACES = {
    "any": ("the edge", "an edge", "any edge", "the wall", "the side"),
    "bottom": ("the bottom", "the base", "the bottom of a box"),
    "top": ("the top", "the top of a box"),
    "left": ("the left wall", "left wall of a box", "the left side"),
    "right": ("the right wall", "right wall of a box", "the right side"),
    "corner": ("a corner", "the corner", "a corner of a box"),
}


def _touches(item: Item, place: str) -> bool:
    left = item.x - item.radius - PITCH * BOXES.index(item.box)
    walls = {
        "left": left == 0,
        "right": left + 2 * item.radius == BOX,
        "top": item.y == item.radius,
        "bottom": item.y + item.radius == BOX,
    }
    return walls[place] if place in walls else sum(walls.values()) > (place == "corner")


def _box(rng: Rng) -> Kind:
    return _holding(pick(rng, ("box", "box", "grey box", "grey square")), pick(rng, _IN_A_BOX)(rng), rng)


def _size(rng: Rng) -> Part:
    return _so_many(pick(rng, ("item", "object")), len, rng, 7)


def _some_items(rng: Rng) -> Part:
    """Items of one group, or of two; or of one and none of another."""
    groups = [Group(pick(rng, _COLOURS), pick(rng, (None, *SHAPES)), None) for _ in range(2)]
    one, two = (_some(_noun(group, rng), partial(number_of, group), rng) for group in groups)
    none = Part(f"no {_noun(groups[1], rng)}", lambda inside: not number_of(groups[1], inside))
    return pick(rng, (one, one, one, _both(one, two), _both(one, two), _both(one, none)))


def _coloured(thing: str, rng: Rng) -> Part:
    """How many colours its things have, or which."""
    number = int(rng.integers(1, 4))
    if rng.integers(2):
        every = pick(rng, ("all 3 colors", "all three colors", "all 3 different colors"))
        said = ("only one color", "2 different colors", every)[number - 1]
        return Part(f"{thing} of {said}", lambda inside: len({one.colour for one in inside}) == number)
    only = [_COLOURS[i] for i in rng.permutation(len(_COLOURS))[: 1 + number % 2]]
    named = " and ".join(only)
    words = pick(rng, (f"only {named} {thing}", f"{thing} of only {named} color"))
    return Part(words, lambda inside: {one.colour for one in inside} == set(only))


_IN_A_BOX = (_size, _some_items, _some_items, lambda rng: _coloured("items", rng))
OF_ITEMS = (_group, _wall, _wall, _wall, _box, _box, _box)


# Towers


def _block(rng: Rng) -> Kind:
    colour = pick(rng, _COLOURS)
    return Kind(f"{colour} block", "", partial(number_of, Group(colour, None, None)))


def _height(rng: Rng) -> Part:
    return _so_many("block", len, rng, 4)


def _end(rng: Rng) -> Part:
    """The colour of the block at the top or the base."""
    colour, (at, place) = pick(rng, _COLOURS), pick(rng, _ENDS)
    return Part(f"a {colour} block at the {place}", lambda inside: inside[at].colour == colour)


_ENDS = ((-1, "top"), (-1, "top"), (0, "base"), (0, "base"), (0, "bottom"))


def _some_blocks(rng: Rng) -> Part:
    """Blocks of a colour, or of two."""
    one, two = (_some(f"{colour} block", partial(number_of, Group(colour, None, None)), rng) for colour in _pair(rng))
    return pick(rng, (one, _both(one, two)))


def _pair(rng: Rng) -> tuple[str, str]:
    return pick(rng, _COLOURS), pick(rng, _COLOURS)


def _stands(upper: str, lower: str, inside: Picture) -> int:
    """How many blocks of one colour stand right on one of another."""
    return sum((high.colour, low.colour) == (upper, lower) for low, high in pairwise(inside))


def _over(rng: Rng) -> Part:
    """A block that stands right on another."""
    upper, lower = _pair(rng)
    above, below = (f"a {upper} block {pick(rng, _ABOVE)} a {lower} block", f"a {lower} block {pick(rng, _BELOW)} a {upper} block")
    stacked = [f"2 {upper} blocks stacked together"] if upper == lower else []
    return Part(pick(rng, (above, above, below, *stacked)), lambda inside: _stands(upper, lower, inside) > 0)


_ABOVE, _BELOW = ("over", "above", "on", "on top of"), ("below", "under")


def _tower(rng: Rng) -> Kind:
    """Towers that hold something, or are so high, or both."""
    if rng.integers(4):
        return _holding("tower", pick(rng, _IN_A_TOWER)(rng), rng)
    return _holding("tower", _both(_height(rng), _end(rng), pick(rng, ("with", "having", "and"))), rng)


def _of_colour(rng: Rng) -> Kind:
    colour = pick(rng, _COLOURS)
    return Kind(f"{colour} tower", "", lambda inside: int({one.colour for one in inside} == {colour}))


def _as_end(rng: Rng) -> Kind:
    """Blocks that are the top or the base of a tower, of any height or of some."""
    colour, (at, place), height = pick(rng, _COLOURS), pick(rng, _ENDS), _height(rng)
    which = f"as the {place} of a tower"
    if rng.integers(2):
        return Kind(f"{colour} block", which, lambda inside: int(inside[at].colour == colour))
    return Kind(f"{colour} block", f"{which} with {height.words}", lambda inside: int(inside[at].colour == colour and height.holds(inside)))


def _on(rng: Rng) -> Kind:
    """Blocks that stand right on others, or right under them."""
    upper, lower = _pair(rng)
    noun, which = pick(rng, ((upper, f"{pick(rng, _ABOVE)} a {lower} block"), (lower, f"{pick(rng, _BELOW)} a {upper} block")))
    return Kind(f"{noun} block", which, partial(_stands, upper, lower))


_IN_A_TOWER = (_height, _end, _end, _some_blocks, _over, lambda rng: _coloured("blocks", rng))
OF_TOWERS = (_block, _tower, _tower, _tower, _as_end, _on, _of_colour)
