"""Scenes as a source: pure functions of a key, splits that share nothing, layouts that fit, options that are checked."""

import hashlib
import io
import json
import pickle
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plait.data import image_files
from plait.data.synthetic.answers import score
from plait.data.synthetic.blanks import blank
from plait.data.synthetic.drawing import encode, render
from plait.data.synthetic.physics import scene_of
from plait.data.synthetic.questions import TASKS
from plait.data.synthetic.scenes import SceneOptions, Scenes, held_out, largest_radius, place_circles
from plait.errors import PlaitError

ALL = {"tasks": list(TASKS), "objects": [2, 4]}


def scenes(split: str = "train", *, seed: int = 3, length: int | None = None, **options: Any) -> Scenes:
    return Scenes(options, seed=seed, split=split, length=length)


def digest(sample: dict[str, Any]) -> str:
    body = json.dumps([sample["id"], sample["messages"], sample["fields"]]).encode() + b"".join(sample["images"] + sample.get("frames", []))
    return hashlib.sha256(body).hexdigest()


def test_scene_is_the_same_in_another_process_thread_and_order() -> None:
    source = scenes(**ALL, frames=2)
    here = [digest(source[i]) for i in range(6)]
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: digest(copy[i]), reversed(range(6)))) == here[::-1]
    code = "import runpy, sys; t = runpy.run_path(sys.argv[1]); s = t['scenes'](**t['ALL'], frames=2); "
    code += "print(*[t['digest'](s[i]) for i in reversed(range(6))])"
    there = subprocess.run([sys.executable, "-c", code, __file__], capture_output=True, text=True, check=True).stdout.split()
    assert there == here[::-1]


def test_scene_depends_on_seed_split_and_index() -> None:
    sources = [scenes(), scenes(seed=4), scenes("validation"), scenes("test")]
    layouts = [json.dumps(source[i]["fields"]["objects"]) for source in sources for i in range(50)]
    assert len(set(layouts)) == len(layouts)


def test_sample_has_the_shape_every_source_has() -> None:
    source = scenes("validation", size=[48, 32])
    sample = source[0]
    assert len(source) == 1000 and source.name == "scenes validation"
    assert sample["id"] == "validation-3-0" and "frames" not in sample
    assert [message["role"] for message in sample["messages"]] == ["user", "assistant"]
    assert Image.open(io.BytesIO(sample["images"][0])).size == (48, 32)
    assert json.loads(json.dumps(sample["fields"])) == sample["fields"]
    with pytest.raises(IndexError, match="scene 1000 of 1000"):
        source[1000]


def test_fingerprint_changes_with_what_changes_the_scenes() -> None:
    prints = [scenes(), scenes(seed=4), scenes("test"), scenes(length=5), scenes(size=[32, 32]), scenes(answers="sentence")]
    assert len({source.fingerprint for source in prints}) == len(prints)
    assert scenes().fingerprint == scenes(objects=[1, 4]).fingerprint, "an option at its default changes nothing"


def test_training_never_shows_or_names_a_held_out_pair() -> None:
    source = scenes(tasks=list(TASKS), objects=[1, 5], length=600)
    assert len(source.held_out) == 7  # a tenth of 9 x 8
    for i in range(600):
        scene, question, caption, *_ = source._compose(i)
        assert not {(obj.colour, obj.shape) for obj in scene.objects} & source.held_out
        text = f"{question.text} {question.answer} {caption}".lower()
        assert not [pair for pair in source.held_out if " ".join(pair) in text], text


def test_validation_shows_held_out_pairs_in_its_share_and_marks_them() -> None:
    source = scenes("validation", length=400, size=[32, 32], supersample=1, held_out_share=0.3)
    marks = []
    for i in range(400):
        fields = source[i]["fields"]
        pairs = {(obj["colour"], obj["shape"]) for obj in fields["objects"]}
        assert fields["held_out"] == bool(pairs & source.held_out)
        marks.append(fields["held_out"])
    assert 0.2 < sum(marks) / 400 < 0.4  # 0.3 with a standard deviation of 0.023


def test_held_out_pairs_are_the_same_for_every_seed_and_spare_every_word() -> None:
    assert scenes(seed=1).held_out == scenes(seed=2, split="validation").held_out
    for share in (0.0, 0.2, 0.5, 0.99):
        pairs = held_out(("red", "blue", "green"), ("circle", "star"), share)
        kept = {(c, s) for c in ("red", "blue", "green") for s in ("circle", "star")} - pairs
        assert {c for c, _ in kept} == {"red", "blue", "green"} and {s for _, s in kept} == {"circle", "star"}
        assert len(pairs) <= share * 6
    assert scenes(holdout=["red circle"]).held_out == {("red", "circle")}


@pytest.mark.parametrize(("size", "count"), [((32, 32), 3), ((64, 64), 9), ((256, 32), 8), ((40, 90), 20), ((1024, 640), 20)])
def test_objects_never_touch_each_other_or_the_wall(size: tuple[int, int], count: int) -> None:
    width, height = size
    radius = largest_radius(width, height, count)
    assert radius > 0
    for seed in range(30):
        centres = place_circles(np.random.default_rng(seed), [radius] * count, width, height)
        assert len(centres) == count
        assert all(radius <= x <= width - radius and radius <= y <= height - radius for x, y in centres)
        gaps = [np.hypot(a[0] - b[0], a[1] - b[1]) for i, a in enumerate(centres) for b in centres[:i]]
        assert min(gaps) > 2 * radius


def test_frames_follow_the_velocities() -> None:
    source = scenes(
        size=[64, 48], objects=1, frames=5, background="white", colours=["red", "blue"], shapes=["circle"], tasks="colour", holdout=0
    )
    for i in range(5):
        sample = source[i]
        assert len(sample["frames"]) == 5 and sample["frames"][0] == sample["images"][0]
        obj = sample["fields"]["objects"][0]
        for k, frame in enumerate(sample["frames"]):
            pixels = np.asarray(Image.open(io.BytesIO(frame)), np.float64)
            weight = pixels.max(2) - pixels.min(2)
            weight[weight < 40] = 0
            x, v, low, high = obj["x"], obj["vx"], obj["radius"], 64 - obj["radius"]
            for _ in range(k):
                x, v = (x + v, v) if low <= x + v <= high else ((2 * low if v < 0 else 2 * high) - x - v, -v)
            # 0.4 px: shading from one corner to the other shifts the weights
            assert (weight * (np.arange(64) + 0.5)).sum() / weight.sum() == pytest.approx(x, abs=0.4)


def test_scene_drawn_again_from_its_fields_continues_the_clip() -> None:
    source = scenes("validation", frames=4, size=[48, 64])
    sample = source[2]
    scene = scene_of(json.loads(json.dumps(sample["fields"])))
    assert [encode(render(scene, k), "png") for k in range(4)] == sample["frames"]
    assert encode(render(scene, 9), "png") not in sample["frames"]


def test_sizes_make_buckets_and_words_mean_radii() -> None:
    source = scenes(size=[[64, 64], [96, 48]], sizes=["small", "medium", "large"], length=300)
    scenes_drawn = [source._compose(i)[0] for i in range(300)]
    shapes = Counter((scene.width, scene.height) for scene in scenes_drawn)
    assert set(shapes) == {(64, 64), (96, 48)} and 110 < shapes[64, 64] < 190
    largest = {(w, h): largest_radius(w, h, 4) for w, h in shapes}
    share = [(obj.size, obj.radius / largest[scene.width, scene.height]) for scene in scenes_drawn for obj in scene.objects]
    bounds = {size: (min(r for s, r in share if s == size), max(r for s, r in share if s == size)) for size in ("small", "medium", "large")}
    assert bounds["medium"][0] - bounds["small"][1] > 0.07 and bounds["large"][0] - bounds["medium"][1] > 0.07, bounds


def test_tasks_come_in_the_proportions_asked_for() -> None:
    source = scenes(tasks={"count": 3, "relation": 1}, length=800)
    counts = Counter(source._compose(i)[3] for i in range(800))
    assert set(counts) == {"count", "relation"} and 540 < counts["count"] < 660  # 600 with a standard deviation of 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colors": ["red"]}, "scenes have no option 'colors'; did you mean 'colours'?"),
        ({"wibble": 1}, "scenes have no option 'wibble'; known: size, objects, shapes"),
        ({"colours": ["read"]}, "there is no colour 'read'; did you mean 'red'?"),
        ({"shapes": []}, "shapes must be a list without repeats, not []"),
        ({"tasks": {"counting": 1}}, "there is no task 'counting'; did you mean 'count'?"),
        ({"tasks": {"count": -1}}, "task weights must not be negative"),
        ({"objects": [3, 2]}, "objects must be [fewest, most] within 1 to 20, not [3, 2]"),
        ({"size": [8, 8]}, "of 16 to 4096 pixels, not [[8, 8]]"),
        ({"size": [32, 32], "objects": 20}, "20 objects in 32x32 pixels leave 1.6 pixels of radius; take fewer or a larger size"),
        ({"frames": -1}, "scenes: frames: Input should be greater than or equal to 0, not -1"),
        ({"holdout": 1.5}, "holdout must be a share from 0 to below 1"),
        ({"holdout": ["red dog"]}, "holdout names 'red dog', which is not a colour and a shape in use, like 'red circle'"),
        ({"colours": ["red"], "shapes": ["ring"], "holdout": ["red ring"]}, "holdout leaves nothing to train on"),
        ({"tasks": ["future"], "trails": "never"}, "'future' cannot be asked of a still picture without trails"),
        ({"tasks": ["relation"], "objects": 1}, "no scene of these options allows a question of the task 'relation'"),
    ],
)
def test_wrong_options_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlaitError) as raised:
        scenes(**options)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_wrong_split_and_length_are_refused() -> None:
    with pytest.raises(PlaitError, match="scenes have no split 'valid'; did you mean 'validation'"):
        scenes("valid")
    with pytest.raises(PlaitError, match="length of at least 1, not 0"):
        scenes(length=0)


def test_options_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        SceneOptions().frames = 3  # type: ignore[misc]


def test_questions_of_one_scene_are_all_true_of_it_and_none_comes_twice() -> None:
    options: dict[str, Any] = {"tasks": ["colour", "shape", "count"], "objects": 1}
    alone, several = scenes(**options), scenes(**options, questions=6)
    answers = set()
    for i in range(30):
        turns = [[turn["content"] for turn in one["messages"]] for one in several[i]["annotations"]]
        assert turns[0] == [turn["content"] for turn in alone[i]["messages"]]
        assert several[i]["images"] == alone[i]["images"]
        assert 1 <= len({question for question, _ in turns}) == len(turns) <= 6
        (obj,) = several[i]["fields"]["objects"]
        assert {answer for _, answer in turns} <= {obj["colour"], obj["shape"], "one", "zero", "none", "no"}
        answers |= {(i, answer) for _, answer in turns}
    assert len(answers) > 60  # of 30 scenes: most are asked for at least two of colour, shape and count


def test_one_question_of_a_scene_is_the_sample_it_was_before_there_could_be_several() -> None:
    assert "annotations" not in scenes(tasks="count")[0]
    plain, one, two = (scenes(tasks="count", **several).fingerprint for several in ({}, {"questions": 1}, {"questions": 2}))
    assert plain == one != two


def test_questions_asked_as_turns_are_one_conversation_that_ends_with_the_question_of_the_fields() -> None:
    options: dict[str, Any] = {"tasks": ["colour", "shape", "count"], "objects": [1, 2], "questions": 4}
    apart, together = scenes(**options), scenes(**options, asked_as="turns")
    for i in range(20):
        sample, (first, *more) = together[i], [one["messages"] for one in apart[i]["annotations"]]
        assert "annotations" not in sample
        assert sample["messages"] == [message for messages in (*more, first) for message in messages]
        assert sample["messages"][-2:] == [
            {"role": "user", "content": sample["fields"]["question"]},
            {"role": "assistant", "content": sample["fields"]["answer"]},
        ]
        assert sample["images"] == apart[i]["images"]
        assert score(sample["messages"][-1]["content"], sample["fields"])


def test_asking_as_turns_changes_the_fingerprint_and_naming_the_default_does_not() -> None:
    apart, named, turns = (scenes(questions=2, **more).fingerprint for more in ({}, {"asked_as": "annotations"}, {"asked_as": "turns"}))
    assert apart == named != turns


def test_turns_of_a_single_question_are_refused() -> None:
    with pytest.raises(PlaitError, match="scenes: asked_as: turns needs questions of 2 or more: one question is one turn"):
        scenes(asked_as="turns")


def test_texts_are_had_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = scenes(size=[48, 48], objects=[1, 3], questions=2, asked_as="turns", tasks={"colour": 1, "count": 1}, length=8)
    drawn = [source[i] for i in range(8)]
    monkeypatch.setattr("plait.data.synthetic.scenes.render", None)  # would fail
    assert image_files.size(blank(48, 48, "png")) == (48, 48) and blank(48, 48, "png") != drawn[0]["images"][0]
    assert [source.worded(i) for i in range(8)] == [sample | {"images": [blank(48, 48, "png")]} for sample in drawn]
    with pytest.raises(IndexError, match="scene 8 of 8"):
        source.worded(8)


def test_texts_of_many_samples_are_had_with_few_calls(calls: Any) -> None:
    source = scenes(size=[48, 48], objects=[1, 3], tasks=["count", "exists", "colour"], length=100)
    source.worded(0)
    assert calls(lambda: [source.worded(i) for i in range(100)]) < 50_000
