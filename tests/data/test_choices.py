"""Several captions and several templates of a source: drawn by weight, from the sample's key alone, and what is refused."""

import json
from collections import Counter

import pytest

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.loading.loader import Loader
from plait.data.order import Order
from plait.data.sources.contract import read
from plait.data.sources.open import open_source
from plait.errors import BadSample, PlaitError
from plait.keys import key
from tests.data.packing import picture
from tests.test_cli import CONFIG


def opened(folder, rows, **more):
    """A source of records with a picture each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "red.png").write_bytes(picture(9))
    (folder / "data.jsonl").write_text("".join(json.dumps({"image": "red.png", **row}) + "\n" for row in rows))
    return open_source(SourceEntry(source="jsonl", path=str(folder / "data.jsonl"), **more), seed=0)


def answers(source, count, index=0):
    return [read(source, index, key(0, "sample", 0, index, epoch))["messages"][-1]["content"] for epoch in range(count)]


TWO = {"caption": "a red square", "alt_text": "IMG_0042", "label": "square"}


def test_a_caption_is_drawn_from_the_columns_by_their_weights(tmp_path):
    source = opened(tmp_path, [TWO], captions={"columns": {"caption": 0.7, "alt_text": 0.3}})
    drawn = Counter(answers(source, 4000))
    assert set(drawn) == {"a red square", "IMG_0042"}
    assert abs(drawn["a red square"] - 2800) < 4 * (4000 * 0.7 * 0.3) ** 0.5  # four standard deviations of a binomial count
    assert source[0]["messages"] == [{"role": "user", "content": ""}, {"role": "assistant", "content": "a red square"}]
    assert source[0]["fields"] == {"image": "red.png", **TWO}


def test_of_a_list_each_text_is_equally_likely(tmp_path):
    source = opened(tmp_path, [{"sentences": ["one", "two", "three"]}], captions={"columns": {"sentences": 1}})
    drawn = Counter(answers(source, 3000))
    assert sorted(drawn) == ["one", "three", "two"] and min(drawn.values()) > 1000 - 4 * (3000 * 2 / 9) ** 0.5
    assert source[0]["messages"][-1]["content"] == "one"


def test_what_is_null_or_blank_leaves_the_draw_to_the_others(tmp_path):
    rows = [{**TWO, "alt_text": None}, {**TWO, "caption": "  "}, {**TWO, "caption": None, "alt_text": ""}, {**TWO, "caption": [3]}]
    columns = {"columns": {"caption": 0.1, "alt_text": 0.9}}
    source = opened(tmp_path, [TWO, *rows], captions=columns)
    assert set(answers(source, 50, 1)) == {"a red square"} and set(answers(source, 50, 2)) == {"IMG_0042"}
    with pytest.raises(BadSample, match=r"^no caption: `caption` and `alt_text` are null, blank or missing \(captions\)$"):
        source[3]
    with pytest.raises(BadSample, match=r"^`caption` is a number, not a text or a list of texts \(captions\)$"):
        source[4]
    blank = opened(tmp_path, [TWO, *rows], captions=columns, allow_blank=True)
    assert set(answers(blank, 50, 3)) == {""}


def test_a_template_takes_the_chosen_caption(tmp_path):
    template = {"user": "Describe the {label}.", "assistant": "{caption}!"}
    source = opened(tmp_path, [TWO], captions={"columns": {"alt_text": 1}}, template=template)
    assert [turn["content"] for turn in source[0]["messages"]] == ["Describe the square.", "IMG_0042!"]


def test_templates_are_drawn_by_their_weights(tmp_path):
    templates = [{"user": "What is it?", "assistant": "{label}"}, {"assistant": "a {label}", "weight": 3}]
    source = opened(tmp_path, [TWO], templates=templates)
    drawn = Counter(answers(source, 4000))
    assert set(drawn) == {"square", "a square"} and abs(drawn["a square"] - 3000) < 4 * (4000 * 3 / 16) ** 0.5
    assert source[0]["messages"][-1]["content"] == "a square"


class Texts:
    """Inputs whose example is the answer."""

    def encode(self, sample, key):
        return sample["messages"][-1]["content"]

    def collate(self, examples):
        return {"texts": examples}


@pytest.mark.parametrize("workers", [{"workers": 0}, {"workers": 2}, {"workers": 2, "kind": "processes"}])
def test_choices_are_the_same_in_any_worker_on_any_ranks_and_after_a_resume(tmp_path, workers):
    rows = [{"caption": f"caption {i}", "alt_text": [f"alt {i}", f"other {i}"]} for i in range(12)]
    source = opened(tmp_path, rows, captions={"columns": {"caption": 1, "alt_text": 1}}, templates=[{"assistant": "{caption}"}] * 2)
    order = Order([12], [1.0], 0, 4)

    def texts(**more):
        with Loader([source], order, Texts(), seed=0, stop_step=6, **more) as loader:
            return [[text for part in step.micro for text in part.batch["texts"]] for step in loader]

    right = texts(workers=0)
    assert texts(**workers) == right and texts(start_step=4, **workers) == right[4:]
    halves = [texts(rank=rank, world_size=2, micro_batch=1, **workers) for rank in (0, 1)]
    assert [first + second for first, second in zip(*halves, strict=True)] == right
    assert len({text for step in right for text in step}) > 12  # an epoch draws others than the one before


WRONG = [
    (
        {"captions": {"columns": {"caption": 1, "alt": 1}}},
        "data source jsonl:data.jsonl: captions.columns wants the field 'alt'; the records have image, caption, alt_text, label",
    ),
    (
        {"templates": [{"assistant": "{label}"}, {"assistant": "{lable}"}]},
        "data source jsonl:data.jsonl: template.assistant wants the field 'lable'; the records have image, caption, alt_text, label",
    ),
]


@pytest.mark.parametrize(("settings", "told"), WRONG)
def test_a_field_that_there_is_not_is_refused_when_the_source_is_opened(tmp_path, settings, told):
    with pytest.raises(PlaitError) as caught:
        opened(tmp_path, [TWO], **settings)
    assert str(caught.value) == told


CONFIGURED = {
    "template: {assistant: a}, templates: [{assistant: b}]": "data.train.0.templates is set beside template: keep one",
    "captions: {columns: {}}": "data.train.0.captions.columns: names no column: write {caption: 0.7, alt_text: 0.3}",
    "captions: {caption: 1}": "data.train.0.captions.columns is missing (and 1 more problem in this configuration)",
    "captions: {columns: {caption: 0}}": "data.train.0.captions.columns.caption must be greater than 0, got 0",
}


@pytest.mark.parametrize("settings", CONFIGURED)
def test_a_wrong_choice_is_told_with_file_and_line(tmp_path, capsys, settings):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.replace("[{source: scenes, limit: 30,", f"[{{source: scenes, {settings}, limit: 30,"))
    assert cli.main(["config", str(path)]) == 2
    assert capsys.readouterr().err == f"plait: {path}:9: {CONFIGURED[settings]}\n"


@pytest.mark.parametrize("settings", [{"captions": {"columns": {"caption": 1}}}, {"templates": [{"assistant": "b"}]}])
def test_a_source_with_its_own_text_refuses_them(settings):
    told = f"data source scenes: scenes write their own text; take out `template` and `columns`, and use `options` ({next(iter(settings))})"
    with pytest.raises(PlaitError) as caught:
        open_source(SourceEntry(source="scenes", **settings), seed=0)
    assert str(caught.value) == told


def test_a_run_trains_on_drawn_captions_and_other_data_is_read_as_it_was(tmp_path, capsys):
    rows = [{"caption": f"caption {i}", "alt_text": f"alt {i}"} for i in range(12)]
    opened(tmp_path, rows)
    path = tmp_path / "run.yaml"
    source = "{source: jsonl, path: data.jsonl, captions: {columns: {alt_text: 1}}}"
    path.write_text(f"{CONFIG.partition('data:')[0]}data:\n  train: [{source}]\ntrain: {{steps: 2, global_batch: 4}}\n")
    assert cli.main(["train", str(path), f"--run={tmp_path / 'run'}", "--track.tensorboard=false"]) == 0
    assert cli.main(["eval", str(tmp_path / "run"), "--bench", "captions", "--data", str(tmp_path / "data.jsonl"), "--samples", "2"]) == 0
    told = capsys.readouterr().out
    assert "--data is read with the template and columns of data.train.0\n" in told and told.count("(gold 'alt ") == 2
