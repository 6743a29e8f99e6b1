"""Figures of a source: what is counted of pictures, texts and repeats, against values that are known."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from plait.config.schema import SourceEntry
from plait.data.figures.alike import DISTANCE, Alike
from plait.data.figures.measure import OTHERS, chosen, measure
from plait.data.figures.scripts import script_of
from plait.data.figures.series import Hashes, Series
from plait.data.sources.contract import Source
from plait.data.sources.open import open_source


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("A dog, 3 cats", "Latin"),
        ("Собака и cat", "Cyrillic"),
        ("一只小狗", "Han"),
        ("犬がいる", "Japanese"),
        ("개가 있다", "Korean"),
        ("كلب", "Arabic"),
        ("कुत्ता", "Devanagari"),
        ("12 + 3 = 15 !", "no letters"),
        ("", "no letters"),
    ],
)
def test_the_script_of_a_text_is_that_of_most_of_its_letters(text, script):
    assert script_of(text) == script


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=200), st.booleans())
def test_a_histogram_counts_every_number_once_within_its_edges(values, logarithmic):
    series = Series("px", logarithmic=logarithmic)
    for value in values:
        series.add(value)
    found = series.histogram()
    assert sum(found.counts) == len(values)
    assert len(found.edges) == len(found.counts) + 1 and found.edges == sorted(set(found.edges))
    for low, high, count in zip(found.edges, found.edges[1:], found.counts, strict=False):
        last = high == found.edges[-1]
        assert count == sum(low <= value < high or (last and value == high) for value in values)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=100))
def test_percentiles_are_numbers_that_there_are(values):
    series = Series("px")
    for value in values:
        series.add(value)
    summary, ordered = series.summary(), sorted(values)
    assert (summary["min"], summary["max"], summary["median"]) == (ordered[0], ordered[-1], ordered[(len(values) - 1) // 2])
    assert summary["p95"] == ordered[int(0.95 * (len(values) - 1) + 1e-9)]


@given(st.lists(st.integers(0, 9), max_size=60), st.lists(st.integers(0, 9), max_size=60))
def test_repeats_and_what_is_shared_are_counted_as_sets_would(own, other):
    hashes, theirs = Hashes(), Hashes()
    for place, value in enumerate(own):
        hashes.add(value, place)
    for place, value in enumerate(other):
        theirs.add(value, place)
    repeated, kinds, groups = hashes.repeated(3)
    assert repeated == len(own) - len(set(own)) and kinds == sum(own.count(value) > 1 for value in set(own))
    assert [count for count, _ in groups] == sorted((own.count(value) for value in set(own) if own.count(value) > 1), reverse=True)[:3]
    assert all(len({own[owner] for owner in owners}) == 1 for _, owners in groups)
    count, pairs = hashes.shared(theirs)
    assert count == sum(value in other for value in own) and all(own[a] == other[b] for a, b in pairs)


class Counted(Source):
    name, fingerprint = "counted", "0"

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"id": str(index), "images": [], "messages": [], "fields": {}}


def test_a_large_source_is_measured_by_a_random_part_that_is_always_the_same():
    source = Counted(100_000)
    part = chosen(source, None)
    assert len(part) == OTHERS == len(set(part.tolist())) and list(part) == sorted(part)
    assert np.array_equal(part, chosen(source, None)) and abs(part.mean() - 50_000) < 5_000
    assert chosen(source, 100_000).tolist() == list(range(100_000)) and chosen(Counted(7), None).tolist() == list(range(7))


def encoded(size, kind="JPEG", seed=0):
    body = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(body, kind)
    return body.getvalue()


def test_pictures_texts_and_faults_of_a_folder_are_counted(tmp_path):
    sizes = [(40, 20), (20, 40), (30, 30), (30, 30), (50, 25), (9, 9)]
    captions = ["one dog", "one dog", "a cat sits here", " ", "собака", "x"]
    for number, (size, caption) in enumerate(zip(sizes, captions, strict=True)):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(size, seed=number))
        (tmp_path / f"{number}.txt").write_text(caption)
    (tmp_path / "5.jpg").write_bytes(encoded((40, 40), seed=5)[:900])
    (tmp_path / "6.jpg").write_bytes(encoded((40, 20), seed=0))
    (tmp_path / "6.txt").write_text("one  dog")
    source = open_source(SourceEntry(source="folder", path=str(tmp_path)), seed=0)
    figures = measure(source, chosen(source, None), threads=2)
    assert (figures.samples, figures.read, figures.usable, figures.pictures, figures.with_pictures) == (7, 7, 5, 5, 5)
    assert sorted(figures.width.values.tolist()) == [20, 30, 40, 40, 50] and sorted(figures.aspect.values.tolist()) == [0.5, 1, 2, 2, 2]
    assert figures.words.values.sum() == 2 + 2 + 4 + 1 + 2
    assert figures.scripts == {"Latin": 4, "Cyrillic": 1} and figures.formats == {"jpg": 5}
    assert figures.same_texts.repeated(9) == (2, 1, [(3, [0, 1, 6])])
    assert figures.same_pictures.repeated(9) == (1, 1, [(2, [0, 6])])
    reasons = dict(figures.broken)
    assert reasons.pop("an empty answer; `allow_blank: true` of the source trains on it") == 1
    (torn,) = reasons
    assert torn.startswith("not a readable image (N bytes)") and figures.broken_examples[torn] == ["5"]
    assert figures.extremes["widest"][1] in (0, 4, 6) and figures.extremes["tallest"] == (2.0, 1) and figures.extremes["largest"][1] == 4
    headers = measure(source, chosen(source, None), threads=1, headers_only=True)
    assert headers.usable == 6 and headers.headers_only


def test_tokens_are_of_all_turns_and_several_conversations_are_one_sample(tmp_path):
    row = {"annotations": [{"caption": "a b"}, {"messages": [{"role": "user", "content": "c d e"}, {"role": "assistant", "content": "f"}]}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"text": "g"}) + "\n")
    source = open_source(SourceEntry(source="jsonl", path=str(tmp_path / "a.jsonl")), seed=0)
    figures = measure(source, [0], threads=1, count_tokens=lambda text: len(text.split()))
    assert figures.tokens.values.tolist() == [6] and figures.words.values.tolist() == [3] and figures.turns.values.tolist() == [4]
    assert figures.usable - figures.with_pictures == 1


def drawn(kind, quality, size=(96, 64)):
    """A picture of shapes, which looks the same at any quality and size."""
    image = Image.new("RGB", (96, 64), (30, 90, 160))
    for number, colour in enumerate([(250, 240, 20), (200, 30, 40), (240, 240, 240)]):
        image.paste(colour, (8 + 28 * number, 6 + 12 * number, 26 + 28 * number, 40 + 6 * number))
    body = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(body, kind, quality=quality)
    return body.getvalue()


def test_pictures_that_look_alike_are_told_from_those_that_are_equal_and_from_others(tmp_path):
    bodies = [drawn("JPEG", 95), encoded((96, 64), seed=1), drawn("JPEG", 60), drawn("JPEG", 95), encoded((96, 64), seed=2)]
    bodies += [drawn("PNG", 0, (192, 128)), encoded((96, 64), seed=1)]
    for number, body in enumerate(bodies):
        (tmp_path / f"{number}.jpg").write_bytes(body)
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    source = open_source(SourceEntry(source="folder", path=str(tmp_path)), seed=0)
    figures = measure(source, range(7), threads=2)
    assert figures.same_pictures.repeated(9)[:2] == (2, 2)
    assert [(pair.sample, pair.of) for pair in figures.alike.pairs()] == [(2, 0), (5, 0)]
    assert measure(source, range(7), threads=1, headers_only=True).alike.pairs() == []
    held = tmp_path / "held"
    held.mkdir()
    for number, body in enumerate([encoded((96, 64), seed=1), drawn("JPEG", 40), encoded((96, 64), seed=9)]):
        (held / f"{number}.jpg").write_bytes(body)
        (held / f"{number}.txt").write_text("held out")
    other = measure(open_source(SourceEntry(source="folder", path=str(held)), seed=0), range(3), threads=1)
    assert [(pair.sample, pair.of) for pair in figures.alike.like(other.alike)] == [(0, 1), (2, 1), (3, 1), (5, 1)]
    assert [(pair.sample, pair.of) for pair in other.alike.like(figures.alike)] == [(1, 0)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 255)), max_size=40))
def test_what_looks_alike_is_what_a_comparison_of_each_with_each_finds(rows):
    """A hash is near the first original, no near copy itself, with the fewest bits that differ; equal files are no near copies."""
    alike, expected, originals, files = Alike(), [], [], set()
    for number, (file, low) in enumerate(rows):
        seen = (low & 15) | (low >> 4) * 0x0F0F_0F0F_0000
        identity = file * 1000 + seen % 7
        alike.add(identity, seen, number)
        if identity in files:
            continue
        files.add(identity)
        near = [(bin(seen ^ other).count("1"), place, of) for place, (other, of) in enumerate(originals)]
        if near and min(near)[0] <= DISTANCE:
            expected.append((number, min(near)[2]))
        else:
            originals.append((seen, number))
    assert [(pair.sample, pair.of) for pair in alike.pairs()] == expected
