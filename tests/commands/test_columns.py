"""Files whose columns have other names than those that are looked for: the names they have are told, in every family."""

import json

import pytest
import yaml

from plait import cli
from tests.data.packing import picture
from tests.families.test_conformance import TINY

TEXTS = "none of the fields messages, conversations, texts, caption, text (`columns` renames a field, `template` makes a text of several)"
PICTURES = "none of the fields image, images, image_path, image_file, file_name, filename, file, img"
LOST = "looks like a value: the first line of CSV is read as the names of the columns, so add one"


@pytest.fixture
def refusal(tmp_path, capsys):
    """Return a function that trains a tiny model of a family on a file of records, and returns why that is refused."""

    def train(family, name, body, **entry):
        (tmp_path / "a.png").write_bytes(picture(1))
        (tmp_path / name).write_text(body)
        entry = {"source": "datasets", "path": str(tmp_path / name), **entry}
        recipe = {"family": family, "data": {"train": [entry], "workers": 0, "cache": str(tmp_path / "cache")}, "train": {"steps": 1}}
        (tmp_path / "recipe.yaml").write_text(yaml.dump({**recipe, **yaml.safe_load(TINY[family])}))
        assert cli.main(["train", str(tmp_path / "recipe.yaml"), f"--run={tmp_path / 'run'}"]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    return train


FILES = [
    ("a.csv", "a.png,one\na.png,two\n", f"'a.png', one; 'a.png' {LOST}"),
    ("a.csv", "What is it?,no\nAnd this?,yes\n", f"'What is it?', no; 'What is it?' {LOST}"),
    ("a.csv", f"label,{'word ' * 20}\nx,y\n", f"label, '{('word ' * 20)[:40]}...'; '{('word ' * 20)[:40]}...' {LOST}"),
    ("a.csv", "img , text\na.png,one\n", "'img ', ' text'; rename with columns: {img: 'img ', text: ' text'}"),
    ("a.tsv", "Image\tCaption\na.png\tone\n", "Image, Caption; rename with columns: {image: 'Image', caption: 'Caption'}"),
    ("a.jsonl", json.dumps({"Image": "a.png", "answer": "x"}), "Image, answer; rename with columns: {image: 'Image'}"),
    ("a.csv", "photo,answer\na.png,one\n", "photo, answer"),
    ("a.csv", ",".join(f"c{i}" for i in range(24)) + "\n" + ",".join("x" * 24), ", c18, c19 and 4 more"),
]


@pytest.mark.parametrize(("name", "body", "has"), FILES)
@pytest.mark.parametrize("family", sorted(TINY))
def test_a_file_without_the_columns_that_are_looked_for_is_told_with_those_it_has(refusal, family, name, body, has):
    said = refusal(family, name, body)
    lacks = f"no image in the sample, and the model draws pixels: {PICTURES}" if family == "nanodit" else f"no assistant turn: {TEXTS}"
    assert f" samples looked at can be used: {lacks}; the record has " in said and said.endswith(has)


def test_pictures_whose_text_has_another_column_are_told_with_the_columns(refusal):
    said = refusal("nanodit", "a.csv", "image, text\na.png,one\n")
    assert "has a caption or an answer" in said
    assert "(the records have image, ' text'; rename with columns: {text: ' text'}), or say `allow_blank: true`" in said


@pytest.mark.parametrize("family", sorted(TINY))
def test_a_template_or_columns_for_a_file_without_a_header_are_told_with_what_it_was_read_as(refusal, family):
    rows = "a.png,one\na.png,two\n"
    said = refusal(family, "a.csv", rows, template={"assistant": "{caption}"})
    assert said.endswith(f"template.assistant wants the field 'caption'; the records have 'a.png', one; 'a.png' {LOST}")
    said = refusal(family, "b.csv", rows, columns={"text": "caption"})
    assert said.endswith(f"no field 'caption' (columns); the record has 'a.png', one; 'a.png' {LOST}")
