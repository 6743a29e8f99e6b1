"""SpatialRGPT-Bench by rule: lengths with their units, directions, choices and verdicts, the drawn regions, and `plait eval`."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from plait import cli
from plait.config.schema import SourceEntry
from plait.errors import BadSample
from plait.families.theworld import evaluate
from plait.families.theworld.benchmarks.measures import hour, metres
from plait.families.theworld.benchmarks.regions import judge, read
from plait.families.theworld.catalogue import datasets
from plait.training.figures.intervals import bootstrap

from . import published_sets
from .conftest import photo
from .test_published import hub, run  # noqa: F401  fixtures


@pytest.mark.parametrize("category", ["nonsense", "left_guess", "xyz_data", "", None])
def test_a_question_of_an_unknown_category_is_a_bad_sample(category):
    with pytest.raises((KeyError, TypeError)):
        judge("2 m", "2 m", category, PREDICATE)
    asked = {"fields": {"region_category": category}, "messages": [{"role": "assistant", "content": "2 m"}], "images": [], "id": "a"}
    assert evaluate._ACCURACY.lacks(asked) == f"the category {category!r} is unknown"


PREDICATE = "Is Region [0] to the left of Region [1] from the viewer's perspective?"
CHOICE = "Which is more to the left, Region [0] or Region [1]?"


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("2.5 meters", 2.5), ("Region [0] is 77.56 centimeters wide.", 0.7756), ("It is 48.47cm.", 0.4847), ("10.0 inches", 0.254),
        ("about 12 in.", 0.3048), ("6 feet 3 inches", 1.905), ("6'3\"", 1.905), ("1,200 mm", 1.2), ("two feet", 0.6096),
        ("half a meter", 0.5), ("2.5 meters (8.2 feet)", 2.5), ("The table is 1 m away. So the width is 2 m.", 2.0),
        ("The answer is 3 feet, not 4 feet away from 5", None), ("The answer is 3 feet. It is 4 m away", 0.9144), ("2 to 3 meters", None),
        ("2-3 meters", None), ("1 m and then 3 m", None), ("5", None), ("a few meters", None), ("2 in front", None), ("", None),
        ("-1.5 m", None), ("It is \u22121.5 m wide", None), ("minus 2 feet", None), ("-6'3\"", None), ("(-half a meter)", None),
        ("The width-1.5 m", 1.5), ("- 1.5 m", 1.5),
    ],
)  # fmt: skip
def test_a_length_is_read_with_its_unit(text, length):
    assert metres(text) == (None if length is None else pytest.approx(length))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-3 o'clock", None), ("around the 2 o'clock direction", 2), ("12:00", 12), ("Three o’clock", 3), ("13 o'clock", None),
        ("2 or 3 o'clock", None),
    ],
)  # fmt: skip
def test_a_direction_is_an_hour(text, said):
    assert hour(text) == said


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("Yes, Region [0] is to the left of Region [1].", True), ("Indeed.", True),
        ("In fact, Region [0] is to the right of Region [1].", False),
        ("Incorrect, Region [0] is not on the left side of Region [1].", False), ("Region [1] is left of Region [0].", False),
        ("Region [1] is to the right of Region [0].", True), ("Region [0] is not to the left of Region [1].", False),
        ("It is on the right.", False), ("That is True.", True), ("Region [0] is a car.", None), ("I see no regions", None),
    ],
)  # fmt: skip
def test_a_relation_is_read_with_its_subject_and_its_denial(text, holds):
    assert read(text, "left_predicate", PREDICATE) is holds


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("Region [1]", 1), ("1", 1), ("From the viewer's perspective, Region [0] appears more on the left side.", 0),
        ("Positioned to the left is Region [1].", 1), ("Region [0] is to the right of Region [1].", 1),
        ("Region 0 is more to the right.", 1),
        ("Between Region [0] and Region [1], Region [1] is more to the left.", 1), ("Region [0] or Region [1]", None),
        ("Not Region [0]", None),
        ("Region [7]", None), ("neither", None),
    ],
)  # fmt: skip
def test_a_region_is_chosen_by_its_number_or_its_relation(text, chosen):
    assert read(text, "left_choice", CHOICE) == chosen


def test_opposite_words_are_those_of_the_category():
    assert read("Region [0] has a lesser height.", "tall_predicate", PREDICATE) is False
    assert read("Region [0] is not as tall as Region [1].", "short_predicate", PREDICATE) is True
    assert read("Region [1] is closer to the viewer than Region [0].", "behind_predicate", PREDICATE) is True


@pytest.mark.parametrize(
    ("answer", "right"), [("1.5 m", True), ("2.5 meters", True), ("149 cm", False), ("8.3 feet", False), ("wide", False), ("-2.0 m", False)]
)
def test_a_length_is_right_within_a_quarter(answer, right):
    assert judge(answer, "Region [0] is 2.0 meters wide.", "width_data", "").correct is right


def test_an_error_is_relative_and_a_direction_may_be_an_hour_off():
    assert judge("1 m", "2 m", "height_data", "").error == pytest.approx(0.5, abs=1e-4)
    assert [judge(f"{h} o'clock", "12 o'clock", "direction", "").correct for h in (11, 12, 1, 2)] == [True, True, True, False]
    assert judge("5", "2 m", "width_data", "").parsed is False


def opened(folder):
    return datasets.open_dataset(SourceEntry(source="dataset", name="spatial_rgpt", path=str(folder)), "val", root=folder, cache=None)


@pytest.mark.parametrize("layout", ["parquet", "json"])
def test_regions_are_drawn_as_numbered_boxes(tmp_path, layout):
    if layout == "parquet":
        (tmp_path / "data").mkdir()
        (tmp_path / "data/val-00000-of-00001.parquet").write_bytes(published_sets.spatial_table())
    else:
        (tmp_path / "SpatialRGPT-Bench_v1.json").write_text(json.dumps([row for _, row in published_sets.spatial_rows()]))
        for number, _ in published_sets.spatial_rows():
            published_sets.picture(tmp_path / f"images/kitti/{number}.png", number)
    source = opened(tmp_path)
    sample = source[0]
    before, after = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (photo(0), sample["images"][0]))
    assert after.shape == before.shape and (after[20, 2:13] == (255, 0, 0)).all() and (after[24, 20:37] == (0, 0, 255)).all()
    assert (after[26:] == before[26:]).all()
    assert sample["messages"][0]["content"] == (
        "Each region is marked in the image by a box with its number. Is Region [0] to the left of Region [1]?"
    )
    assert sample["fields"] == {
        "dataset": "spatial_rgpt",
        "task": "left-right",
        "task_group": "qualitative",
        "region_category": "left_predicate",
    }
    with pytest.raises(BadSample, match="its right answer cannot be read by rule: 'They overlap"):
        source[4]


def test_a_run_is_measured_by_rule_and_says_how_far_its_lengths_are(run, tmp_path, monkeypatch, capsys):  # noqa: F811
    (tmp_path / "val-00000-of-00001.parquet").write_bytes(published_sets.spatial_table())
    told = {"Is": "No.", "Who": "Region [0]", "What": "1 meter", "If": "at 1 o'clock"}
    asked = []

    def answer(model, inputs, examples, *, max_new_tokens):
        asked.append(len(examples))
        texts = [inputs.chat.decode(example.row.ids.tolist()) for example in examples]
        return [next(said for word, said in told.items() if f"number. {word}" in text) for text in texts]

    monkeypatch.setattr(evaluate, "answers", answer)
    assert cli.main(["eval", run, "--bench", "spatial_rgpt", f"--data={tmp_path}", "--ablate=world", f"--out={tmp_path}/out"]) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    figures = metrics["figures"]
    assert (figures["accuracy/qualitative"], figures["accuracy/quantitative"], figures["accuracy/width"]) == (0.5, 0.5, 0.0)
    assert (figures["samples"], figures["bad_samples"], figures["accuracy/world_off"]) == (4, 1, 0.5)
    assert metrics["relative error"] == "width 0.500 (1)"
    assert "  relative error           width 0.500 (1)" in capsys.readouterr().out


def test_a_group_that_is_all_right_has_the_interval_of_its_own_size():
    row = {"id": "1", "world_tokens": 4, "world": "on"}
    rows = [{**row, "correct": place < 2, "task": "width", "group": "a" if place < 2 else "b"} for place in range(10)]
    intervals = bootstrap(evaluate.benches["accuracy"], rows)
    assert intervals["accuracy/a"] == (pytest.approx(0.025**0.5), 1.0) and intervals["accuracy/b"] == (0.0, pytest.approx(1 - 0.025**0.125))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1/2 m", 0.5), ("1 1/2 m", 1.5), ("about 1,000 mm", 1.0), ("I'm not sure, but 2 m", 2.0), ("2 m. Wait, 3 m.", 3.0)]
    + [(text, None) for text in ("1 000 m", "10^2 cm", "not 2 m", "It is not 2 m but 3 m", "3 m/s", "3 m per second", "5 m²", "1/0 m")],
)
def test_a_number_that_is_no_length_or_is_denied_is_not_read_as_one(text, value):
    assert metres(text) == value


def test_a_direction_that_is_denied_is_none():
    assert hour("not 3 o'clock") is None
    assert hour("3 o'clock") == 3


SIDES = [("right", None), ("Right.", None), ("Right, region 0 is left of region 1", True), ("Yes", True)]


@pytest.mark.parametrize(("text", "said"), SIDES)
def test_the_word_right_is_no_verdict_where_sides_are_asked_for(text, said):
    assert read(text, "left_predicate", "Is Region [0] to the left of Region [1]?") is said


@pytest.mark.parametrize("text", ["right", "not left", "left", "Neither is on the left", "I can't see anything left there"])
def test_a_side_without_a_region_chooses_none(text):
    assert read(text, "left_choice", "Which is more to the left, Region [0] or Region [1]?") is None
