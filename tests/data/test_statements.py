"""Statements about NLVR's pictures, against counts made by hand on boxes written here."""

import re
from collections import defaultdict

import numpy as np
import pytest

from plait import keys
from plait.config.schema import SourceEntry
from plait.data.sources.open import open_source
from plait.data.synthetic.lexicon import NUMBERS
from plait.data.synthetic.nlvr_facts import Draw
from plait.data.synthetic.nlvr_record import Item, is_tower
from plait.data.synthetic.statements import all_towers, describe, statement


def item(shape, colour, box, x, y, side):
    """`x`, `y`: the corner in the box, as records have it."""
    left = 150 * ("left", "middle", "right").index(box)
    return Item(shape, colour, box, left + x + side / 2, y + side / 2, side / 2)


def tower(box, *colours):
    """Blocks as records have them, from the base up."""
    return [item("square", colour, box, 40, 80 - 21 * floor, 20) for floor, colour in enumerate(colours)]


TOWERS = [*tower("left", "blue", "black"), *tower("middle", "yellow"), *tower("right", "black", "black", "yellow")]
OTHER_TOWERS = [*tower("left", "black"), *tower("middle", "blue", "blue", "yellow", "black"), *tower("right", "blue")]
LOOSE = [
    item("circle", "blue", "left", 0, 30, 10), item("circle", "blue", "left", 50, 90, 10), item("triangle", "black", "left", 30, 10, 30),
    item("square", "yellow", "right", 80, 0, 20),
]  # fmt: skip
OTHER_LOOSE = [item("circle", "blue", "middle", 20, 20, 30), item("triangle", "yellow", "right", 90, 90, 10)]


def test_a_description_names_every_item_where_it_is():
    assert describe(TOWERS) == "left: a tower of black, blue; middle: a yellow square; right: a tower of yellow, black, black"
    assert describe(LOOSE) == "left: a black triangle, two blue circles; middle: nothing; right: a yellow square"


def test_towers_stand_on_each_other_and_on_the_ground():
    assert all_towers(TOWERS) and not all_towers(LOOSE)
    low, high = tower("left", "blue", "black")
    assert is_tower([low, high])
    assert not is_tower([high]) and not is_tower([low, high._replace(x=high.x + 1)]) and not is_tower([low, high._replace(y=high.y - 1)])
    assert not is_tower([])


SAME = (
    *(("grey squares", "boxes"), ("grey (box|square)", "box"), ("object", "item"), ("(closely|that is|that are) touching", "touching")),
    *(("(the|any) edge|the wall$|the side$", "an edge"), ("the corner|a corner of a box", "a corner")),
)


def plain(text):
    """Return the sentence without variations of wording: numbers as words, no capital, no full stop, one word of several of a meaning."""
    for words, word in SAME:
        text = re.sub(words, word, text)
    words = re.sub(r"\d+", lambda digits: NUMBERS[int(digits[0])], text.rstrip("."))
    return words[0].lower() + words[1:]


def statements_of(picture, others, drawn=8000):
    """Statements of a picture, each of which tells it from one of the others, and whether they hold."""
    drawn_statements = (statement(picture, others[n % len(others)], Draw(keys.rng("drawn", n))) for n in range(drawn))
    return {plain(one[0]): one[2] for one in drawn_statements if one}


def alike(picture):
    """Pictures of the same sort that lack one of its items, or show it in another colour."""
    changed = [
        [*picture[:i], *([one._replace(colour=colour)] if colour else []), *picture[i + 1 :]]
        for i, one in enumerate(picture)
        for colour in (None, "yellow", "black", "blue")
    ]
    return [other for other in changed if other != picture and all_towers(other) == all_towers(picture)]


HOLDS_OF_TOWERS = {  # of TOWERS, counted by hand
    "there are exactly two blue blocks": False, "there is exactly one blue block": True, "there are at least three black blocks": True,
    "there are three black blocks": True, "there are only two yellow blocks": True, "there is no yellow tower": False,
    "there is a tower with four blocks": False, "there is no tower with exactly four blocks": True, "there is a yellow tower": True,
    "there are exactly two towers with a yellow block at the top": True, "there is a tower with a blue block at the top": False,
    "there is no blue block as the base of a tower": False, "there is a black block over a black block": True,
    "there is a black block on a blue block": True, "there is a blue block on top of a blue block": False,
    "there is a tower that has a blue block below a black block": True, "there is a tower with only black and blue blocks": True,
    "there is a tower with two black blocks stacked together": True, "there is a tower with blocks of all three colors": False,
    "two of the three towers have a yellow block at the top": True, "there is a tower with exactly two black blocks": True,
}  # fmt: skip
HOLDS_OF_LOOSE = {  # of LOOSE
    "there are exactly two blue circles": True, "there is exactly one circle touching the left wall": True,
    "there are two circles touching an edge": True, "there is a yellow square touching the right wall": True,
    "there is exactly one yellow item touching the top": True, "there is no triangle touching the edge": True,
    "none of the triangles are touching an edge": True, "there is a square closely touching a corner of a box": True,
    "there is a black triangle not touching any edge": True, "there is no square touching the corner": False,
    "there is a box with two blue circles": True, "there is exactly one box with only blue items": False,
    "there is a box with items of only blue and black color": True, "there is a box with items of two different colors": True,
    "there are at least three items in the left box": True, "there is exactly one blue item touching the bottom of a box": True,
    "there is a yellow triangle": False, "there is an item in the middle box": False, "there is a box with exactly three items": True,
    "there is a box with a black triangle and no yellow item": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("picture", "other", "wanted"), [(TOWERS, OTHER_TOWERS, HOLDS_OF_TOWERS), (LOOSE, OTHER_LOOSE, HOLDS_OF_LOOSE)], ids=["towers", "loose"]
)
def test_statements_hold_or_not_as_counted_by_hand(picture, other, wanted):
    near = alike(picture)
    drawn = statements_of(picture, [*[other] * len(near), *near], 8000)
    wanted = {plain(text): holds for text, holds in wanted.items()}
    assert {text: drawn[text] for text in wanted if text in drawn} == {text: holds for text, holds in wanted.items() if text in drawn}
    assert len(wanted.keys() & drawn.keys()) >= len(wanted) - 2, wanted.keys() - drawn.keys()


def test_the_number_that_a_statement_is_about_decides_whether_it_holds():
    others = [OTHER_TOWERS, *alike(TOWERS)]
    statements = (statement(TOWERS, others[n % len(others)], Draw(keys.rng("n", n))) for n in range(4000))
    drawn = [(plain(text), number, holds) for text, number, holds in filter(None, statements)]
    numbers = {text: number for text, number, _ in drawn}
    assert numbers["there is exactly one blue block"] == 1 and numbers["there are at least three black blocks"] == 3
    for text, number, holds in drawn:
        match = re.match(r"(?:there (?:is|are) )?(exactly|only|at least|no|an?|each|all|the|)\b ?(.*)", text)
        wanted = next((NUMBERS.index(word) for word in match[2].split()[:1] if word in NUMBERS), None)
        rule = {
            "exactly": number == wanted,
            "only": number == wanted,
            "no": number == 0,
            "each": number == 3,
            "all": number == 3,
            "the": number > 0,
            "a": number > 0,
            "an": number > 0,
        }
        of_all = text.endswith((" in each tower", " in every tower"))
        assert holds is (number == 3 if of_all else rule.get(match[1], wanted is not None and number >= wanted)), text


@pytest.mark.parametrize(("one", "other"), [(TOWERS, OTHER_TOWERS), (LOOSE, OTHER_LOOSE)], ids=["towers", "loose"])
def test_a_statement_holds_for_exactly_one_of_two_pictures(one, other):
    of_one, of_other = statements_of(one, [other], 4000), statements_of(other, [one], 4000)
    both = of_one.keys() & of_other.keys()
    assert len(both) > 50
    assert all(of_one[text] is not of_other[text] for text in both)


def test_pictures_that_do_not_differ_have_nothing_to_tell_them_apart():
    assert statement(LOOSE, LOOSE[::-1], Draw(np.random.default_rng(0))) is None


def test_no_wording_gives_its_answer_away(real_data):
    source = open_source(
        SourceEntry(source="nlvr", path=str(real_data / "nlvr" / "train-*.tar"), options={"tasks": ["statement"], "questions": 4}), seed=0
    )
    answers = defaultdict(list)
    for i in np.random.default_rng(0).choice(len(source), 9000, replace=False):
        fields = source[int(i)]["fields"]
        answers[plain(fields["question"].removeprefix("True or false? "))].append(fields["answer"] == "true")
    seen, asked = ([held for holds in answers.values() for held in holds[part]] for part in (slice(0, None, 2), slice(1, None, 2)))
    habit = {text: np.mean(holds[0::2]) > 0.5 for text, holds in answers.items()}
    right = [habit[text] == held for text, holds in answers.items() for held in holds[1::2]]
    assert abs(np.mean(seen) - 0.5) < 0.05 and len(asked) > 1000  # 4 standard errors of 1,700
    assert np.mean(right) < 0.58  # 0.5 is what is expected; 4 standard errors of 1,100 are 0.06
