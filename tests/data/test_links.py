"""A training source of links without pictures is refused with the command that fetches them; texts with an address are not."""

import json
from pathlib import Path

import pytest

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.link_lists.refusal import address_column
from plait.data.sources.open import open_source
from plait.errors import PlaitError

ROOT = Path(__file__).resolve().parents[2]
PICTURES = [{"url": f"https://a.example/{n}.jpg?w=1", "text": "a cat"} for n in range(30)]
PAGES = [{"url": f"https://a.example/story-{n}", "text": "once", "timestamp": "2024"} for n in range(30)]


def opened(tmp_path, rows, name="links.jsonl", **entry):
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return open_source(SourceEntry.model_validate({"source": "datasets", "path": str(tmp_path / name), **entry}), seed=0)


def test_a_list_of_links_is_refused_with_its_command(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(PlaitError) as refused:
        opened(tmp_path, PICTURES, limit=650)
    fetch = f"plait data download {tmp_path}/links.jsonl data/links --limit=1000"
    assert str(refused.value) == (
        "data source datasets:links.jsonl: its rows hold addresses of pictures, and no pictures: fetch them into tar shards: "
        f"{fetch} (650 pictures take about so many rows, as some links are dead); "
        "then train on {source: shards, path: data/links}, in a flat JSON file --dataset_name=./data/links"
    )


@pytest.mark.parametrize("entry", [{}, {"columns": {"image": "photo"}}])
def test_pictures_named_by_addresses_are_refused_with_the_column(tmp_path, entry):
    rows = [{"photo" if entry else "image": f"https://a.example/{n}", "caption": "a cat"} for n in range(3)]
    with pytest.raises(PlaitError, match=rf"plait data download \S+/links.jsonl data/links --url-column={'photo' if entry else 'image'};"):
        opened(tmp_path, rows, source="jsonl", **entry)


def test_a_published_list_is_refused_before_it_is_fetched_with_its_size_and_time():
    entry = SourceEntry(source="datasets", name="mlfoundations/datacomp_small", limit=100_000)
    with pytest.raises(PlaitError) as refused:
        open_source(entry, seed=0)
    said = str(refused.value)
    assert "plait data download hf://datasets/mlfoundations/datacomp_small data/datacomp_small --max-side=512 --limit=154000 (" in said
    assert "about 5 GB, 35 kB a row as published: 450 GB for 12.8 million rows, at 512 pixels; about 10 minutes at 250 rows" in said


@pytest.mark.parametrize("rows", [PAGES, [{"text": "once"}], [{"caption": "once", "image_url": None}]])
def test_texts_with_or_without_an_address_are_no_list_of_links(tmp_path, rows):
    assert len(opened(tmp_path, rows, template={"user": "Say.", "assistant": "{text}" if "text" in rows[0] else "{caption}"})) == len(rows)


def test_a_renamed_column_of_addresses_makes_texts_of_a_list(tmp_path):
    assert len(opened(tmp_path, PICTURES, columns={"page": "url"})) == 30


def test_lists_are_told_by_columns_or_by_endings():
    assert address_column([{"image_url": "https://a.example/1"}]) == "image_url"
    assert address_column([{"URL": "https://a.example/1", "WIDTH": 3, "HEIGHT": 4}]) == "URL"
    assert address_column(PICTURES[:1] + PAGES[:2]) == "url"
    assert address_column(PICTURES[:1] + PAGES[:3]) is None
    assert address_column([{"url": "text alone"}]) is None


@pytest.mark.parametrize("verb", ["plan", "doctor", "train"])
def test_a_published_list_is_told_before_a_run(tmp_path, verb, capsys, caplog):
    path = tmp_path / "flat.json"
    flat = {"dataset_name": "datacomp", "num_samples": 650, "model_name": "tiny", "cosmos_model_name": "tiny", "device": "cpu"}
    path.write_text(json.dumps(flat), encoding="utf-8")
    assert cli.main([verb, str(path)]) != 0
    said = capsys.readouterr()
    fetch = "plait data download hf://datasets/mlfoundations/datacomp_small data/datacomp_small --max-side=512 --limit=1000 ("
    assert fetch in said.out + said.err + caplog.text


def test_the_shipped_recipe_of_datacomp_begins_with_the_command_that_fetches_it(capsys):
    assert cli.main(["train", str(ROOT / "configs/theworld/datacomp_production.json"), "--device=cpu", "--mixed_precision=no"]) == 2
    fetch = "plait data download hf://datasets/mlfoundations/datacomp_small data/datacomp_small --max-side=512 --limit=154000 ("
    assert fetch in capsys.readouterr().err
