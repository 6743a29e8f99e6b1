"""What is said of a picture of NLVR without being asked for a number or a place: a description, and statements that hold or do not.

Both are exact by the record. Statements are worded in the many ways in which people word NLVR's sentences: numbers as words or digits,
with or without a capital and a full stop, about anything that counted.py knows. A statement tells a picture from another of the data, and
is asked of either: so no wording holds more often than not, and nothing is learned without looking.
"""

from collections.abc import Callable

from plait.data.synthetic.lexicon import number_word, plural
from plait.data.synthetic.nlvr_facts import OF_ITEMS, OF_TOWERS, Draw, Kind, Picture, number_of
from plait.data.synthetic.nlvr_record import BOXES, COLOURS, SHAPES, Group, boxes, is_tower
from plait.data.synthetic.questions import article

_DRAWS = 100  # of something to count, for one of which two pictures have different numbers
_MOST = 9  # of something: beyond that people do not count


def describe(found: Picture) -> str:
    """Every item by colour and shape, box after box; a tower from its top to its base."""
    return "; ".join(f"{name}: {_inside(inside)}" for name, inside in zip(BOXES, boxes(found), strict=True))


def all_towers(found: Picture) -> bool:
    """Whether the picture shows a tower, of one block or more, in each box."""
    return all(map(is_tower, boxes(found)))


def statement(found: Picture, other: Picture, draw: Draw) -> tuple[str, int, bool] | None:
    """A sentence about a number, that of `found`, and whether it holds; it holds for one of two pictures. None where none was found.

    As people were asked for sentences that tell alike pictures apart, the two numbers are neighbours; said plainly they may differ more.
    """
    kinds = OF_TOWERS if all_towers(found) and all_towers(other) else OF_ITEMS
    for _ in range(_DRAWS):
        kind = draw.one(kinds)(draw)
        mine, theirs = (sum(map(kind.count, boxes(picture))) for picture in (found, other))
        if 0 < abs(mine - theirs) <= (_MOST if draw.plain else 1) and max(mine, theirs) <= _MOST:
            said, holds = draw.one(_ways(kind, sorted((mine, theirs)), draw))
            return _as_written(said, draw), mine, holds(mine)
    return None


def _as_written(sentence: str, draw: Draw) -> str:
    """People begin with a capital letter or not, and end with a full stop or not."""
    first = sentence[0].upper()
    return draw.word(first, first, sentence[0]) + sentence[1:] + draw.word(".", "")


def _inside(inside: Picture) -> str:
    if not inside:
        return "nothing"
    if len(inside) > 1 and is_tower(inside):
        return "a tower of " + ", ".join(one.colour for one in reversed(inside))
    groups = [Group(colour, shape, None) for colour in COLOURS.values() for shape in SHAPES]
    return ", ".join(
        article(group.words(False)) if count == 1 else f"{number_word(count)} {group.words(True)}"
        for group in groups
        if (count := number_of(group, inside))
    )


# What is said of a number


def _ways(kind: Kind, numbers: list[int], draw: Draw) -> list[tuple[str, Callable[[int], bool]]]:
    """Sentences that hold for one of two different numbers, the smaller first, and what they say of a number.

    "there are two" says no less than two and may say no more: it is said where the other number is smaller, so both readings agree.
    """
    few, many = numbers
    ways: list[tuple[str, Callable[[int], bool]]] = [(_there("exactly", n, kind, draw), n.__eq__) for n in numbers if n]
    ways.append((_there("at least", many, kind, draw), lambda n: n >= many))
    if few == 0:
        one = kind.words(False)
        ways += [(f"there is {article(one)}", bool), (f"there is no {one}", (0).__eq__)]
    return ways if draw.plain else ways + _more_ways(kind, few, many, draw)


def _more_ways(kind: Kind, few: int, many: int, draw: Draw) -> list[tuple[str, Callable[[int], bool]]]:
    ways: list[tuple[str, Callable[[int], bool]]] = [(_there("only", n, kind, draw), n.__eq__) for n in (few, many) if n]
    ways.append((_there("", many, kind, draw), lambda n: n >= many))
    touches = kind.which.startswith(("touching", "not touching"))
    if touches:
        noun, verb = (kind.noun, "is") if many == 1 else (plural(kind.noun), "are")
        ways.append((f"{draw.numeral(many)} {noun} {verb} {kind.which}", lambda n: n >= many))
    if kind.part:
        ways += [(said, lambda n: n >= many) for said in _of_all(kind, many, draw)]
        if many == len(BOXES):
            each = f"each {kind.noun} {draw.word(*_HAS)}"
            every = f"all {draw.word('', 'three ')}{plural(kind.noun)} {draw.word(*_HAVE)}"
            ways.append((f"{draw.word(each, every)} {kind.part}", many.__eq__))
            ways.append((f"there is {kind.part} in {draw.word('each', 'every')} {kind.noun}", many.__eq__))
    if few == 0:
        one = kind.words(False)
        ways += [(f"there is {article(one)}", bool)] * 2
        ways.append((f"there is at least {draw.numeral(1)} {one}", bool))
        if touches:
            ways.append((f"none of the {plural(kind.noun)} {draw.word('are', 'is')} {kind.which}", (0).__eq__))
    return ways


_HAS, _HAVE = ("has", "contains"), ("have", "contain")


def _of_all(kind: Kind, number: int, draw: Draw) -> list[str]:
    """ "two of the three towers have a yellow base", and what else is said of so many boxes or towers."""
    amount, verb = draw.numeral(number), draw.word(*(_HAS if number == 1 else _HAVE))
    if kind.noun == "grey square":  # people leave out the plural
        return [f"{amount} of the grey {draw.word('square', 'squares', 'box')} {verb} {kind.part}"] * 2
    several = plural(kind.noun)
    which = draw.word(kind.noun if number == 1 else several, f"of the {several}", f"of the three {several}")
    said = [f"{amount} {which} {verb} {kind.part}"]
    return [*said, f"the {kind.noun} {verb} {kind.part}"] if number == 1 and kind.noun.endswith("block tower") else said


def _there(how: str, number: int, kind: Kind, draw: Draw) -> str:
    verb = "is" if number == 1 else "are"
    return " ".join(["there", verb, *([how] if how else []), draw.numeral(number), kind.words(number != 1)])
