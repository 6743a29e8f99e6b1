"""Facts that statements about pictures of NLVR count, chosen at random and worded as people word them.

A picture is three boxes of items, loose or stacked to towers of blocks. A fact is something countable in a box. With loose items: groups
of items, items that touch a wall, boxes with certain contents; with towers: blocks by colour and position, towers by height, ends and
colours. statements.py makes sentences of how often a fact is in a picture. Random choices must stay in this order: a change would change
every statement.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np

from plait.data.synthetic.lexicon import article, number_word, plural
from plait.data.synthetic.nlvr_record import BOX, BOXES, COLOURS, GROUPS, PITCH, SHAPES, Item, ObjectGroup
from plait.data.synthetic.questions import pick

_COLOURS = tuple(COLOURS.values())

T = TypeVar("T")
Items = Sequence[Item]
"""The items of a picture; or of one of its boxes, the lowest first."""


class Draw(NamedTuple):
    """A generator of random facts and wordings. `plain`: fewer kinds of facts, and always the first of their wordings."""

    rng: np.random.Generator
    plain: bool = False

    def choice(self, options: Sequence[T]) -> T:
        """Return one of the options, each with the same probability."""
        return pick(self.rng, options)

    def word(self, *wordings: str) -> str:
        """Return one of several wordings of the same meaning, at random; the first if `plain`."""
        return wordings[0] if self.plain else pick(self.rng, wordings)

    def number(self, largest: int) -> int:
        """Return a random number from 1 to `largest`, inclusive."""
        return int(self.rng.integers(1, largest + 1))

    def numeral(self, number: int) -> str:
        """Return a number as a word ("two") or in digits ("2"), at random; always as a word if `plain`."""
        return self.word(number_word(number), str(number))


class Fact(NamedTuple):
    """Something that can be counted in a box. `which` qualifies the `noun`, such as "touching an edge", or is ""; `count` counts it.

    `contents`: of a fact about whole boxes or towers, the words of the property that they are counted by, such as "two black blocks".
    """

    noun: str
    which: str
    count: Callable[[Items], int]
    contents: str = ""

    def words(self, several: bool) -> str:
        """Return the noun phrase: "tower that has a blue block", or for `several` "towers that have a blue block"."""
        which = self.which.format(has="have" if several else "has", s="" if several else "s", **{"is": "are" if several else "is"})
        return f"{plural(self.noun) if several else self.noun} {which}".rstrip()


class Property(NamedTuple):
    """A condition on one box or tower: its `words`, such as "two black blocks", and `holds`, the test of the box's items."""

    words: str
    holds: Callable[[Items], bool]


def number_of(group: ObjectGroup, items: Items) -> int:
    """Return how many of the items belong to the group."""
    return sum(map(group.holds, items))


def _exact_number(noun: str, count: Callable[[Items], int], draw: Draw, largest: int) -> Property:
    """Draw the property of having a number of something, from 1 to `largest`: exactly, or at least."""
    number = draw.number(largest)
    amount = f"{draw.numeral(number)} {plural(noun) if number > 1 else noun}"
    if not draw.plain and draw.number(3) == 1:
        return Property(f"at least {amount}", lambda box: count(box) >= number)
    return Property(draw.word("exactly ", "only ", "") + amount, lambda box: count(box) == number)


def _some(noun: str, count: Callable[[Items], int], draw: Draw) -> Property:
    """Draw the property of having something, or a number of it."""
    return _exact_number(noun, count, draw, 3) if draw.number(2) == 1 else Property(article(noun), lambda box: count(box) > 0)


def _that_holds(noun: str, contents: Property, draw: Draw) -> Fact:
    """Return the fact of boxes, or towers, with a property."""
    joint = draw.word(*["with"] * 5, "that {has}", "which {has}", "having", draw.word("that contain{s}", "which contain{s}"))
    return Fact(noun, f"{joint} {contents.words}", lambda box: int(contents.holds(box)), contents.words)


def _both(first: Property, second: Property, joint: str = "and") -> Property:
    words = f"{first.words}{'' if joint == ',' else ' '}{joint} {second.words}"
    return Property(words, lambda box: first.holds(box) and second.holds(box))


# Loose items


def _group(draw: Draw) -> Fact:
    group = draw.choice(draw.choice(GROUPS))
    return Fact(_noun(group, draw), f"in the {group.box} box" if group.box else "", partial(number_of, group))


def _noun(group: ObjectGroup, draw: Draw) -> str:
    noun = group.shape or draw.word("item", "item", "object")
    return f"{group.colour} {noun}" if group.colour else noun


def _unplaced_group(draw: Draw) -> ObjectGroup:
    return draw.choice([group for group in draw.choice(GROUPS) if group.box is None])


def _wall(draw: Draw) -> Fact:
    """Draw a fact about items that touch a wall of their box, a corner, or no wall."""
    group, wall = _unplaced_group(draw), draw.choice(("any", draw.choice(tuple(_WALLS))))
    touching = draw.plain or wall != "any" or draw.number(4) > 1
    how = draw.word("touching", "touching", "closely touching", "that {is} touching") if touching else "not touching"
    return Fact(
        _noun(group, draw),
        f"{how} {draw.word(*_WALLS[wall])}",
        lambda box: sum(group.holds(item) and _touches(item, wall) is touching for item in box),
    )


_WALLS = {
    "any": ("the edge", "an edge", "any edge", "the wall", "the side"),
    "bottom": ("the bottom", "the base", "the bottom of a box"),
    "top": ("the top", "the top of a box"),
    "left": ("the left wall", "left wall of a box", "the left side"),
    "right": ("the right wall", "right wall of a box", "the right side"),
    "corner": ("a corner", "the corner", "a corner of a box"),
}


def _touches(item: Item, wall: str) -> bool:
    left = item.x - item.radius - PITCH * BOXES.index(item.box)
    touched = {
        "left": left == 0,
        "right": left + 2 * item.radius == BOX,
        "top": item.y == item.radius,
        "bottom": item.y + item.radius == BOX,
    }
    return touched[wall] if wall in touched else sum(touched.values()) > (wall == "corner")


def _box(draw: Draw) -> Fact:
    contents = (_some_items, _coloured_items) if draw.plain else _IN_A_BOX
    return _that_holds(draw.word("box", "box", "grey box", "grey square"), draw.choice(contents)(draw), draw)


def _size(draw: Draw) -> Property:
    return _exact_number(draw.word("item", "item", "object"), len, draw, 7)


def _some_items(draw: Draw) -> Property:
    """Draw the property of having items of one group, of two or of three; or of one and none of another."""
    groups = [ObjectGroup(colour, draw.choice((None, *SHAPES)), None) for colour in _shuffled(draw)]
    first, second, third = (_some(_noun(group, draw), partial(number_of, group), draw) for group in groups)
    if draw.plain or draw.number(2) == 1:
        return first
    words = draw.word(f"no {_noun(groups[1], draw)}", f"no {plural(_noun(groups[1], draw))}")
    none = Property(words, lambda box: not number_of(groups[1], box))
    return draw.choice((_both(first, second), _both(first, second), _both(first, none), _both(_both(first, second, ","), third)))


def _shuffled(draw: Draw) -> list[str]:
    return [str(colour) for colour in draw.rng.permutation(_COLOURS)]


def _one_each(draw: Draw) -> Property:
    """Draw the property of having given numbers of items of two colours, under one noun."""
    (first, first_number), (second, second_number) = ((colour, draw.number(2)) for colour in _shuffled(draw)[:2])
    noun = draw.word("item", "object") if second_number == 1 else draw.word("items", "objects")
    numbers = {first: first_number, second: second_number}
    return Property(
        f"{draw.numeral(first_number)} {first} and {draw.numeral(second_number)} {second} {noun}",
        lambda box: all(number_of(ObjectGroup(colour, None, None), box) == number for colour, number in numbers.items()),
    )


def _touching(draw: Draw) -> Property:
    """Draw the property of having items that touch a wall of the box, or a corner."""
    group, wall = _unplaced_group(draw), draw.choice(("any", "corner", draw.choice(tuple(_WALLS))))
    some = _some(_noun(group, draw), lambda box: sum(group.holds(item) and _touches(item, wall) for item in box), draw)
    return Property(f"{some.words} touching {draw.word(*_WALLS[wall])}", some.holds)


def _special_item(draw: Draw) -> Property:
    """Draw the property of having a number of items, with the colour of the topmost or of one that touches a wall."""
    colour, size, on_top = draw.choice(_COLOURS), _exact_number(draw.word("item", "object"), len, draw, 4), draw.number(2) == 1
    noun = draw.word(f"a {colour} item", f"a {colour} one", f"the {colour} one is")
    words = f"{noun} {draw.word('on top') if on_top else 'touching ' + draw.word(*_WALLS['any'])}"
    if on_top:
        return _both(size, Property(words, lambda box: _top_colour(box) == colour))
    return _both(size, Property(words, lambda box: any(item.colour == colour and _touches(item, "any") for item in box)))


def _top_colour(box: Items) -> str | None:
    return min(box, key=lambda item: item.y - item.radius).colour if box else None


def _coloured(noun: str, draw: Draw) -> Property:
    """Draw a property of the colours of all items of a box: how many, or which. The number of items may be part of it."""
    number, amount = draw.number(3), None if draw.plain or draw.number(3) > 1 else _exact_number(noun, len, draw, 5)
    subject = amount.words if amount else plural(noun)
    if not draw.plain and draw.number(2) == 1:
        three = f"all {draw.numeral(3)} {draw.word('', 'different ')}colors"
        colours = ("only one color", f"{draw.numeral(2)} different colors", three)[number - 1]
        return _all_coloured(f"{subject} of {colours}", lambda colours: len(colours) == number, amount)
    chosen = [_COLOURS[i] for i in draw.rng.permutation(len(_COLOURS))[: 1 if draw.plain else 1 + number % 2]]
    names = " and ".join(chosen)
    wordings = [f"{subject} of {draw.word('', 'only ')}{names} color", *([] if amount else [f"only {names} {subject}"])]
    return _all_coloured(draw.word(*reversed(wordings)), lambda colours: colours == set(chosen), amount)


def _all_coloured(words: str, test: Callable[[set[str]], bool], amount: Property | None) -> Property:
    return Property(words, lambda box: test({item.colour for item in box}) and (amount is None or amount.holds(box)))


def _coloured_items(draw: Draw) -> Property:
    return _coloured("item", draw)


def _coloured_blocks(draw: Draw) -> Property:
    return _coloured("block", draw)


_IN_A_BOX = (_size, *[_some_items] * 3, _one_each, _touching, _special_item, *[_coloured_items] * 2)


# Towers


def _block(draw: Draw) -> Fact:
    colour = draw.choice(_COLOURS)
    return Fact(f"{colour} block", "", partial(number_of, ObjectGroup(colour, None, None)))


def _height(draw: Draw) -> Property:
    if draw.plain or draw.number(8) > 1:
        return _exact_number("block", len, draw, 4)
    number = draw.number(3)
    return Property(f"more than {draw.numeral(number)} {plural('block') if number > 1 else 'block'}", lambda box: len(box) > number)


def _end(draw: Draw) -> Property:
    """Draw the property of having a colour at the top or the base."""
    colour, (index, end) = draw.choice(_COLOURS), _end_of_tower(draw)
    words = (*[f"a {colour} block at the {end}"] * 5, f"{draw.numeral(1)} {colour} block at the {end}", f"a {colour} {end}")
    return Property(draw.word(*words), lambda box: box[index].colour == colour)


def _end_of_tower(draw: Draw) -> tuple[int, str]:
    """Draw an end of a tower: its index among the blocks, and its name."""
    return draw.choice(((-1, "top"), (0, draw.word("base", "base", "bottom"))))


def _some_blocks(draw: Draw) -> Property:
    """Draw the property of having blocks of one colour, of two or of three."""
    first, second, third = (
        _some(f"{colour} block", partial(number_of, ObjectGroup(colour, None, None)), draw) for colour in _shuffled(draw)
    )
    if draw.plain:
        return first
    two = _both(first, second)
    return draw.choice((first, first, first, two, two, _both(_both(first, second, ","), third)))


def _pair(draw: Draw) -> tuple[str, str]:
    return draw.choice(_COLOURS), draw.choice(_COLOURS)


def _number_stacked(upper: str, lower: str, box: Items) -> int:
    """Return how many blocks of one colour are directly on a block of another."""
    return sum((high.colour, low.colour) == (upper, lower) for low, high in pairwise(box))


def _over(draw: Draw) -> Property:
    """Draw the property of having a block directly on another."""
    upper, lower = _pair(draw)
    above, below = (f"a {upper} block {draw.word(*_ABOVE)} a {lower} block", f"a {lower} block {draw.word(*_BELOW)} a {upper} block")
    stacked = [f"2 {upper} blocks stacked together"] if upper == lower else []
    if not draw.plain and draw.number(10) == 1:
        words = f"a {lower} block {draw.word(*_BELOW)} a different colored block"
        return Property(words, lambda box: any(high.colour != low.colour == lower for low, high in pairwise(box)))
    return Property(draw.word(above, above, below, *stacked), lambda box: _number_stacked(upper, lower, box) > 0)


def _second(draw: Draw) -> Fact:
    """Draw a fact about towers by the colour of their second block."""
    colour = draw.choice(_COLOURS)
    which = f"{draw.word('where', 'that', 'in which')} the second block {draw.word('', 'from the base ')}is {colour}"
    return Fact("tower", which, lambda box: int(len(box) > 1 and box[1].colour == colour))


_ABOVE, _BELOW = ("over", "above", "on", "on top of"), ("below", "under")


def _tower(draw: Draw) -> Fact:
    """Draw a fact about towers by contents, by height, or by both."""
    if draw.plain:
        return _that_holds("tower", draw.choice((_height, _end, _end))(draw), draw)
    if draw.number(20) == 1:
        return _second(draw)
    if draw.number(4) > 1:
        return _that_holds("tower", draw.choice(_IN_A_TOWER)(draw), draw)
    if draw.number(2) == 1:
        return _that_holds("tower", _both(_height(draw), draw.choice((_end, _end, _over))(draw), draw.word("with", "having", "and")), draw)
    number, contents = draw.number(4), draw.choice((_end, _some_blocks))(draw)
    noun = f"{draw.numeral(number)} {'block' if number == 1 else draw.word('blocks', 'block')} tower"
    return _that_holds(noun, Property(contents.words, lambda box: len(box) == number and contents.holds(box)), draw)


def _of_colour(draw: Draw) -> Fact:
    """Draw a fact about towers of one colour, of any height or of a given one."""
    colour, height = draw.choice(_COLOURS), None if draw.plain or draw.number(2) == 1 else _height(draw)
    return Fact(
        f"{colour} tower",
        f"with {height.words}" if height else "",
        lambda box: int({item.colour for item in box} == {colour} and (height is None or height.holds(box))),
    )


def _as_end(draw: Draw) -> Fact:
    """Draw a fact about blocks that are the top or the base of a tower. It is of any height or of a given one."""
    colour, (index, end), height = draw.choice(_COLOURS), _end_of_tower(draw), None if draw.plain or draw.number(2) == 1 else _height(draw)
    return Fact(
        f"{colour} block",
        f"as the {end} of a tower" + (f" with {height.words}" if height else ""),
        lambda box: int(box[index].colour == colour and (height is None or height.holds(box))),
    )


def _on(draw: Draw) -> Fact:
    """Draw a fact about blocks directly on others, or directly under them."""
    upper, lower = _pair(draw)
    above = Fact(f"{upper} block", f"{draw.word(*_ABOVE)} a {lower} block", partial(_number_stacked, upper, lower))
    return draw.choice((above, above._replace(noun=f"{lower} block", which=f"{draw.word(*_BELOW)} a {upper} block")))


_IN_A_TOWER = (_height, _end, _end, _end, _some_blocks, _over, _over, _coloured_blocks)

OF_ITEMS = (_group, *[_wall] * 4, *[_box] * 5)
"""What draws a fact about loose items, repeated by their frequency in human sentences."""
OF_TOWERS = (_block, *[_tower] * 6, *[_as_end] * 2, _on, _of_colour)
