"""What is said of NLVR's pictures, against counts made by hand on boxes written here."""

from collections import defaultdict

import numpy as np
import pytest

from plait import keys
from plait.config import Source
from plait.data.boxes import Item, is_tower
from plait.data.lexicon import NUMBERS
from plait.data.sources import open_source
from plait.data.statements import all_towers, describe, statement


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


HOLDS_OF_TOWERS = {  # of TOWERS, counted by hand
    "There are exactly two blue blocks.": False, "There is exactly one blue block.": True, "There are at least three black blocks.": True,
    "There is exactly one tower with exactly three blocks.": True, "There is no tower with exactly four blocks.": True,
    "There are exactly two towers with a yellow block at the top.": True, "There is a tower with a blue block at the top.": False,
    "There is exactly one tower with a yellow block at the base.": True, "There is a black block over a black block.": True,
    "There is a black block over a blue block.": True, "There is a blue block over a blue block.": False,
    "There is exactly one box with only yellow items.": True, "There is a box with a yellow square.": True,
}  # fmt: skip
HOLDS_OF_LOOSE = {  # of LOOSE
    "There are exactly two blue circles.": True, "There is exactly one circle touching the left wall.": True,
    "There are at least two circles touching an edge.": True, "There is a yellow square touching the right wall.": True,
    "There is exactly one yellow item touching the top.": True, "There is no triangle touching an edge.": True,
    "There is a box with two blue circles.": True, "There is exactly one box with only yellow items.": True,
    "There are at least three items in the left box.": True, "There is exactly one blue item touching the bottom.": True,
    "There is a yellow triangle.": False, "There is an item in the middle box.": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("picture", "other", "wanted"), [(TOWERS, OTHER_TOWERS, HOLDS_OF_TOWERS), (LOOSE, OTHER_LOOSE, HOLDS_OF_LOOSE)], ids=["towers", "loose"]
)
def test_statements_hold_or_not_as_counted_by_hand(picture, other, wanted):
    said = {text: holds for text, _, holds in (statement(picture, other, keys.rng("drawn", n)) for n in range(6000))}
    assert {text: said[text] for text in wanted if text in said} == {text: holds for text, holds in wanted.items() if text in said}
    assert len(wanted.keys() & said.keys()) >= len(wanted) - 2


def test_the_number_that_a_statement_is_about_decides_whether_it_holds():
    drawn = [statement(TOWERS, OTHER_TOWERS, keys.rng("number", n)) for n in range(2000)]
    numbers = {text: number for text, number, _ in drawn}
    assert numbers["There is exactly one blue block."] == 1 and numbers["There are at least three black blocks."] == 3
    for text, number, holds in drawn:
        _, _, how, *rest = text.rstrip(".").split(maxsplit=3)
        said = NUMBERS.index(rest[0].split()[how == "at"]) if how in ("exactly", "at") else None
        assert holds is {"exactly": number == said, "at": said is not None and number >= said, "no": number == 0}.get(how, number > 0), text


@pytest.mark.parametrize(("one", "other"), [(TOWERS, OTHER_TOWERS), (LOOSE, OTHER_LOOSE)], ids=["towers", "loose"])
def test_a_statement_holds_for_exactly_one_of_two_pictures(one, other):
    of_one = {text: holds for text, _, holds in (statement(one, other, keys.rng("one", n)) for n in range(2000))}
    of_other = {text: holds for text, _, holds in (statement(other, one, keys.rng("other", n)) for n in range(2000))}
    both = of_one.keys() & of_other.keys()
    assert len(both) > 50
    assert all(of_one[text] is not of_other[text] for text in both)


def test_pictures_that_do_not_differ_have_nothing_to_tell_them_apart():
    assert statement(LOOSE, LOOSE[::-1], np.random.default_rng(0)) is None


def test_no_wording_gives_its_answer_away(real_data):
    source = open_source(
        Source(source="nlvr", path=str(real_data / "nlvr" / "train-*.tar"), options={"tasks": ["statement"], "questions": 4}), seed=0
    )
    answers = defaultdict(list)
    for i in np.random.default_rng(0).choice(len(source), 3000, replace=False):
        fields = source[int(i)]["fields"]
        answers[fields["question"]].append(fields["answer"] == "true")
    seen, asked = ([held for holds in answers.values() for held in holds[part]] for part in (slice(0, None, 2), slice(1, None, 2)))
    habit = {text: np.mean(holds[0::2]) > 0.5 for text, holds in answers.items()}
    right = [habit[text] == held for text, holds in answers.items() for held in holds[1::2]]
    assert abs(np.mean(seen) - 0.5) < 0.05 and len(asked) > 1000  # 4 standard errors of 1,700
    assert np.mean(right) < 0.58  # 0.5 is what is expected; 4 standard errors of 1,100 are 0.06
