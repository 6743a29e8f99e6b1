"""Make descriptions of NLVR's pictures, and true or false statements about them, exact by the record.

Statements are worded in the many ways in which people word NLVR's sentences: numbers as words or digits, with or without a capital and a
full stop, about any fact of nlvr_facts.py. A statement holds for exactly one of two pictures and is asked of either, so no wording is true
more often than false, and the answer cannot be learned from the text alone.
"""

from collections.abc import Callable

from plait.data.synthetic.lexicon import article, number_word, plural
from plait.data.synthetic.nlvr_facts import OF_ITEMS, OF_TOWERS, Draw, Fact, Items, number_of
from plait.data.synthetic.nlvr_record import BOXES, COLOURS, SHAPES, ObjectGroup, boxes, is_tower

_DRAWS = 100  # facts tried until the pictures have different numbers of one
_LARGEST = 9  # number of a fact: beyond that people do not count

Sentence = tuple[str, Callable[[int], bool]]
"""(a sentence about the number of something in a picture, a function from that number to whether the sentence is true)."""


def describe(picture: Items) -> str:
    """Return a text of all items by box, such as "left: two blue circles; middle: nothing; right: a tower of black, blue".

    Towers are from the top.
    """
    return "; ".join(f"{name}: {_describe_box(box)}" for name, box in zip(BOXES, boxes(picture), strict=True))


def all_towers(picture: Items) -> bool:
    """Return whether every box of the picture shows one tower, of one block or more."""
    return all(map(is_tower, boxes(picture)))


def statement(picture: Items, other: Items, draw: Draw) -> tuple[str, int, bool] | None:
    """Return (sentence, the number in `picture` that it is about, whether it holds there).

    The sentence is true of only one of `picture` and `other`. None if none was found. The numbers in the two pictures differ by one,
    because people were asked for sentences that distinguish similar pictures; with `draw.plain` they may differ more.
    """
    makers = OF_TOWERS if all_towers(picture) and all_towers(other) else OF_ITEMS
    for _ in range(_DRAWS):
        fact = draw.choice(makers)(draw)
        number, other_number = (sum(map(fact.count, boxes(items))) for items in (picture, other))
        difference = abs(number - other_number)
        if 0 < difference <= (_LARGEST if draw.plain else 1) and max(number, other_number) <= _LARGEST:
            sentence, holds = draw.choice(_sentences(fact, sorted((number, other_number)), draw))
            return _as_written(sentence, draw), number, holds(number)
    return None


def _as_written(sentence: str, draw: Draw) -> str:
    """Begin with a capital letter or not, and end with a full stop or not, as people do."""
    first = sentence[0].upper()
    return draw.word(first, first, sentence[0]) + sentence[1:] + draw.word(".", "")


def _describe_box(box: Items) -> str:
    if not box:
        return "nothing"
    if len(box) > 1 and is_tower(box):
        return "a tower of " + ", ".join(item.colour for item in reversed(box))
    groups = [ObjectGroup(colour, shape, None) for colour in COLOURS.values() for shape in SHAPES]
    return ", ".join(
        article(group.words(False)) if count == 1 else f"{number_word(count)} {group.words(True)}"
        for group in groups
        if (count := number_of(group, box))
    )


# Sentences about a number


def _sentences(fact: Fact, numbers: list[int], draw: Draw) -> list[Sentence]:
    """Return sentences that hold for exactly one of two different numbers, of which the smaller is first.

    "there are two" can be read as at least two or as exactly two: it is used where the other number is smaller, so both readings agree.
    """
    few, many = numbers
    sentences: list[Sentence] = [(_there("exactly", n, fact, draw), n.__eq__) for n in numbers if n]
    sentences.append((_there("at least", many, fact, draw), lambda n: n >= many))
    if few == 0:
        noun = fact.words(False)
        sentences += [(f"there is {article(noun)}", bool), (f"there is no {noun}", (0).__eq__)]
    return sentences if draw.plain else sentences + _more_sentences(fact, few, many, draw)


def _more_sentences(fact: Fact, few: int, many: int, draw: Draw) -> list[Sentence]:
    sentences: list[Sentence] = [(_there("only", n, fact, draw), n.__eq__) for n in (few, many) if n]
    sentences.append((_there("", many, fact, draw), lambda n: n >= many))
    touches = fact.which.startswith(("touching", "not touching"))
    if touches:
        noun, verb = (fact.noun, "is") if many == 1 else (plural(fact.noun), "are")
        sentences.append((f"{draw.numeral(many)} {noun} {verb} {fact.which}", lambda n: n >= many))
    if fact.contents:
        sentences += [(sentence, lambda n: n >= many) for sentence in _of_all(fact, many, draw)]
        if many == len(BOXES):
            each = f"each {fact.noun} {draw.word(*_HAS)}"
            every = f"all {draw.word('', 'three ')}{plural(fact.noun)} {draw.word(*_HAVE)}"
            sentences.append((f"{draw.word(each, every)} {fact.contents}", many.__eq__))
            sentences.append((f"there is {fact.contents} in {draw.word('each', 'every')} {fact.noun}", many.__eq__))
    if few == 0:
        noun = fact.words(False)
        sentences += [(f"there is {article(noun)}", bool)] * 2
        sentences.append((f"there is at least {draw.numeral(1)} {noun}", bool))
        if touches:
            sentences.append((f"none of the {plural(fact.noun)} {draw.word('are', 'is')} {fact.which}", (0).__eq__))
    return sentences


_HAS, _HAVE = ("has", "contains"), ("have", "contain")


def _of_all(fact: Fact, number: int, draw: Draw) -> list[str]:
    """Return sentences about some of all boxes or towers, such as "two of the three towers have a yellow base"."""
    amount, verb = draw.numeral(number), draw.word(*(_HAS if number == 1 else _HAVE))
    if fact.noun == "grey square":  # people leave out the plural
        return [f"{amount} of the grey {draw.word('square', 'squares', 'box')} {verb} {fact.contents}"] * 2
    several = plural(fact.noun)
    which = draw.word(fact.noun if number == 1 else several, f"of the {several}", f"of the three {several}")
    sentence = f"{amount} {which} {verb} {fact.contents}"
    if number == 1 and fact.noun.endswith("block tower"):
        return [sentence, f"the {fact.noun} {verb} {fact.contents}"]
    return [sentence]


def _there(quantifier: str, number: int, fact: Fact, draw: Draw) -> str:
    verb = "is" if number == 1 else "are"
    return " ".join(["there", verb, *([quantifier] if quantifier else []), draw.numeral(number), fact.words(number != 1)])
