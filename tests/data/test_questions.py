"""Questions, answered again from outside: sides from pixels, counts from the list of objects, futures step by step, words from the text."""

import colorsys
import io
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plait.data.synthetic.answers import score
from plait.data.synthetic.questions import TASKS
from plait.data.synthetic.scenes import Scenes

FIVE = {"colours": ["red", "yellow", "green", "blue", "purple"], "background": "white", "holdout": 0}
HUES = {"red": 0.995, "yellow": 0.14, "green": 0.36, "blue": 0.62, "purple": 0.78}


def scenes(task: str, length: int, split: str = "train", **options: Any) -> Scenes:
    return Scenes({"tasks": task, **options}, seed=11, split=split, length=length)


def asked(source: Scenes) -> list[tuple[Any, Any, str]]:
    """(scene, question, caption) of every index, without drawing."""
    return [source._compose(i)[:3] for i in range(len(source))]


def named(text: str, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the objects that each "the (size) (colour) (shape)" of a question fits; each must fit exactly one."""
    named_objects = []
    nouns = "shape|thing|circle|square|triangle|star|hexagon|ring|heart|cross"
    for phrase in re.findall(rf"\b[Tt]he ((?:(?:small|large|red|yellow|green|blue|purple) )*(?:{nouns}))\b", text):
        words = [word for word in phrase.split() if word not in ("shape", "thing")]
        fits = [obj for obj in objects if all(word in (obj["size"], obj["colour"], obj["shape"]) for word in words)]
        assert len(fits) == 1, (phrase, text)
        named_objects += fits
    return named_objects


def seen_at(picture: bytes, colour: str) -> tuple[float, float]:
    """Middle of the pixels whose hue is nearest to a colour's; no knowledge of the drawing but the five hues."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)), np.float64) / 255
    rows, columns = np.nonzero(pixels.max(2) - pixels.min(2) > 0.3)
    hues = [colorsys.rgb_to_hsv(*pixels[r, c])[0] for r, c in zip(rows, columns, strict=True)]
    nearest = [min(HUES, key=lambda name: abs((hue - HUES[name] + 0.5) % 1 - 0.5)) for hue in hues]
    matching = np.array([name == colour for name in nearest])
    return float(columns[matching].mean() + 0.5), float(rows[matching].mean() + 0.5)


def test_relation_answers_agree_with_the_pixels() -> None:
    source, checked = scenes("relation", 120, objects=[2, 3], **FIVE), 0
    for i in range(120):
        sample = source[i]
        fields = sample["fields"]
        if len({obj["colour"] for obj in fields["objects"]}) < len(fields["objects"]):
            continue
        first, second = named(fields["question"], fields["objects"])
        if fields["question"].startswith(("In which direction", "On which")):
            first, second = second, first  # "from the B is the A", "side of the B is the A"
        a, b = seen_at(sample["images"][0], first["colour"]), seen_at(sample["images"][0], second["colour"])
        sides = {"left": b[0] - a[0], "right": a[0] - b[0], "above": b[1] - a[1], "below": a[1] - b[1]}
        assert sides[fields["answer"]] > 4, (fields["question"], fields["answer"], sides)
        checked += 1
    assert checked > 60


@pytest.mark.parametrize(("task", "words"), [("relation", ("left", "right")), ("relation", ("above", "below")), ("exists", ("yes", "no"))])
def test_opposite_answers_are_balanced(task: str, words: tuple[str, str]) -> None:
    counts = Counter(question.answer for _, question, _ in asked(scenes(task, 1500)))
    both = counts[words[0]] + counts[words[1]]
    # 4 standard deviations of a fair coin
    assert both > 500 and abs(counts[words[0]] - both / 2) < 4 * (both / 4) ** 0.5, counts


def test_future_answers_are_balanced_and_often_differ_from_the_present() -> None:
    rows = asked(scenes("future", 1500))
    counts = Counter(question.answer for _, question, _ in rows)
    assert set(counts) == {"left", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right"}
    for one, other in (("left", "right"), ("top", "bottom"), ("top left", "bottom right"), ("top right", "bottom left")):
        assert abs(counts[one] - counts[other]) < 4 * (counts[one] + counts[other]) ** 0.5, counts


def test_no_kind_of_exists_question_betrays_its_answer() -> None:
    kinds: dict[int, Counter[str]] = {}
    for _, question, _ in asked(scenes("exists", 2000)):
        phrase = re.search(r"\ban? ([a-z ]+?)(?: in the picture)?\?", question.text)
        assert phrase, question.text
        kinds.setdefault(sum(word != "shape" for word in phrase[1].split()), Counter())[question.answer] += 1
    for words, counts in kinds.items():
        assert counts["yes"] / counts.total() == pytest.approx(0.5, abs=0.08), (words, counts)


def test_count_answers_agree_with_the_list_of_objects() -> None:
    numbers = ["zero", "one", "two", "three", "four", "five"]
    seen = set()
    for scene, question, _ in asked(scenes("count", 400, objects=[1, 5])):
        phrase = re.search(r"(?:How many|Count the|number of) ([a-z ]+?)(?: are there| are in the picture)?[?.]$", question.text)
        assert phrase, question.text
        words = [word.removesuffix("es" if word == "crosses" else "s") for word in phrase[1].split() if word != "shapes"]
        truth = sum(all(word in (obj.colour, obj.shape) for word in words) for obj in scene.objects)
        assert question.answer == numbers[truth], question.text
        seen.add(truth)
    assert seen == {0, 1, 2, 3, 4, 5}


def test_traits_are_asked_of_the_object_that_has_them() -> None:
    for task in ("colour", "shape"):
        source = scenes(task, 150, **FIVE, size=[32, 32], supersample=1, objects=[1, 3])
        for i in range(150):
            fields = source[i]["fields"]
            (obj,) = named(fields["question"], fields["objects"])
            assert fields["answer"] == obj[task] and obj[task] not in fields["question"]


def test_point_answers_lie_on_the_object_and_in_its_colour() -> None:
    source = scenes("point", 60, shapes=["circle", "square", "heart"], **FIVE)
    for i in range(60):
        sample = source[i]
        fields = sample["fields"]
        tag = re.fullmatch(r'<point x="(\d+\.\d)" y="(\d+\.\d)" alt="([^"]+)">([^<]+)</point>', fields["answer"])
        assert tag and tag[3] == tag[4] and f"the {tag[3]}" in fields["question"]
        (obj,) = named(fields["question"], fields["objects"])
        pixel = Image.open(io.BytesIO(sample["images"][0])).getpixel((int(float(tag[1]) * 0.64), int(float(tag[2]) * 0.64)))
        assert isinstance(pixel, tuple)
        hue = colorsys.rgb_to_hsv(*(value / 255 for value in pixel))[0]
        assert min(HUES, key=lambda name: abs((hue - HUES[name] + 0.5) % 1 - 0.5)) == obj["colour"]


def test_several_points_are_sorted_and_one_for_each_object() -> None:
    for scene, question, _ in asked(scenes("points", 200, objects=[1, 6])):
        xs = [float(x) for x in re.findall(r'\bx\d*="([\d.]+)"', question.answer)]
        assert xs == sorted(xs) and len(xs) == len(question.truth)
        assert question.answer.startswith("<points x1=" if len(xs) > 1 else "<point x=")
        assert all(min(abs(x - 100 * obj.x / scene.width) for obj in scene.objects) <= 0.051 for x in xs)


@pytest.mark.parametrize("frames", [0, 5])
def test_future_answers_agree_with_a_step_by_step_simulation(frames: int) -> None:
    source = scenes("future", 100, frames=frames, size=[40, 32], supersample=1, **FIVE, sizes=["large"], objects=[1, 2])
    for i in range(100):
        fields = source[i]["fields"]
        (obj,) = named(fields["question"], fields["objects"])
        ahead = re.search(r"in (\d+) frames" if frames < 2 else r"(\d+) frames after the last one", fields["question"])
        assert ahead, fields["question"]
        place = []
        for axis, side in (("x", 40), ("y", 32)):
            at, v, low, high = obj[axis], obj[f"v{axis}"], obj["radius"], side - obj["radius"]
            for _ in range(int(ahead[1]) + max(frames - 1, 0)):
                at, v = (at + v, v) if low <= at + v <= high else ((2 * low if v < 0 else 2 * high) - at - v, -v)
            place.append(at / side)
        words = {"left": place[0] < 0.42, "right": place[0] > 0.58, "top": place[1] < 0.42, "bottom": place[1] > 0.58}
        assert all(words[word] for word in fields["answer"].split()), (fields["question"], fields["answer"], place)


def test_caption_names_exactly_the_objects() -> None:
    numbers = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5}
    for scene, _, caption in asked(scenes("caption", 500, objects=[1, 5])):
        named_counts: Counter[tuple[str, ...]] = Counter()
        for number, size, colour, shape in re.findall(r"\b(an?|two|three|four|five) (small|large) (\w+) (\w+)", caption):
            assert (number != "an") or size[0] in "aeiou"
            named_counts[size, colour, shape if numbers[number] == 1 else shape.removesuffix("es" if shape == "crosses" else "s")] += (
                numbers[number]
            )
        assert named_counts == Counter((obj.size, obj.colour, obj.shape) for obj in scene.objects), caption
        assert not re.search(r"there is (two|three|four|five)|there are an? |\ba [aeiou]|, and| {2}|\bNone\b", caption), caption


def test_caption_without_sizes_has_articles_that_fit() -> None:
    captions = [caption for _, _, caption in asked(scenes("caption", 200, sizes=["large"]))]
    text = " ".join(captions)
    assert "an orange" in text and not re.search(r"\ba [aeiou]|\ban [^aeiou]", text.replace("an image", "")), text
    assert "large" not in text, "one size needs no word"


@pytest.mark.parametrize("answers", ["short", "sentence"])
@pytest.mark.parametrize("task", TASKS)
def test_judge_accepts_the_answer_and_refuses_another_scenes(task: str, answers: str) -> None:
    source = scenes(task, 60, "validation", answers=answers, objects=[2, 4], size=[32, 32], supersample=1)
    rows = [source[i]["fields"] for i in range(60)]
    assert all(score(fields["answer"], fields) for fields in rows)
    crossed = sum(score(rows[i]["answer"], rows[i - 1]) for i in range(60))
    assert crossed < 45, "an answer should rarely be right for the scene before"
    assert not any(score("", fields) for fields in rows)
