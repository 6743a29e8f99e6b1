"""NLVR with questions from its boxes: the geometry, exact answers, and what is refused."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from plait.config.schema import SourceEntry
from plait.data.sources.open import open_source
from plait.data.synthetic.answers import points, score
from plait.data.synthetic.lexicon import NUMBERS
from plait.data.synthetic.nlvr_record import PITCH
from plait.errors import BadSample, PlaitError
from tests.data.packing import pack, picture

RGB = {"yellow": (255, 255, 0), "black": (0, 0, 0), "blue": (0, 153, 255)}
BOXES = [
    [{"type": "square", "color": "Yellow", "size": 20, "x_loc": 40, "y_loc": 80}],
    [],
    [
        {"type": "circle", "color": "#0099ff", "size": 10, "x_loc": 0, "y_loc": 0},
        {"type": "triangle", "color": "Black", "size": 30, "x_loc": 70, "y_loc": 10},
    ],
]


def shard(path, boxes=BOXES, name="1-0-0", **fields):
    record = {"sentence": "There is a yellow square.", "label": "true", "boxes": boxes, **fields}
    return pack(path, [(f"{name}.png", picture(size=(400, 100))), (f"{name}.json", json.dumps(record).encode())])


def opened(path, **more):
    return open_source(SourceEntry(source="nlvr", path=str(path), **more), seed=0)


def test_items_lie_where_the_pictures_show_them(real_data):
    source = opened(real_data / "nlvr" / "validation-00000.tar", options={"tasks": ["point"]}, limit=200)
    seen = 0
    for sample in (source[i] for i in range(0, 200, 5)):
        pixels = np.array(Image.open(io.BytesIO(sample["images"][0])).convert("RGB"))
        for one in sample["fields"]["objects"]:
            seen += 1
            assert tuple(pixels[int(one["y"]), int(one["x"])]) == RGB[one["colour"]], (sample["id"], one)
    assert seen > 200


@pytest.mark.parametrize(("name", "order"), [("1-0-0", "abc"), ("1-0-1", "acb"), ("1-0-2", "bac"), ("1-0-3", "bca"), ("1-0-5", "cba")])
def test_the_name_says_in_which_order_the_boxes_stand(tmp_path, name, order):
    boxes = [[{**BOXES[0][0], "size": 10 * (n + 1), "y_loc": 0}] for n in range(3)]
    sample = opened(shard(tmp_path / "a.tar", boxes, name), options={"tasks": ["point"]})[0]
    assert [one["radius"] / 5 for one in sample["fields"]["objects"]] == ["abc".index(letter) + 1 for letter in order]


def test_points_are_the_centres_in_percent_of_the_picture(tmp_path):
    sample = opened(shard(tmp_path / "a.tar", [[], [], BOXES[2][:1]]), options={"tasks": ["point"]})[0]
    x, y = 2 * PITCH + 5, 5
    assert points(sample["messages"][1]["content"]) == [(round(100 * x / 400, 1), round(100 * y / 100, 1))]
    assert sample["fields"]["points"] == [[100 * x / 400, 5.0]]


def test_counts_are_those_of_the_boxes_read_by_hand(tmp_path):
    source = opened(shard(tmp_path / "a.tar"), options={"tasks": ["count"], "questions": 100})
    expected = {"How many items are there?": 3, "How many yellow items are there?": 1}
    expected |= {"How many items in the middle box are there?": 0, "How many items in the right box are there?": 2}
    expected |= {"How many black triangles are there?": 1, "How many blue squares are there?": 0}
    answers = {source[i]["messages"][0]["content"]: source[i]["messages"][1]["content"] for i in range(len(source))}
    assert {text: answers[text] for text in expected if text in answers} == {
        text: NUMBERS[n] for text, n in expected.items() if text in answers
    }
    assert len(expected.keys() & answers.keys()) >= 5


def test_every_answer_is_judged_right_and_another_wrong(tmp_path):
    source = opened(shard(tmp_path / "a.tar"), options={"tasks": ["count", "point"], "questions": 50})
    for sample in (source[i] for i in range(len(source))):
        fields = sample["fields"]
        assert score(sample["messages"][1]["content"], fields), sample
        assert not score("nineteen" if fields["task"] == "count" else '<point x="37.5" y="50.0" alt="a">a</point>', fields), sample


def test_truth_is_the_sentence_and_its_label(tmp_path):
    sample = opened(shard(tmp_path / "a.tar", label="False"), options={"tasks": ["truth"], "questions": 5})
    assert len(sample) == 1
    assert [turn["content"] for turn in sample[0]["messages"]] == ["True or false? There is a yellow square.", "false"]


def test_questions_are_the_same_every_time_and_their_number_is_asked_for(tmp_path):
    path = shard(tmp_path / "a.tar")
    one, two = opened(path, options={"questions": 3}), opened(path, options={"questions": 3})
    assert len(one) == 7 and [one[i] for i in range(7)] == [two[i] for i in range(7)]
    assert one.fingerprint == two.fingerprint != opened(path).fingerprint


def test_questions_together_share_their_picture_and_none_comes_twice(tmp_path):
    tasks = ["truth", "caption", "count"]
    path = shard(tmp_path / "a.tar")
    source = opened(path, options={"tasks": tasks, "questions": 100, "together": True})
    apart = opened(path, options={"tasks": tasks, "questions": 100})
    sample, asked = source[0], [apart[i]["messages"] for i in range(len(apart))]
    annotated = [annotation["messages"] for annotation in sample["annotations"]]
    assert len(source) == 1 and len(annotated) < len(asked) == 102
    assert {turns[0]["content"]: turns[1]["content"] for turns in annotated} == {
        turns[0]["content"]: turns[1]["content"] for turns in asked
    }
    assert len({turns[0]["content"] for turns in annotated}) == len(annotated)
    assert [annotation["style"] for annotation in sample["annotations"][:3]] == ["vqa2", "long_caption", "vqa2"]


def test_a_statement_is_answered_by_its_number_where_reasons_are_asked_for(tmp_path):
    records = [json.dumps({"boxes": boxes}).encode() for boxes in (BOXES, [BOXES[2], BOXES[2], []])]
    members = [(f"1-{n}-0.{kind}", body) for n, record in enumerate(records) for kind, body in (("png", picture()), ("json", record))]
    path = pack(tmp_path / "a.tar", members)
    bare, reasoned = (opened(path, options={"tasks": ["statement"], "questions": 50, "reasons": reasons}) for reasons in (False, True))
    assert bare.fingerprint != reasoned.fingerprint
    for one, other in ((bare[i], reasoned[i]) for i in range(50)):
        assert one["fields"]["question"] == other["fields"]["question"]
        number, verdict = other["fields"]["answer"].split(": ")
        assert number in NUMBERS and verdict == one["fields"]["answer"] == one["fields"]["truth"]
        assert score(f"{number}: {verdict}", one["fields"]) and not score({"true": "false", "false": "true"}[verdict], one["fields"])


def test_a_statement_needs_another_picture(tmp_path):
    with pytest.raises(PlaitError, match="none of 50 other pictures of its sort differs from it, so there is nothing to state"):
        opened(shard(tmp_path / "a.tar"), options={"tasks": ["statement"]})


@pytest.mark.parametrize(
    ("fields", "task", "message"),
    [
        ({"boxes": [[]]}, "count", "has no `boxes` of 3 lists of items, so it is no NLVR record"),
        ({"boxes": [[], [], []]}, "point", "has three empty boxes: there is nothing to ask about"),
        ({"boxes": [[{"type": "square"}], [], []]}, "count", "an item of its boxes has no usable 'color'"),
        ({"boxes": [[{**BOXES[0][0], "x_loc": 90}], [], []]}, "count", "inside a box of 100 x 100 pixels"),
        ({"name": "1-0-6"}, "count", "does not end in the number of its boxes' order, -0 to -5"),
        ({"label": "maybe"}, "truth", "has no `sentence` with a `label` true or false"),
    ],
)
def test_records_of_another_kind_are_refused_before_the_run(tmp_path, fields, task, message):
    with pytest.raises(PlaitError, match=message) as caught:
        opened(shard(tmp_path / "a.tar", **fields), options={"tasks": [task]})
    assert str(caught.value).startswith("data source nlvr:a.tar: ")


def test_a_bad_record_later_on_is_a_bad_sample(tmp_path):
    good, bad = ({"sentence": "x", "label": "true", "boxes": boxes} for boxes in (BOXES, [[], [], []]))
    members = [
        (f"1-0-{n}.{kind}", body)
        for n, record in enumerate((good, bad))
        for kind, body in (("png", picture()), ("json", json.dumps(record).encode()))
    ]
    with pytest.raises(BadSample, match="three empty boxes"):
        opened(pack(tmp_path / "a.tar", members), options={"tasks": ["count"]})[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": ["count"]}, "nlvr has no option 'task'; did you mean 'tasks'?"),
        ({"tasks": ["counting"]}, "nlvr has no task 'counting'; did you mean 'count'?"),
        ({"tasks": []}, "nlvr: tasks must be a list without repeats, not []"),
        ({"rounds": 0}, "nlvr: rounds: Input should be greater than or equal to 1, not 0"),
        ({"wordings": "few"}, "nlvr: wordings: Input should be 'plain' or 'many', not 'few'"),
        ({"mixed": True}, "nlvr: a picture of mixed boxes has no human sentence: take 'truth' out of the tasks, or `mixed`"),
        ({"questions": 0}, "nlvr: questions: Input should be greater than or equal to 1, not 0"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, options, message):
    with pytest.raises(PlaitError) as caught:
        opened(shard(tmp_path / "a.tar"), options=options)
    assert str(caught.value) == f"data source nlvr:a.tar: {message}"


def test_a_template_is_refused(tmp_path):
    with pytest.raises(PlaitError, match="nlvr makes its own questions"):
        opened(shard(tmp_path / "a.tar"), columns={"a": "b"})


def drawn(name, boxes):
    """A record of squares, and its picture of them on grey: `boxes` are lists of (colour, side, x, y), from left to right."""
    pixels = np.full((100, 400, 3), 200, np.uint8)
    for place, inside in enumerate(boxes):
        for colour, side, x, y in inside:
            pixels[y : y + side, PITCH * place + x : PITCH * place + x + side] = RGB[colour]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    names = {"blue": "#0099ff", "yellow": "Yellow", "black": "Black"}
    items = [[{"type": "square", "color": names[c], "size": side, "x_loc": x, "y_loc": y} for c, side, x, y in inside] for inside in boxes]
    return [(f"{name}.png", file.getvalue()), (f"{name}.json", json.dumps({"boxes": items}).encode())]


LOOSE = [  # no towers: nothing stands on the ground
    *drawn("1-0-0", [[("yellow", 10, 0, 3), ("black", 30, 60, 20)], [("blue", 20, 5, 40)], [("black", 10, 90, 0), ("blue", 10, 30, 70)]]),
    *drawn("2-0-0", [[("blue", 30, 1, 1)], [("yellow", 20, 60, 60), ("yellow", 10, 0, 0)], [("black", 20, 80, 7)]]),
]
TOWERS = drawn("3-0-0", [[("blue", 20, 40, 80)], [("black", 20, 40, 80), ("yellow", 20, 40, 59)], [("yellow", 20, 10, 80)]])


def test_a_mixed_picture_shows_what_its_record_says(tmp_path):
    source = opened(pack(tmp_path / "a.tar", LOOSE + TOWERS), options={"tasks": ["point"], "rounds": 40, "mixed": True})
    assert len(source) == 40 * 3
    pictures, sides = set(), set()
    for sample in (source[i] for i in range(len(source))):
        pixels = np.array(Image.open(io.BytesIO(sample["images"][0])))
        shown = sample["fields"]["objects"]
        pictures.add(pixels.tobytes())
        sides |= {one["x"] for one in shown if one["radius"] == 15 and one["box"] == "left"}
        for one in shown:
            left, top = int(one["x"] - one["radius"]), int(one["y"] - one["radius"])
            inside = pixels[top : top + int(2 * one["radius"]), left : left + int(2 * one["radius"])]
            assert (inside == RGB[one["colour"]]).all(), (sample["id"], one)
        assert (pixels != 200).any(axis=2).sum() == sum(4 * one["radius"] ** 2 for one in shown)  # and nothing besides
    assert len(pictures) > 40
    assert sides == {75, 100 - 75, 16, 100 - 16}  # as they are, and mirrored


def test_boxes_are_mixed_with_those_of_their_sort(tmp_path):
    source = opened(pack(tmp_path / "a.tar", LOOSE + TOWERS), options={"tasks": ["caption"], "rounds": 30, "mixed": True})
    answers = {name: {source[i]["fields"]["answer"] for i in range(n, len(source), 3)} for n, name in enumerate("123")}
    assert "tower" not in str(answers["1"] | answers["2"]) and len(answers["1"]) == 2**3
    assert answers["3"] == {"left: a blue square; middle: a tower of yellow, black; right: a yellow square"}


def test_rounds_ask_other_questions_of_the_same_pictures(tmp_path):
    path = shard(tmp_path / "a.tar")
    once, often = (opened(path, options={"tasks": ["count"], "questions": 2, "rounds": rounds}) for rounds in (1, 50))
    assert len(often) == 50 * len(once) and once.fingerprint != often.fingerprint
    asked = [sample["fields"]["question"] for sample in (often[i] for i in range(len(often)))]
    assert asked[:2] == [once[i]["fields"]["question"] for i in range(2)] and len(set(asked)) > 10


def test_plain_wordings_are_fewer(tmp_path):
    path, asked = pack(tmp_path / "a.tar", LOOSE), {}
    for wordings in ("plain", "many"):
        source = opened(path, options={"tasks": ["statement"], "questions": 25, "rounds": 4, "wordings": wordings})
        asked[wordings] = {source[i]["fields"]["question"].removeprefix("True or false? ") for i in range(len(source))}
    assert all(text.startswith("There ") and text.endswith(".") for text in asked["plain"])
    assert not all(text.startswith("There ") for text in asked["many"]) and len(asked["many"]) > len(asked["plain"])
