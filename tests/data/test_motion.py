"""Questions that need several frames: answers by stepping the motion, words and single frames at chance, what training never shows."""

import io
import re
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plait.data.synthetic import answers
from plait.data.synthetic.drawing import render
from plait.data.synthetic.motion import TASKS
from plait.data.synthetic.physics import Scene, scene_of
from plait.data.synthetic.scenes import Scenes
from plait.errors import PlaitError

OPTIONS: dict[str, Any] = {"size": [32, 32], "objects": [2, 3], "frames": 5, "horizon": 8, "speed": [0.03, 0.15], "sizes": ["large"]}
SHOWN, AHEAD = 5, 8


def motion(task: str, length: int = 8, split: str = "train", **options: Any) -> Scenes:
    return Scenes({**OPTIONS, "tasks": task, **options}, seed=5, split=split, length=length)


@cache
def drawn(task: str, split: str, length: int) -> list[tuple[Scene, str, str, list[int], str | None]]:
    """(scene, question, answer, indices of the objects asked about, what is kept out of training) of each index, without drawing."""
    source = motion(task, length, split, motion_holdout=["speed", "direction", "count"] if split != "train" else [])
    rows = [source._compose(i) for i in range(length)]
    return [(scene, question.text, question.answer, fields["asked"], fields["held_out_in"]) for scene, question, _, _, fields in rows]


def label(task: str, row: tuple[Scene, str, str, list[int], str | None]) -> int:
    """0 or 1, by what a guesser has to choose between: the half, yes or no, the object that is named first or second."""
    text, answer = row[1:3]
    if task == "faster":
        return int(answer in text.split(" or ")[0])
    return int(answer in ("left", "top", "yes", "up"))


def places(row: tuple[Scene, str, str, list[int], str | None], task: str, frame: float) -> list[float]:
    """Where the asked objects are in a frame, as points on circles since edges are joined, in the order in which the text names them."""
    scene, text, _, asked, _ = row
    if task == "faster":  # the first of `asked` is not always named first
        asked = sorted(asked, key=lambda i: np.hypot(scene.objects[i].vx, scene.objects[i].vy), reverse=label(task, row) == 1)
    angles = [2 * np.pi * c / side for i in asked for c, side in zip(scene.centre(scene.objects[i], frame), (32, 32), strict=True)]
    if task == "touch":
        angles = [angles[0] - angles[2], angles[1] - angles[3]]
    if task in ("where", "direction"):
        down = "top" in text or "down" in text
        angles = [angles[down]]
    return [f(angle) for angle in angles for f in (np.cos, np.sin)]


def accuracy_of_neighbours(seen: np.ndarray, labels: np.ndarray, known: int, k: int = 25) -> float:
    """The share that a majority of the k nearest of the first `known` rows answers right among the others."""
    near = np.argpartition(((seen[known:, None] - seen[None, :known]) ** 2).sum(-1), k, axis=1)[:, :k]
    return float(((labels[:known][near].mean(1) > 0.5) == labels[known:]).mean())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_single_frame_gives_the_answer_away_and_several_do(task: str, split: str) -> None:
    rows = drawn(task, split, 1500)
    labels = np.array([label(task, row) for row in rows])
    for frame in range(SHOWN):
        one = accuracy_of_neighbours(np.array([places(row, task, frame) for row in rows]), labels, 1000)
        assert abs(one - 0.5) < 0.09, (frame, one)  # four standard deviations of 500 throws of a coin
    several = np.array([[*places(row, task, 0), *places(row, task, 2), *places(row, task, SHOWN - 1)] for row in rows])
    assert accuracy_of_neighbours(several, labels, 1000, k=5) > 0.7


@pytest.mark.parametrize("task", TASKS)
def test_no_words_give_the_answer_away(task: str) -> None:
    rows = drawn(task, "train", 1500)
    labels = np.array([label(task, row) for row in rows])
    ones, zeros = Counter[str](), Counter[str]()
    for row, one in zip(rows[:1000], labels[:1000], strict=True):
        (ones if one else zeros).update(set(re.findall(r"\w+", row[1])))
    votes = [sum(np.log((ones[word] + 5) / (zeros[word] + 5)) for word in set(re.findall(r"\w+", row[1]))) > 0 for row in rows[1000:]]
    assert abs(float((np.array(votes) == labels[1000:]).mean()) - 0.5) < 0.09
    assert abs(labels.mean() - 0.5) < 0.052


@pytest.mark.parametrize("task", TASKS)
def test_answers_agree_with_a_step_by_step_simulation(task: str) -> None:
    for scene, _, answer, asked, _ in drawn(task, "train", 1500)[:300]:
        objects = [scene.objects[i] for i in asked]
        if task == "where":
            x, y = scene.centre(objects[0], SHOWN - 1 + AHEAD)
            assert answer in (("left" if x < 16 else "right"), ("top" if y < 16 else "bottom"))
        elif task == "direction":
            across, down = objects[0].vx, objects[0].vy
            assert answer in (("left" if across < 0 else "right"), ("up" if down < 0 else "down"))
            assert abs(down if answer in ("up", "down") else across) > 0.4 * np.hypot(across, down)
        elif task == "touch":
            times = np.linspace(SHOWN - 1, SHOWN - 1 + AHEAD, 8 * 40 + 1)
            ways = [np.abs(np.subtract(*(scene.centre(obj, t) for obj in objects))) for t in times]
            nearest = min(np.hypot(*np.minimum(way, 32 - way)) for way in ways)
            assert answer == ("yes" if nearest < 2 * objects[0].radius else "no")
        else:
            speeds = [float(np.hypot(obj.vx, obj.vy)) for obj in objects]
            faster = objects[int(np.argmax(speeds))]
            assert max(speeds) > 1.4 * min(speeds) and set(answer.split()) <= {faster.colour, faster.shape, "shape"}


def test_training_never_shows_what_is_kept_out_and_validation_marks_it() -> None:
    trained = [motion("faster", 300)._compose(i) for i in range(300)]
    held = drawn("faster", "validation", 1500)
    low, high = 0.03 * 32, 0.15 * 32
    speeds = [(np.hypot(o.vx, o.vy) - low) / (high - low) for scene, *_ in trained for o in scene.objects]
    angles = [np.degrees(np.arctan2(abs(o.vx), abs(o.vy))) for scene, *_ in trained for o in scene.objects]
    assert not any(0.4 < speed < 0.6 for speed in speeds) and not any(30 < angle < 60 for angle in angles)
    assert {len(scene.objects) for scene, *_ in trained} == {2}
    kinds = Counter(kind for *_, kind in held)
    assert 0.4 < kinds[None] / len(held) < 0.6 and set(kinds) == {None, "pair", "speed", "direction", "count"}
    assert all(len(scene.objects) == 3 for scene, *_, kind in held if kind == "count")


def test_objects_that_leave_come_in_at_the_opposite_edge_and_pass_behind_the_screen() -> None:
    sample = motion("where", 40)[3]
    scene = scene_of(sample["fields"])
    assert scene.wraps and scene.screen and len(sample["frames"]) == SHOWN and sample["images"] == sample["frames"][:1]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sample["frames"][2]))), np.asarray(render(scene, 2)))
    left, top, right, bottom = map(round, scene.screen)
    bar = np.asarray(render(scene, 1))[top:bottom, left:right]
    assert (bar == bar[0, 0]).all() and min(right - left, bottom - top) < 2 * scene.objects[0].radius
    obj = scene.objects[0]
    x, y = scene.centre(obj, 50)
    assert (x, y) == ((obj.x + 50 * obj.vx) % 32, (obj.y + 50 * obj.vy) % 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["touch"], "objects": 1}, "'touch' asks about two objects, and objects is [1, 1]: allow 2 or more"),
        ({"frames": 1}, "'where' needs frames of 2 or more and is the one question of its scene"),
        ({"questions": 2}, "'where' needs frames of 2 or more and is the one question of its scene"),
        ({"speed": [0.1, 0.3]}, "'where' takes speeds of at most 0.2, not 0.3"),
        (
            {"speed": [0.01, 0.02]},
            "no motion hides the answer of 'where' from single frames with 5 frames, 8 more and speeds of 0.01",
        ),
    ],
)
def test_motion_that_cannot_be_asked_is_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlaitError) as raised:
        Scenes({**OPTIONS, "tasks": ["where"], **options}, seed=0, split="train")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_free_answers_about_motion_are_scored() -> None:
    touch: dict[str, Any] = {"task": "touch", "truth": "no", "objects": []}
    assert all(answers.score(text, touch) for text in ("no", "No, they will not touch.", "They never meet"))
    assert not any(answers.score(text, touch) for text in ("yes", "They will touch", "", "yes and no"))
    way: dict[str, Any] = {"task": "direction", "truth": "up", "objects": []}
    assert answers.score("It moves up.", way) and not any(answers.score(text, way) for text in ("down", "up or down", "", "left"))
    faster: dict[str, Any] = {"task": "faster", "truth": ["red circle", "blue shape"], "objects": []}
    assert all(answers.score(text, faster) for text in ("red circle", "The red circle is faster."))
    assert not any(answers.score(text, faster) for text in ("blue", "the blue shape", "red circle or blue shape", "", "circle"))
