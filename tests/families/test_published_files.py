"""Damaged files of published datasets: one line with the file, from the command line, in every family that knows datasets by name."""

import json

import pytest

from plait import cli
from tests.families.molmo import published_sets as molmo_sets
from tests.families.theworld import published_sets as theworld_sets


def in_place(path, change):
    """Change the content of a JSON file."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


QUESTIONS = "vqa2/v2_OpenEnded_mscoco_val2014_questions.json"
ANSWERS = "vqa2/v2_mscoco_val2014_annotations.json"
COCO = "coco/annotations/captions_val2017.json"
CASES = {
    "no list of questions": ("molmo", QUESTIONS, lambda content: {}, "has no 'questions': is it the published file?"),
    "a list alone": ("molmo", ANSWERS, lambda content: [1], "has no 'annotations': is it the published file?"),
    "no records": ("molmo", ANSWERS, lambda content: {"annotations": [1]}, "holds no list of records: is it the published file?"),
    "records without a number": ("molmo", ANSWERS, lambda content: {"annotations": [{}]}, "record 1 has no 'question_id': is it the"),
    "pictures without a name": ("theworld", COCO, lambda content: {**content, "images": [{"id": 1}]}, "(KeyError: 'file_name'): get them"),
    "texts as pictures": ("theworld", COCO, lambda content: {**content, "images": ["a"]}, "are not as they were published (TypeError: "),
}


@pytest.mark.parametrize("case", CASES)
def test_files_that_are_not_as_published_are_one_line(tmp_path, monkeypatch, capsys, case):
    family, name, change, told = CASES[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOLMO_DATA_DIR", str(tmp_path))
    if family == "molmo":
        molmo_sets.vqa(tmp_path, "vqa2", "v2_")
    else:
        theworld_sets.coco(tmp_path)
    in_place(tmp_path / name, change)
    named = "name: vqa2, split: validation" if family == "molmo" else f"name: coco_captions, split: val2017, path: {tmp_path}/coco"
    preset, entry = "debug" if family == "molmo" else "tiny", f"{{source: dataset, {named}}}"
    recipe = f"family: {family}\npreset: {preset}\ntrain: {{steps: 1, global_batch: 2}}\ndata:\n  train: [{entry}]\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert cli.main(["data", "inspect", "recipe.yaml"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("plait: ")
    assert told in line
