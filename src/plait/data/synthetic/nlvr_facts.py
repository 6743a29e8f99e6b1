"""What a statement about a picture of NLVR can be about: things that its boxes have a number of, in the words of people.

Of pictures with loose items: groups of them, those that touch a wall, boxes that hold some. Of towers: blocks, by what they stand on or
where, and towers by their height, ends and colours. statements.py says something of the number.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from plait.data.synthetic.lexicon import number_word, plural
from plait.data.synthetic.nlvr_record import BOX, BOXES, COLOURS, GROUPS, PITCH, SHAPES, Group, Item
from plait.data.synthetic.questions import article, pick

_COLOURS = tuple(COLOURS.values())

Picture = Sequence[Item]


class Draw(NamedTuple):
    """What decides what is said, and how: plainly is always in the first words, of fewer things."""

    rng: np.random.Generator
    plain: bool = False

    def one(self, of: Sequence[Any]) -> Any:
        return pick(self.rng, of)

    def word(self, *ways: str) -> str:
        return ways[0] if self.plain else pick(self.rng, ways)

    def number(self, most: int) -> int:
        """1 to `most`."""
        return int(self.rng.integers(1, most + 1))

    def numeral(self, number: int) -> str:
        return self.word(number_word(number), str(number))


class Kind(NamedTuple):
    """Something that boxes have a number of: a noun, what tells which ("touching an edge", or nothing), and the number in one box."""

    noun: str
    which: str
    count: Callable[[Picture], int]  # of the items of a box, the lowest first
    part: str = ""  # what each of them holds, where they are boxes or towers

    def words(self, several: bool) -> str:
        """ "tower that has a blue block", "towers that have a blue block"."""
        which = self.which.format(has="have" if several else "has", s="" if several else "s", **{"is": "are" if several else "is"})
        return f"{plural(self.noun) if several else self.noun} {which}".rstrip()


class Part(NamedTuple):
    """Something that a box or a tower may hold: its words, and whether it does."""

    words: str
    holds: Callable[[Picture], bool]


def number_of(group: Group, found: Picture) -> int:
    return sum(map(group.holds, found))


def _so_many(noun: str, count: Callable[[Picture], int], draw: Draw, most: int) -> Part:
    """Exactly a number of something, or at least one."""
    number = draw.number(most)
    named = f"{draw.numeral(number)} {plural(noun) if number > 1 else noun}"
    if not draw.plain and draw.number(3) == 1:
        return Part(f"at least {named}", lambda inside: count(inside) >= number)
    return Part(draw.word("exactly ", "only ", "") + named, lambda inside: count(inside) == number)


def _some(noun: str, count: Callable[[Picture], int], draw: Draw) -> Part:
    """One or more, or so many."""
    return _so_many(noun, count, draw, 3) if draw.number(2) == 1 else Part(article(noun), lambda inside: count(inside) > 0)


def _holding(noun: str, part: Part, draw: Draw) -> Kind:
    """Boxes, or the towers in them, that hold something."""
    joint = draw.word(*["with"] * 5, "that {has}", "which {has}", "having", draw.word("that contain{s}", "which contain{s}"))
    return Kind(noun, f"{joint} {part.words}", lambda inside: int(part.holds(inside)), part.words)


def _both(one: Part, two: Part, joint: str = "and") -> Part:
    return Part(f"{one.words}{'' if joint == ',' else ' '}{joint} {two.words}", lambda inside: one.holds(inside) and two.holds(inside))


# Items that lie about


def _group(draw: Draw) -> Kind:
    group = draw.one(draw.one(GROUPS))
    return Kind(_noun(group, draw), f"in the {group.box} box" if group.box else "", partial(number_of, group))


def _noun(group: Group, draw: Draw) -> str:
    noun = group.shape or draw.word("item", "item", "object")
    return f"{group.colour} {noun}" if group.colour else noun


def _anywhere(draw: Draw) -> Group:
    return draw.one([group for group in draw.one(GROUPS) if group.box is None])


def _wall(draw: Draw) -> Kind:
    """Items that touch a wall of their box, a corner, or none."""
    group, place = _anywhere(draw), draw.one(("any", draw.one(tuple(_PLACES))))
    wanted = draw.plain or place != "any" or draw.number(4) > 1
    how = draw.word("touching", "touching", "closely touching", "that {is} touching") if wanted else "not touching"
    return Kind(
        _noun(group, draw),
        f"{how} {draw.word(*_PLACES[place])}",
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


def _box(draw: Draw) -> Kind:
    parts = (_some_items, _coloured_items) if draw.plain else _IN_A_BOX
    return _holding(draw.word("box", "box", "grey box", "grey square"), draw.one(parts)(draw), draw)


def _size(draw: Draw) -> Part:
    return _so_many(draw.word("item", "item", "object"), len, draw, 7)


def _some_items(draw: Draw) -> Part:
    """Items of one group, of two or of three; or of one and none of another."""
    groups = [Group(colour, draw.one((None, *SHAPES)), None) for colour in _shuffled(draw)]
    first, second, third = (_some(_noun(group, draw), partial(number_of, group), draw) for group in groups)
    if draw.plain or draw.number(2) == 1:
        return first
    noun = draw.word(f"no {_noun(groups[1], draw)}", f"no {plural(_noun(groups[1], draw))}")
    none = Part(noun, lambda inside: not number_of(groups[1], inside))
    return draw.one((_both(first, second), _both(first, second), _both(first, none), _both(_both(first, second, ","), third)))


def _shuffled(draw: Draw) -> list[str]:
    return [str(colour) for colour in draw.rng.permutation(_COLOURS)]


def _one_each(draw: Draw) -> Part:
    """So many items of one colour and so many of another, under one noun."""
    (one, first), (two, second) = ((colour, draw.number(2)) for colour in _shuffled(draw)[:2])
    noun = draw.word("item", "object") if second == 1 else draw.word("items", "objects")
    return Part(
        f"{draw.numeral(first)} {one} and {draw.numeral(second)} {two} {noun}",
        lambda inside: all(number_of(Group(colour, None, None), inside) == n for colour, n in ((one, first), (two, second))),
    )


def _touching(draw: Draw) -> Part:
    """Items that touch a wall of the box, or a corner."""
    group, place = _anywhere(draw), draw.one(("any", "corner", draw.one(tuple(_PLACES))))
    some = _some(_noun(group, draw), lambda inside: sum(group.holds(item) and _touches(item, place) for item in inside), draw)
    return Part(f"{some.words} touching {draw.word(*_PLACES[place])}", some.holds)


def _one_of_them(draw: Draw) -> Part:
    """So many items, and the colour of one that is above all others, or touches a wall."""
    colour, size, top = draw.one(_COLOURS), _so_many(draw.word("item", "object"), len, draw, 4), draw.number(2) == 1
    one = draw.word(f"a {colour} item", f"a {colour} one", f"the {colour} one is")
    words = f"{one} {draw.word('on top') if top else 'touching ' + draw.word(*_PLACES['any'])}"
    return _both(
        size,
        Part(
            words,
            lambda inside: _top(inside) == colour if top else any(item.colour == colour and _touches(item, "any") for item in inside),
        ),
    )


def _top(inside: Picture) -> str | None:
    return min(inside, key=lambda item: item.y - item.radius).colour if inside else None


def _coloured(thing: str, draw: Draw) -> Part:
    """How many colours all things of a box have, or so many things; or which."""
    number, amount = draw.number(3), None if draw.plain or draw.number(3) > 1 else _so_many(thing, len, draw, 5)
    many = amount.words if amount else plural(thing)
    if not draw.plain and draw.number(2) == 1:
        every = f"all {draw.numeral(3)} {draw.word('', 'different ')}colors"
        said = ("only one color", f"{draw.numeral(2)} different colors", every)[number - 1]
        return _all_of(f"{many} of {said}", lambda colours: len(colours) == number, amount)
    only = [_COLOURS[i] for i in draw.rng.permutation(len(_COLOURS))[: 1 if draw.plain else 1 + number % 2]]
    named = " and ".join(only)
    ways = [f"{many} of {draw.word('', 'only ')}{named} color", *([] if amount else [f"only {named} {many}"])]
    return _all_of(draw.word(*reversed(ways)), lambda colours: colours == set(only), amount)


def _all_of(words: str, are: Callable[[set[str]], bool], amount: Part | None) -> Part:
    return Part(words, lambda inside: are({one.colour for one in inside}) and (amount is None or amount.holds(inside)))


def _coloured_items(draw: Draw) -> Part:
    return _coloured("item", draw)


def _coloured_blocks(draw: Draw) -> Part:
    return _coloured("block", draw)


_IN_A_BOX = (_size, *[_some_items] * 3, _one_each, _touching, _one_of_them, *[_coloured_items] * 2)


# Towers


def _block(draw: Draw) -> Kind:
    colour = draw.one(_COLOURS)
    return Kind(f"{colour} block", "", partial(number_of, Group(colour, None, None)))


def _height(draw: Draw) -> Part:
    if draw.plain or draw.number(8) > 1:
        return _so_many("block", len, draw, 4)
    number = draw.number(3)
    return Part(f"more than {draw.numeral(number)} {plural('block') if number > 1 else 'block'}", lambda inside: len(inside) > number)


def _end(draw: Draw) -> Part:
    """The colour of the block at the top or the base."""
    colour, (at, place) = draw.one(_COLOURS), _place(draw)
    words = (*[f"a {colour} block at the {place}"] * 5, f"{draw.numeral(1)} {colour} block at the {place}", f"a {colour} {place}")
    return Part(draw.word(*words), lambda inside: inside[at].colour == colour)


def _place(draw: Draw) -> tuple[int, str]:
    return draw.one(((-1, "top"), (0, draw.word("base", "base", "bottom"))))


def _some_blocks(draw: Draw) -> Part:
    """Blocks of a colour, of two or of three."""
    one, two, three = (_some(f"{colour} block", partial(number_of, Group(colour, None, None)), draw) for colour in _shuffled(draw))
    return one if draw.plain else draw.one((one, one, one, _both(one, two), _both(one, two), _both(_both(one, two, ","), three)))


def _pair(draw: Draw) -> tuple[str, str]:
    return draw.one(_COLOURS), draw.one(_COLOURS)


def _stands(upper: str, lower: str, inside: Picture) -> int:
    """How many blocks of one colour stand right on one of another."""
    return sum((high.colour, low.colour) == (upper, lower) for low, high in pairwise(inside))


def _over(draw: Draw) -> Part:
    """A block that stands right on another."""
    upper, lower = _pair(draw)
    above, below = (f"a {upper} block {draw.word(*_ABOVE)} a {lower} block", f"a {lower} block {draw.word(*_BELOW)} a {upper} block")
    stacked = [f"2 {upper} blocks stacked together"] if upper == lower else []
    if not draw.plain and draw.number(10) == 1:
        words = f"a {lower} block {draw.word(*_BELOW)} a different colored block"
        return Part(words, lambda inside: any(high.colour != low.colour == lower for low, high in pairwise(inside)))
    return Part(draw.word(above, above, below, *stacked), lambda inside: _stands(upper, lower, inside) > 0)


def _second(draw: Draw) -> Kind:
    """Towers by the colour of their second block."""
    colour = draw.one(_COLOURS)
    which = f"{draw.word('where', 'that', 'in which')} the second block {draw.word('', 'from the base ')}is {colour}"
    return Kind("tower", which, lambda inside: int(len(inside) > 1 and inside[1].colour == colour))


_ABOVE, _BELOW = ("over", "above", "on", "on top of"), ("below", "under")


def _tower(draw: Draw) -> Kind:
    """Towers that hold something, or are so high, or both."""
    if draw.plain:
        return _holding("tower", draw.one((_height, _end, _end))(draw), draw)
    if draw.number(20) == 1:
        return _second(draw)
    if draw.number(4) > 1:
        return _holding("tower", draw.one(_IN_A_TOWER)(draw), draw)
    if draw.number(2) == 1:
        return _holding("tower", _both(_height(draw), draw.one((_end, _end, _over))(draw), draw.word("with", "having", "and")), draw)
    number, part = draw.number(4), draw.one((_end, _some_blocks))(draw)
    noun = f"{draw.numeral(number)} {'block' if number == 1 else draw.word('blocks', 'block')} tower"
    return _holding(noun, Part(part.words, lambda inside: len(inside) == number and part.holds(inside)), draw)


def _of_colour(draw: Draw) -> Kind:
    """Towers of one colour, of any height or of some."""
    colour, height = draw.one(_COLOURS), None if draw.plain or draw.number(2) == 1 else _height(draw)
    return Kind(
        f"{colour} tower",
        f"with {height.words}" if height else "",
        lambda inside: int({one.colour for one in inside} == {colour} and (height is None or height.holds(inside))),
    )


def _as_end(draw: Draw) -> Kind:
    """Blocks that are the top or the base of a tower, of any height or of some."""
    colour, (at, place), height = draw.one(_COLOURS), _place(draw), None if draw.plain or draw.number(2) == 1 else _height(draw)
    return Kind(
        f"{colour} block",
        f"as the {place} of a tower" + (f" with {height.words}" if height else ""),
        lambda inside: int(inside[at].colour == colour and (height is None or height.holds(inside))),
    )


def _on(draw: Draw) -> Kind:
    """Blocks that stand right on others, or right under them."""
    upper, lower = _pair(draw)
    above = Kind(f"{upper} block", f"{draw.word(*_ABOVE)} a {lower} block", partial(_stands, upper, lower))
    return draw.one((above, above._replace(noun=f"{lower} block", which=f"{draw.word(*_BELOW)} a {upper} block")))


_IN_A_TOWER = (_height, _end, _end, _end, _some_blocks, _over, _over, _coloured_blocks)

OF_ITEMS = (_group, *[_wall] * 4, *[_box] * 5)  # about as often as people speak of them
OF_TOWERS = (_block, *[_tower] * 6, *[_as_end] * 2, _on, _of_colour)
