"""Mixtures: shares by hand, every wrong file in one line, and the shipped one complete."""

import json
import math
from pathlib import Path

import pytest

from plait.config import mixture
from plait.data.sources.open import KINDS
from plait.errors import PlaitError
from plait.families import offers

SHIPPED = offers.mixture("molmo", "3.2-synthetic")


def read(tmp_path: Path, text: str, without=()):
    path = tmp_path / "mix.yaml"
    path.write_text(text)
    return mixture.read(path, without, KINDS)


def test_rows_keep_their_own_weights_and_may_be_any_source(tmp_path):
    parsed = read(tmp_path, "[{name: vqa2, weight: 2}, {source: jsonl, path: mine.jsonl}]")
    assert [entry.source for entry in parsed.entries] == ["dataset", "jsonl"]
    assert parsed.entries[1].path == str(tmp_path / "mine.jsonl")  # relative to the mixture's file
    assert parsed.sampling_weights([10, 1000]) == [2.0, 1.0]


def test_json_rows_of_name_and_weight_are_a_mixture(tmp_path):
    path = tmp_path / "mix.json"
    path.write_text(json.dumps([{"name": "vqa2", "weight": 0.5}, {"name": "mine.py:Mine", "weight": 0.5}]))
    assert [entry.name for entry in mixture.read(path, [], KINDS).entries] == ["vqa2", f"{tmp_path}/mine.py:Mine"]


def test_groups_share_by_the_root_of_size_or_of_the_size_written(tmp_path):
    text = "groups: {a: {weight: 0.15, datasets: [x, {name: y, size: 900}]}, b: {weight: 0.85, datasets: [z]}}"
    weights = read(tmp_path, text).sampling_weights([100, 5, 7])
    assert weights == pytest.approx([0.15 * 10 / 40, 0.15 * 30 / 40, 0.85])


def test_what_is_left_out_leaves_its_share_to_its_group(tmp_path):
    text = "groups: {a: {weight: 0.4, datasets: [x, y]}, b: {weight: 0.6, datasets: [z]}}"
    assert read(tmp_path, text, ["x"]).sampling_weights([9, 4]) == pytest.approx([0.4, 0.6])


def test_the_shipped_mixture_has_its_groups_and_overrides():
    parsed = mixture.read(SHIPPED, [], KINDS)
    assert parsed.group_weights == {"demo": 0.15, "academic": 0.5, "pointing": 0.35}
    sizes = {part.entry.name: part.size for part in parsed.parts if part.size}
    assert sizes == {"pixmo_cap": 50_000, "dv_qa": 10_000, "figure_qa": 10_000, "plot_qa": 20_000}
    assert (len(parsed.parts), math.fsum(parsed.sampling_weights([1] * len(parsed.parts)))) == (31, pytest.approx(1.0))


WRONG = {
    "[{name: a, weight: -1}]": "mix.yaml:1: datasets.0.weight must be greater than 0, got -1",
    "[{name: a, wieght: 1}]": "mix.yaml:1: datasets.0.wieght is not a key: did you mean datasets.0.weight?",
    "[{weight: 1}]": "mix.yaml:1: datasets.0 needs a name",
    "[{source: jsonl}]": "mix.yaml:1: datasets.0 of source 'jsonl' needs a path",
    "[a, a]": "mix.yaml:1: datasets.1 lists a a second time: keep one",
    "groups: {a: {weight: 1, datasets: [{name: x, weight: 2}]}}": "has a weight, but in a group the size decides: write size",
    "groups: {a: {datasets: [x]}}": "mix.yaml:1: groups.a.weight is missing",
    "{a: 1}": "a mixture is a list of {name, weight} rows, or has `groups`; this file has neither",
    "groups: {}": "groups must be",
}


@pytest.mark.parametrize(("text", "line"), WRONG.items())
def test_a_wrong_mixture_is_told_in_one_line(tmp_path, text, line):
    with pytest.raises(PlaitError) as caught:
        read(tmp_path, text)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_leaving_out_what_is_not_there_names_the_nearest(tmp_path):
    with pytest.raises(PlaitError, match=r"data\.without names 'vqa', which mixture mix does not have: did you mean 'vqa2'"):
        read(tmp_path, "[vqa2, okvqa]", ["vqa"])
    with pytest.raises(PlaitError, match="leaves nothing of mixture mix"):
        read(tmp_path, "[vqa2]", ["vqa2"])


def test_an_unknown_mixture_lists_the_known_ones():
    with pytest.raises(PlaitError, match=r"data\.mixture '3.2-sythetic' is neither .* did you mean '3.2-synthetic'"):
        offers.mixture("molmo", "3.2-sythetic")
