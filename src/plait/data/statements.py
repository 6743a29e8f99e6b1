"""What is said of a picture of NLVR without being asked for a number or a place: a description, and statements that hold or do not.

Both are exact by the record. Statements are worded in the many ways in which people word NLVR's sentences: numbers as words or digits,
with or without a capital and a full stop, about anything that counted.py knows. A statement tells a picture from another of the data, and
is asked of either: so no wording holds more often than not, and nothing is learned without looking.
"""

from collections.abc import Callable

from plait.data.boxes import BOXES, COLOURS, SHAPES, Group, boxes, is_tower
from plait.data.counted import OF_ITEMS, OF_TOWERS, Kind, Picture, Rng, number_of, numeral
from plait.data.lexicon import number_word, plural
from plait.data.questions import article, pick

_DRAWS = 20  # of something to count, for one of which two pictures have different numbers
_MOST = 9  # of something: beyond that people do not count


def describe(found: Picture) -> str:
    """Every item by colour and shape, box after box; a tower from its top to its base."""
    return "; ".join(f"{name}: {_inside(inside)}" for name, inside in zip(BOXES, boxes(found), strict=True))


def all_towers(found: Picture) -> bool:
    """Whether the picture shows a tower, of one block or more, in each box."""
    return all(map(is_tower, boxes(found)))


def statement(found: Picture, other: Picture, rng: Rng) -> tuple[str, list[int], bool] | None:
    """A sentence about a number of things, the numbers in the boxes of `found`, and whether it holds; it holds for one of two pictures.

    None where no such sentence was found.
    """
    kinds = OF_TOWERS if all_towers(found) and all_towers(other) else OF_ITEMS
    for _ in range(_DRAWS):
        kind = pick(rng, kinds)(rng)
        mine, theirs = ([kind.count(inside) for inside in boxes(picture)] for picture in (found, other))
        if sum(mine) != sum(theirs) and max(sum(mine), sum(theirs)) <= _MOST:
            said, holds = pick(rng, _ways(kind, sorted((sum(mine), sum(theirs))), rng))
            return _as_written(said, rng), mine, holds(sum(mine))
    return None


def _as_written(sentence: str, rng: Rng) -> str:
    """People begin with a capital letter or not, and end with a full stop or not."""
    first = sentence[0] if rng.integers(3) == 0 else sentence[0].upper()
    return first + sentence[1:] + pick(rng, ("", "."))


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


def _ways(kind: Kind, numbers: list[int], rng: Rng) -> list[tuple[str, Callable[[int], bool]]]:
    """Sentences that hold for one of two different numbers, the smaller first, and what they say of a number.

    "there are two" says no less than two and may say no more: it is said where the other number is smaller, so both readings agree.
    """
    few, many = numbers
    ways: list[tuple[str, Callable[[int], bool]]] = [
        (_there(how, n, kind, rng), n.__eq__) for n in numbers if n for how in ("exactly", "only")
    ]
    ways += [(_there("at least", many, kind, rng), lambda n: n >= many), (_there("", many, kind, rng), lambda n: n >= many)]
    if kind.part:
        of = pick(rng, ("of the ", "of the three ", *([""] if many > 1 else [])))
        verb = pick(rng, ("has", "contains") if many == 1 else ("have", "contain"))
        ways.append((f"{numeral(many, rng)} {of}{plural(kind.noun)} {verb} {kind.part}", lambda n: n >= many))
        if many == len(BOXES):
            ways.append((f"each {kind.noun} {pick(rng, ('has', 'contains'))} {kind.part}", many.__eq__))
    if few == 0:
        one = kind.words(False)
        ways += [(f"there is {article(one)}", bool)] * 3
        ways += [(f"there is no {one}", (0).__eq__), (pick(rng, (f"there is at least one {one}", f"there is at least 1 {one}")), bool)]
        if kind.which.startswith("touching"):
            ways.append((f"none of the {plural(kind.noun)} are {kind.which}", (0).__eq__))
    return ways


def _there(how: str, number: int, kind: Kind, rng: Rng) -> str:
    verb = "is" if number == 1 else "are"
    return " ".join(["there", verb, *([how] if how else []), numeral(number, rng), kind.words(number != 1)])
