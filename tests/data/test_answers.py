"""Scoring of answers: right and wrong answers in many wordings, as a table."""

from typing import Any

import pytest

from plait.data.synthetic.answers import can_score, points, score

RED = {"shape": "circle", "colour": "red", "size": "small", "x": 16.0, "y": 32.0, "radius": 6.0}
BLUE = {"shape": "star", "colour": "blue", "size": "large", "x": 48.0, "y": 16.0, "radius": 12.0}
TWIN = {"shape": "star", "colour": "blue", "size": "small", "x": 30.0, "y": 55.0, "radius": 6.0}


def fields(task: str, truth: Any, *objects: dict[str, Any]) -> dict[str, Any]:
    return {"task": task, "truth": truth, "objects": list(objects), "size": [64, 64]}


@pytest.mark.parametrize(
    ("task", "truth", "right", "wrong"),
    [
        (
            "count",
            2,
            ["two", "2", "Two.", "There are two red circles.", "there are 2 of them"],
            ["three", "", "two or three", "12", "twos", "red"],
        ),
        ("count", 0, ["zero", "0", "none", "There are no circles.", "There are none."], ["one", "", "circle"]),
        ("count", 1, ["one", "There is one star", "1"], ["a star", "two", "no, one"]),
        ("colour", "red", ["red", "Red.", "The circle is red.", "it's red!"], ["blue", "", "red or blue", "reddish", "circle"]),
        ("shape", "cross", ["cross", "a cross", "crosses", "The red shape is a cross."], ["circle", "", "cross circle", "across"]),
        (
            "relation",
            "left",
            ["left", "to the left", "The circle is to the LEFT of the star."],
            ["right", "", "left or right", "above left"],
        ),
        ("relation", "above", ["above", "over it", "it is higher"], ["below", "under", ""]),
        ("exists", "yes", ["yes", "Yes, there is a red circle.", "There is a red circle"], ["no", "", "yes and no", "maybe"]),
        ("exists", "no", ["no", "No, there is no ring.", "There is no ring.", "there isn't any"], ["yes", "", "there is a ring"]),
        ("truth", "true", ["true", "True.", "It is true.", "not false"], ["false", "", "true or false", "yes", "untrue", "not true"]),
        ("statement", "false", ["false", "three: false", "Two, so false."], ["three: true", "three", "", "true, not false"]),
        ("future", "left", ["left", "on the left", "The star will be on the left."], ["right", "", "top left", "left or right"]),
        (
            "future",
            "top left",
            ["top left", "upper left", "left, at the top", "At the top left."],
            ["left", "top", "bottom left", "top right"],
        ),
    ],
)
def test_free_answers_are_scored(task: str, truth: Any, right: list[str], wrong: list[str]) -> None:
    assert [answer for answer in right if not score(answer, fields(task, truth))] == []
    assert [answer for answer in wrong if score(answer, fields(task, truth))] == []


def test_only_fields_with_a_task_and_its_truth_can_be_scored():
    assert can_score(fields("count", 2)) and can_score({"task": "statement", "truth": "true"})
    assert not can_score({"task": "count", "truth": 2}), "a user's own column of that name"
    for other in ({"task": "caption of a photo", "truth": 2, "objects": []}, {"task": "truth"}, {}):
        assert not can_score(other)
    assert not can_score({"task": ["count"], "truth": 2, "objects": []})


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a small red circle to the left of a large blue star", True),
        ("A picture of a large blue star and a small red circle.", True),
        ("there is a red circle below a blue star", True),
        ("a small red circle to the right of a large blue star", False),
        ("a large blue star to the left of a small red circle", False),
        ("a small red circle above a large blue star", False),
        ("a small red circle", False),
        ("a small red circle, a large blue star and a green ring", False),
        ("two small red circles and a large blue star", False),
        ("a large red circle and a large blue star", False),
        ("a small blue circle and a large red star", False),
        ("a small red shape and a large blue star", False),
        ("", False),
    ],
)
def test_judge_of_captions_wants_every_thing_once_and_true_relations(text: str, right: bool) -> None:
    assert score(text, fields("caption", None, RED, BLUE)) is right


def test_judge_of_captions_counts_twins_and_tells_their_sizes_apart() -> None:
    scene = fields("caption", None, RED, BLUE, TWIN)
    assert score("two blue stars and a red circle", scene)
    assert score("a large blue star above a small blue star, with a small red circle", scene)
    assert not score("two large blue stars and a red circle", scene)
    assert not score("a small blue star above a large blue star, with a small red circle", scene)


def test_judge_of_captions_checks_the_place_of_a_lone_thing() -> None:
    scene = fields("caption", None, BLUE)  # up and to the right
    assert score("a large blue star at the top right", scene)
    assert not score("a large blue star at the bottom right", scene)
    assert not score("a large blue star in the middle", scene)


def test_judge_of_points_wants_the_point_inside_the_thing() -> None:
    scene = fields("point", [0], RED, BLUE)
    assert score('<point x="25.0" y="50.0" alt="red circle">red circle</point>', scene)
    assert score('<point x="34.0" y="50.0" alt="circle 1">it</point>', scene)  # 5.76 of 6 pixels away
    assert not score('<point x="35.0" y="50.0" alt="red circle">red circle</point>', scene)  # 6.4 pixels away
    assert not score('<points x1="25" y1="50" x2="75" y2="25" alt="a">a</points>', scene), "one object is asked for, two are pointed at"
    assert not score("25.0 50.0", scene)


def test_judge_of_several_points_needs_each_thing_once_in_any_order() -> None:
    scene = fields("points", [0, 1], RED, BLUE)
    assert score('<points x1="75.0" y1="25.0" x2="25.0" y2="50.0" alt="shapes">shapes</points>', scene)
    assert not score('<points x1="25.0" y1="50.0" x2="26.0" y2="50.0" alt="shapes">shapes</points>', scene)
    assert not score('<point x="25.0" y="50.0" alt="shapes">shapes</point>', scene)


def test_points_reads_both_forms_and_leaves_the_alt_text_alone() -> None:
    assert points('<point x="1.5" y="2" alt="x=9 y=9">p</point> and <point x="3" y="4">q</point>') == [(1.5, 2.0), (3.0, 4.0)]
    assert points('<points x1="1" y1="2" x2="3.5" y2="4" alt="things">things</points>') == [(1.0, 2.0), (3.5, 4.0)]
    assert points('<point x="1.5">') == []
