"""The look at the data before a stage: what it says of each source, and which source it refuses."""

import json

import pytest
import torch

from plait.assembly import data_look
from plait.config.schema import Source
from plait.data.sources.open import open_source
from plait.engine.parallel.distributed import Ranks
from plait.errors import PlaitError
from tests.data.packing import picture


class Inputs:
    """Encodes anything but what is marked."""

    def encode(self, sample, key):
        if sample["fields"].get("broken"):
            raise RuntimeError("cannot encode")


def opened(folder, records, name="a", **more):
    for i in range(3):
        (folder / f"{i}.png").write_bytes(picture(i))
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return open_source(Source(source="jsonl", path=str(path), **more), seed=0)


def test_a_line_says_what_is_bad_without_text_and_of_which_size(tmp_path):
    records = [{"image": "0.png", "caption": "x"}, {"image": "1.png"}, {"caption": None}, {"caption": ""}, {"caption": "y", "broken": 1}]
    (found,) = data_look.look([opened(tmp_path, records)], Inputs(), [], 0)
    side = "x".join(map(str, found.sizes[0]))
    assert (found.read, found.bad.total(), found.without_text) == (5, 3, 1)
    assert found.line().startswith("jsonl:a.jsonl: 5 looked at, 3 bad (1 x no text: `caption` is null; 1 x an empty answer")
    assert found.line().endswith(f"; ...), 1 without text, pictures of {side} px")
    assert any(reason.startswith("RuntimeError: cannot encode (test_data_look.py:") for reason in found.bad)


def test_held_out_samples_among_the_training_data_are_told(tmp_path):
    train = opened(tmp_path, [{"caption": text, "image": "0.png"} for text in "abcd"])
    held = opened(tmp_path, [{"caption": text, "image": "0.png"} for text in "bx"] + [{"caption": "c", "image": "1.png"}], "b")
    (found,) = data_look.look([train], Inputs(), [held], 0)
    assert found.held_out == 1 and "warning: 1 of them are held-out samples too" in found.line()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "0.png"}, "jsonl:a.jsonl: none of the 4 samples looked at has a caption or an answer; name its field with `columns`"),
        ({"caption": "x", "image": "no.png"}, "none of the first 4 samples can be read"),
        ({"caption": "x", "broken": 1}, r"jsonl:a.jsonl: none of the 4 samples looked at can be used: RuntimeError: cannot encode"),
    ],
)
def test_a_source_that_cannot_be_trained_is_refused(tmp_path, record, message):
    with pytest.raises(PlaitError, match=message):
        data_look.look([opened(tmp_path, [record] * 4)], Inputs(), [], 0)


def test_pictures_alone_are_trained_where_that_is_said(tmp_path):
    (found,) = data_look.look([opened(tmp_path, [{"image": "0.png"}] * 4, allow_blank=True)], Inputs(), [], 0)
    assert found.without_text == 4


def test_what_a_folder_does_not_read_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.heic").write_bytes(b"")
    source = open_source(Source(source="folder", path=str(tmp_path)), seed=0)
    (found,) = data_look.look([source], Inputs(), [], 0)
    assert found.line().endswith(", left out: 1 of .heic: not read")


def test_the_samples_are_spread_over_the_source():
    assert data_look._spread(100, 5) == [0, 24, 49, 74, 99]
    assert data_look._spread(3, 32) == [0, 1, 2]
    assert data_look._spread(0, 32) == []


def test_many_sources_share_the_samples_that_are_looked_at(tmp_path):
    source = opened(tmp_path, [{"caption": str(i)} for i in range(40)])
    assert [found.read for found in data_look.look([source] * 64, Inputs(), [], 0)] == [8] * 64
    assert data_look.look([source], Inputs(), [], 0)[0].read == 32


class ThreeRanks(Ranks):
    """Rank 0 of three, of which the last has another file."""

    def gather(self, value):
        return [value, dict(value), value | {"b": "other"}]


def test_ranks_that_have_other_data_are_named_before_the_first_step():
    with pytest.raises(PlaitError, match=r"^data source b is not the same on every rank: rank 2 has other data than rank 0; every machine"):
        data_look.compare_ranks({"a": "1", "b": "2"}, ThreeRanks(0, 3, torch.device("cpu")))
    data_look.compare_ranks({"a": "1", "b": "2"}, Ranks(0, 1, torch.device("cpu")))
