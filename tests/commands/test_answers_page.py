"""The page of `plait eval`: summary, wrong answers first, every answer, filters, and nothing that a text or a network could change."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plait import cli
from plait.commands.actions.evaluation import answers as action
from plait.commands.pages import answers as page_of_answers
from plait.commands.pages.answers import Answer
from plait.config import reading

HOSTILE = "</script><script>alert(1)</script><!--{{ 7 * 7 }}\u2028\x1b"


class Page(HTMLParser):
    """The elements of a page as (tag, attributes, text inside), in order; fails where tags are not nested."""

    VOID = frozenset({"meta", "input", "img", "wbr"})

    def __init__(self, path: Path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.elements, self._open = [], []
        self.feed(self.html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in self.VOID:
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for element in self._open:
            element[2] += data

    def texts(self, tag, **wanted):
        chosen = [text for name, given, text in self.elements if name == tag and wanted.items() <= given.items()]
        return [" ".join(text.split()) for text in chosen]

    @property
    def data(self):
        (block,) = [text for tag, given, text in self.elements if tag == "script" and given.get("id") == "data"]
        return json.loads(block)

    @property
    def details(self):
        return dict(zip(self.texts("dt"), self.texts("dd"), strict=True))


def record(folder, number, gold, **more):
    picture = folder / f"{number}.png"
    if number != 7:  # cannot be opened: no answer to it
        Image.new("RGB", (48, 48), (20 * (number % 3), 90, 90)).save(picture)
    messages = [{"role": "user", "content": f"Is it so? {HOSTILE if number == 2 else number}"}, {"role": "assistant", "content": gold}]
    return {"id": f"sample-{number}", "image": str(picture), "messages": messages, **more}


def write_records(path, records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return {"source": "jsonl", "path": str(path)}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that has learned to answer "yes", and nothing else. Every third of its 12 held-out questions wants "no"."""
    folder = tmp_path_factory.mktemp("run")
    train = write_records(folder / "train.jsonl", [record(folder, number, "yes") for number in range(8, 16)])
    questions = [record(folder, n, "no" if n % 3 == 0 else "yes", task="odd" if n % 2 else HOSTILE) for n in range(12)]
    tree = {
        "family": "molmo",
        "preset": "debug",
        "model": {"max_crops": 1},
        "run": str(folder / "the run"),
        "track": {"tensorboard": False},
    }
    tree |= {"train": {"steps": 12, "global_batch": 8}, "optim": {"lr": 0.005, "schedule": {"warmup_steps": 0}}}
    tree["data"] = {"train": [train], "validation": [write_records(folder / "held.jsonl", questions)]}
    (folder / "run.yaml").write_text(reading.write_yaml(tree))
    assert cli.main(["train", str(folder / "run.yaml")]) == 0
    return folder / "the run"


@pytest.fixture(scope="module")
def out(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    assert cli.main(["eval", str(run), "--bench", "accuracy", "--out", str(folder), "--pictures=4", "--show=0"]) == 0
    return folder


@pytest.fixture(scope="module")
def page(out) -> Page:
    return Page(out / "page.html")


def test_summary_names_figure_run_step_data_and_date_without_javascript(page, out, run):
    metrics = json.loads((out / "metrics.json").read_text())
    assert page.texts("h1") == ["accuracy: the run, step 12"]
    low, high = metrics["intervals"]["score"]
    assert page.texts("p", **{"class": "overall"}) == [f"{metrics['score']:.4f} score, {low:.4f} to {high:.4f} with 95 % confidence"]
    assert page.details["run"] == str(run)
    assert page.details["step"] == "12"
    assert page.details["data"] == "jsonl:held.jsonl: 12 of 12 samples"
    assert page.details["date"] == metrics["date"][:16].replace("T", " ") + " UTC"
    assert "✓ 7 right · ✗ 4 wrong · 1 unusable" in page.texts("p")
    assert any("predictions.json" in text for text in page.texts("noscript"))
    low, high = metrics["intervals"]["score/odd"]
    assert f"score/odd{metrics['score/odd']:.4f}{low:.4f} to {high:.4f}3 of 5" in page.texts("tr")


def test_wrong_answers_come_first_and_all_of_them_are_there(page, out):
    rows = {row["id"]: row for row in json.loads((out / "predictions.json").read_text())}
    shown = page.data["answers"]
    assert [answer["kind"] for answer in shown] == ["wrong"] * 4 + ["unusable"] + ["right"] * 7
    assert sorted(answer["id"] for answer in shown) == sorted(rows)
    wrong, unusable = shown[0], shown[4]
    assert wrong["pairs"] == [["answer", rows[wrong["id"]]["answer"], "wrong"], ["gold", "no", ""]]
    assert unusable["pairs"][0] == ["reason", rows[unusable["id"]]["bad"], ""]
    assert "<li>" in page.html and page.html.count("<li>") == 1, "articles are made of one template as they are scrolled to"


def test_pictures_are_shared_out_among_tasks_and_right_and_wrong(page):
    shown = [answer for answer in page.data["answers"] if "pictures" in answer]
    assert {(answer["kind"], answer["task"] == "odd") for answer in shown} == {
        (kind, odd) for kind in ("right", "wrong") for odd in (True, False)
    }
    assert len(shown) == 4


def test_filters_are_labelled_controls_for_right_and_wrong_and_for_each_task(page):
    radios = [given["value"] for tag, given, _ in page.elements if tag == "input"]
    assert radios == ["", "wrong", "unusable", "right"]
    assert [text for text in page.texts("label") if "Task" not in text] == ["all 12", "wrong 4", "unusable 1", "right 7"]
    assert page.texts("option") == ["all", HOSTILE.replace("\x1b", "\ufffd").replace("\u2028", "\ufffd"), "odd"]
    assert page.texts("legend") == ["Show"]


def test_a_hostile_text_is_data_and_the_page_runs_its_own_script_alone(page):
    (hostile,) = [answer for answer in page.data["answers"] if "{{" in answer.get("question", "")]
    assert hostile["question"] == "Is it so? " + HOSTILE.replace("\x1b", "\ufffd").replace("\u2028", "\ufffd")
    scripts = [(given, text) for tag, given, text in page.elements if tag == "script"]
    assert [given.get("type") for given, _ in scripts] == ["application/json", None]
    (policy,) = [given["content"] for tag, given, _ in page.elements if given.get("http-equiv")]
    digest = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not [given for _, given, _ in page.elements if {"src", "href", "onclick"} & given.keys()]
    assert "innerHTML" not in scripts[1][1] and "http" not in scripts[1][1]


def test_pictures_are_data_with_a_size_and_those_that_are_the_same_are_held_once(page):
    pictures = page.data["pictures"]
    placed = [at for answer in page.data["answers"] for at, label in answer.get("pictures", []) if label == "picture"]
    assert len(placed) == 4 and sorted({*placed}) == list(range(len(pictures))) and len(pictures) <= 3
    assert all(one["source"].startswith("data:image/png;base64,") and one["size"] == "48x48 px" and one["exact"] for one in pictures)


def test_the_terminals_choice_of_pictures_is_on_the_sheet(out):
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width == 3 * (380 + 14) + 14, "four answers and the one that is unusable, three in a row"


def contrast(one, other):
    """The contrast of two colours by WCAG 2, from 1 to 21."""

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        linear = [
            v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_colour_of_text_can_be_read_on_what_it_stands_on(page, scheme):
    (style,) = page.texts("style")
    assert "@media (prefers-color-scheme: dark)" in style
    schemes = [dict(re.findall(r"--([\w-]+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", style)]
    colours = schemes[scheme]
    assert colours.keys() == schemes[0].keys()
    pairs = [(ink, ground) for ink in ("ink", "faint", "right", "wrong") for ground in ("paper", "card")]
    pairs += [("ink", "accent"), ("right", "right-soft"), ("wrong", "wrong-soft")]
    assert {pair: ratio for pair in pairs if (ratio := contrast(*(colours[name] for name in pair))) < 4.5} == {}


def test_only_right_and_wrong_have_a_hue(page):
    (style,) = page.texts("style")
    named = dict(re.findall(r"--([\w-]+): (#\w+)", re.findall(r":root \{(.*?)\}", style)[0]))
    hues = {name for name, colour in named.items() if len(colour) == 7 and np.ptp([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) > 18}
    assert hues == {"accent", "right", "wrong", "right-soft", "wrong-soft", "right-bar", "wrong-bar"}
    assert "mark" not in {tag for tag, _, _ in page.elements}, "the accent marks supervised text, of which this page has none"
    assert not re.findall(r"#[0-9a-f]{3,6}\b", style.split("* {", 1)[1]), "colours are named"


class Samples:
    """Samples with one picture each, of the given size."""

    def __init__(self, body):
        self.body = body

    def __getitem__(self, position):
        return {"images": [self.body]}


def written(folder, rows, *, body=None, figures=None):
    samples = Samples(body or png(folder / "any.png", 8, 8))
    action.write(folder, "t", details=[], figures=figures or {}, intervals={}, rows=rows, samples=samples, pictures=4)
    return Page(folder / "page.html")


def png(path, height, width):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


def test_ten_thousand_answers_are_all_on_a_small_page(tmp_path):
    rows = [
        {"id": f"s{i}", "question": "What?", "answer": "a", "gold": "b", "correct": i % 2 == 0, "task": f"t{i % 5}"} for i in range(10_000)
    ]
    page = written(tmp_path, rows, body=png(tmp_path / "x.png", 32, 32), figures={"accuracy": 0.5})
    assert len(page.data["answers"]) == 10_000
    assert len(page.elements) < 200, "elements are made as they are scrolled to"
    assert len(page.html) < 2_000_000
    assert page.texts("option") == ["all", "t0", "t1", "t2", "t3", "t4"]
    assert sum("pictures" in answer for answer in page.data["answers"]) == 4


def test_a_large_picture_is_stored_no_larger_than_twice_its_size_on_the_page(tmp_path):
    page = written(tmp_path, [{"id": "a", "answer": "x", "gold": "y", "correct": False}], body=png(tmp_path / "x.png", 1500, 2000))
    (picture,) = page.data["pictures"]
    assert (picture["width"], picture["height"], picture["size"], picture["exact"]) == (352, 264, "2000x1500 px", False)
    kind, body = picture["source"].split(",")
    assert kind == "data:image/jpeg;base64"
    (tmp_path / "shown.jpg").write_bytes(base64.b64decode(body))
    with Image.open(tmp_path / "shown.jpg") as shown:
        assert shown.size == (704, 528)


def test_the_answer_of_each_way_has_its_own_colour(tmp_path):
    ways = {"on": {"answer": "red", "correct": True}, "off": {"answer": "blue", "correct": False}}
    row = {"id": "a", "question": "?", "answer": "red", "gold": "red", "correct": True, "ways": ways, "world_tokens": 16}
    page = written(tmp_path, [row, {**row, "id": "b"}])
    pairs = [["answer, on", "red", "right"], ["answer, off", "blue", "wrong"], ["gold", "red", ""]]
    assert [answer["pairs"] for answer in page.data["answers"]] == [pairs, pairs], "and no note that is the same in all rows"


def test_scores_are_shown_where_they_say_more_than_right_or_wrong_and_the_worst_come_first(tmp_path):
    rows = [{"id": str(score), "answer": "x", "gold": "y", "correct": score == 1.0, "score": score} for score in (0.9, 1.0, 0.0, 0.3)]
    shown = written(tmp_path, rows).data["answers"]
    assert [answer["id"] for answer in shown] == ["0.0", "0.3", "0.9", "1.0"]
    assert shown[1]["pairs"][-1] == ["score", "0.300", ""]
    plain = [{**row, "score": float(row["correct"])} for row in rows]
    assert all(pair[0] != "score" for answer in written(tmp_path, plain).data["answers"] for pair in answer["pairs"])


def test_a_bench_that_draws_has_pictures_and_captions_and_speaks_of_no_answers(tmp_path):
    png(tmp_path / "drawn.png", 16, 24)
    rows = [{"id": str(i), "caption": f"a dot {i}", "size": f"{i}x16", "picture": str(tmp_path / "drawn.png")} for i in (24, 16)]
    page = written(tmp_path, rows, body=png(tmp_path / "x.png", 16, 16), figures={"pictures/24x16": 1.0, "pictures/16x16": 1.0})
    assert page.data["noun"] == "samples"
    assert "input" not in {tag for tag, _, _ in page.elements} and "select" not in {tag for tag, _, _ in page.elements}
    assert page.texts("strong") == [], "a count is no overall figure"
    assert page.texts("td") == ["1", "1"], "counts are whole numbers"
    assert [answer["question"] for answer in page.data["answers"]] == ["a dot 24", "a dot 16"]
    assert [[label for _, label in answer["pictures"]] for answer in page.data["answers"]] == [["picture", "drawn"]] * 2


def test_answers_none_of_which_is_usable_have_a_page_and_a_sheet(tmp_path):
    page = written(tmp_path, [{"id": "a", "bad": "it cannot be opened"}, {"id": "b", "bad": "no text"}])
    assert [answer["pairs"] for answer in page.data["answers"]] == [[["reason", "it cannot be opened", ""]], [["reason", "no text", ""]]]
    assert (tmp_path / "sheet.png").is_file()


def test_the_same_answers_give_the_same_page():
    answers = [Answer("a", "wrong", "t", "q", [("answer", "x", "wrong")])]
    assert page_of_answers.render_answers("t", [], [], answers) == page_of_answers.render_answers("t", [], [], answers)
