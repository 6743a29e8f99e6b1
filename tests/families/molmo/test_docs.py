"""The examples of docs/molmo.md under "Mixtures" and "Your own data", read and run as they are printed."""

import re
from pathlib import Path

import pytest
from PIL import Image

from plait.config import mixture
from plait.config.schema import SourceEntry
from plait.data.sources.open import KINDS, open_source

PAGE = (Path(__file__).parents[3] / "docs" / "molmo.md").read_text()
TEXT = PAGE[PAGE.index("\n## Mixtures") : PAGE.index("\n`data.pad`")]


def printed(language: str) -> list[str]:
    """The blocks of a language, without their fences."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with the two pictures that the examples name, to be in."""
    for name in ("cat.png", "cats.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_both_forms_of_a_mixture_on_the_page_have_the_shares_it_says(folder):
    rows, groups = (mixture.read(_written(folder / f"{i}.yaml", text), [], KINDS) for i, text in enumerate(printed("yaml")))
    assert rows.sampling_weights([9, 9, 9]) == [2.0, 1.0, 1.0]
    # sizes 400 and 100: roots 20 and 10 of 30; pixmo_cap counts as 50,000 and so does pixmo_cap_qa
    assert groups.sampling_weights([400, 100, 50_000, 700_000]) == pytest.approx([0.7 * 2 / 3, 0.7 / 3, 0.15, 0.15])


def test_the_line_of_jsonl_on_the_page_is_a_sample(folder):
    (line,) = printed("json")
    sample = open_source(SourceEntry(source="jsonl", path=str(_written(folder / "mine.jsonl", line))), seed=0, split="train")[0]
    assert [message["content"] for message in sample["messages"]] == ["How many cats are there?", "one"]
    assert (len(sample["images"]), sample["fields"]["style"]) == (1, "vqa2")


def test_the_class_on_the_page_is_a_dataset(folder):
    (code,) = printed("python")
    _written(folder / "mine.py", code)
    made = open_source(SourceEntry(source="dataset", name="mine.py:Cats"), seed=0, split="train")
    assert [made[i]["messages"][1]["content"] for i in range(len(made))] == ["one", "two"]
    assert len(made[0]["images"]) == 1


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
