"""Filters of sources: which samples pass, how they are counted, what is measured and when, and what is refused."""

import csv
import io
import json
import pickle
import threading

import numpy as np
import pytest
from PIL import Image

from plait import cli
from plait.assembly.configuration import open_config
from plait.assembly.data import open_training, open_validation
from plait.config.schema import SourceEntry
from plait.data import paths
from plait.data.formats.open_file import OpenFile
from plait.data.loading.bucketing import order_of
from plait.data.order import SampleId
from plait.data.selection import survey
from plait.data.sources.contract import Source
from plait.data.sources.conversations import Conversations
from plait.data.sources.filtered import passing
from plait.data.sources.open import open_source
from plait.errors import PlaitError
from tests.data.packing import pack
from tests.test_cli import CONFIG

CAPTIONS = ["a cat", "two dogs, on grass", "", "a very long caption of many words about one single red bird", "猫在树上"]
WORDS = [2, 5, 0, 12, 4]
SIZES = [(64, 32), (16, 48), (40, 40), (200, 20), (33, 64)]
COUNT = 25


def body(number):
    out = io.BytesIO()
    Image.new("RGB", SIZES[number % 5], (number, 0, 0)).save(out, "JPEG" if number % 2 else "PNG")
    return out.getvalue()


def row(number):
    """The columns of a record: a caption of five, and so on; of number 7 no score."""
    score = None if number == 7 else number / COUNT
    return {"id": f"n{number}", "caption": CAPTIONS[number // 5 % 5], "clip_score": score, "lang": ("en", "de")[number % 2]}


def as_jsonl(folder):
    for number in range(COUNT):
        (folder / f"{number}.png").write_bytes(body(number))
    lines = [json.dumps({**row(number), "image": f"{number}.png"}) for number in range(COUNT)]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return {"source": "jsonl", "path": str(folder / "data.jsonl")}


def as_csv(folder):
    as_jsonl(folder)
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*row(0), "image"])
        writer.writeheader()
        writer.writerows({**row(number), "image": f"{number}.png"} for number in range(COUNT))
    return {"source": "datasets", "path": str(folder / "data.csv")}


def as_shards(folder):
    members = []
    for number in range(COUNT):
        members += [
            (f"{number:03d}.{'jpg' if number % 2 else 'png'}", body(number)),
            (f"{number:03d}.json", json.dumps(row(number)).encode()),
        ]
    return {"source": "shards", "path": str(pack(folder / "a.tar", members))}


def as_folder(folder):
    for number in range(COUNT):
        (folder / f"{number:03d}.png").write_bytes(body(number))
        (folder / f"{number:03d}.json").write_text(json.dumps(row(number)))
    return {"source": "folder", "path": str(folder)}


KINDS = {"jsonl": as_jsonl, "csv": as_csv, "shards": as_shards, "folder": as_folder}


def opened(made, limits, **more):
    return open_source(SourceEntry(**made, filter=limits, allow_blank=True, **more), seed=0)


def numbers(source):
    """The number of each sample, which its id does not tell of every kind."""
    return [int(source.peek(i)["fields"]["id"][1:]) for i in range(len(source))]


RULES = {
    "min_side": ({"min_side": 33}, lambda n: min(SIZES[n % 5]) >= 33),
    "aspect": ({"aspect": [0.5, 2]}, lambda n: 0.5 <= SIZES[n % 5][0] / SIZES[n % 5][1] <= 2),
    "caption_tokens": ({"caption_tokens": [2, 5]}, lambda n: 2 <= WORDS[n // 5 % 5] <= 5),
    "expr": ({"expr": "clip_score > 0.28 and lang == 'en'"}, lambda n: n / COUNT > 0.28 and n % 2 == 0),
    "all": (
        {"min_side": 33, "aspect": [0.5, 2], "caption_tokens": [2, 5], "expr": "clip_score > 0.28"},
        lambda n: n != 7 and n / COUNT > 0.28 and 2 <= WORDS[n // 5 % 5] <= 5 and n % 5 in (2, 4),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_the_samples_that_pass_are_those_of_the_limits_in_every_kind_of_source(tmp_path, kind, rule):
    limits, passes = RULES[rule]
    source = opened(KINDS[kind](tmp_path), limits)
    assert numbers(source) == [n for n in range(COUNT) if passes(n)]
    assert sum(source.filtered.values()) == COUNT - len(source)


def test_a_sample_is_counted_by_the_first_part_that_it_fails(tmp_path):
    source = opened(as_shards(tmp_path), RULES["all"][0])
    assert source.filtered == {
        "expr": 7,  # the first eight but number 7
        "expr, undecided (of a null, or a value of another type)": 1,
        "caption_tokens [2, 5]": 10,
        "min_side 33": 4,
    }


def test_a_broken_picture_is_kept_for_the_loader_to_find(tmp_path):
    made = as_jsonl(tmp_path)
    (tmp_path / "3.png").write_bytes(b"no picture")
    (tmp_path / "8.png").unlink()
    source = opened(made, {"min_side": 33})
    assert {3, 8} <= set(source.places(np.arange(len(source))).tolist())
    assert sum(source.filtered.values()) == sum(min(SIZES[n % 5]) < 33 for n in range(COUNT) if n not in (3, 8))


def test_a_text_without_a_picture_passes_limits_of_pictures_where_others_have_one(tmp_path):
    made = as_jsonl(tmp_path)
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write(json.dumps({"id": "n99", "caption": "text alone"}) + "\n")
    assert numbers(opened(made, {"min_side": 33}))[-1] == 99
    (tmp_path / "data.jsonl").write_text(json.dumps({"id": "n99", "caption": "text alone"}) + "\n")
    with pytest.raises(PlaitError) as caught:
        opened(made, {"min_side": 33})
    assert str(caught.value) == "data source jsonl:data.jsonl: its filter is about sizes of pictures, and no sample has a picture"


def test_limits_of_pictures_are_those_of_the_frames_of_clips_too(tmp_path):
    for name, size in {"wide": (90, 30), "square": (40, 40), "small": (20, 20)}.items():
        picture = io.BytesIO()
        Image.new("RGB", size).save(picture, "PNG")
        (tmp_path / f"{name}.png").write_bytes(picture.getvalue())
    clips = [["square.png", "square.png"], ["square.png", "small.png"], ["wide.png", "square.png"]]
    rows = [{"id": str(k), "frames": frames, "caption": "x"} for k, frames in enumerate(clips)]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"source": "jsonl", "path": str(tmp_path / "clips.jsonl"), "filter": {"min_side": 25, "aspect": [0.5, 2]}}
    source = open_source(SourceEntry(**entry), seed=0)
    assert [source[i]["id"] for i in range(len(source))] == ["0"]
    assert source.filtered == {"min_side 25": 1, "aspect [0.5, 2]": 1}


def test_samples_are_measured_once_and_other_limits_need_no_second_look(tmp_path, monkeypatch):
    made, looks = as_shards(tmp_path), []
    before = Conversations.peek
    monkeypatch.setattr(Conversations, "peek", lambda self, i: looks.append(i) or before(self, i))
    opened(made, {"min_side": 33, "caption_tokens": [2, 5]})
    assert looks == [*range(COUNT)]
    assert len(opened(made, {"min_side": 1, "aspect": [0.1, 0.4]})) == 5
    assert looks == [*range(COUNT)]


def test_a_copy_of_a_list_with_other_pictures_is_measured_by_itself(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    made = [as_jsonl(tmp_path / name) for name in ("a", "b")]
    for number in range(COUNT):
        Image.new("RGB", (64, 64)).save(tmp_path / "b" / f"{number}.png")
    assert [len(opened(each, {"min_side": 33})) for each in made] == [10, COUNT]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "shards"])
def test_what_is_no_matter_of_pictures_is_told_without_reading_them(tmp_path, monkeypatch, kind):
    made, read = KINDS[kind](tmp_path), []
    opened(made, {"expr": "lang == 'en'"}, limit=1)
    for module, name in ((paths, "read_image"), (OpenFile, "read")):
        before = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, before=before, **more: read.append(before(*given, **more)) or read[-1])
    source = opened(made, {"expr": "clip_score > 0.28 and lang == 'en'", "caption_tokens": [2, 5]})
    assert sum(b"PNG" in body or b"JFIF" in body for body in read) <= 1  # the first record, when the source is opened
    assert numbers(source) == [n for n in range(COUNT) if RULES["expr"][1](n) and RULES["caption_tokens"][1](n)]


def test_a_sample_whose_picture_is_broken_is_judged_by_its_columns_in_any_pass(tmp_path):
    made = as_jsonl(tmp_path)
    for number in (3, 8, 10):
        (tmp_path / f"{number}.png").unlink()
    both = numbers_before(opened(made, {"expr": "lang == 'en'", "min_side": 33}))
    (tmp_path / "user-cache").rename(tmp_path / "other-cache")
    assert numbers_before(opened(made, {"expr": "lang == 'en'"})) == {n for n in range(COUNT) if n % 2 == 0}
    assert numbers_before(opened(made, {"expr": "lang == 'en'", "min_side": 33})) == both
    assert {8, 10} <= both and 3 not in both


def numbers_before(source):
    return set(source.places(np.arange(len(source))).tolist())


def test_a_survey_goes_on_where_a_kill_left_it(tmp_path, monkeypatch):
    made = as_shards(tmp_path)
    monkeypatch.setattr(survey, "_AT_ONCE", 4)
    before, looks = Conversations.peek, []

    def killed(self, i):
        looks.append(i)
        if i == 14 and len(looks) == 15:
            raise KeyboardInterrupt
        return before(self, i)

    monkeypatch.setattr(Conversations, "peek", killed)
    with pytest.raises(KeyboardInterrupt):
        opened(made, {"min_side": 33})
    source = opened(made, {"min_side": 33})
    assert looks == [*range(15), *range(12, COUNT)]
    assert numbers(source) == [n for n in range(COUNT) if min(SIZES[n % 5]) >= 33]
    assert not [*(tmp_path / "user-cache" / "measured").glob("*.parts")]


@pytest.mark.parametrize("damage", [b"", b"no index"])
def test_damaged_numbers_are_taken_again(tmp_path, damage):
    made = as_shards(tmp_path)
    right = numbers(opened(made, {"min_side": 33}))
    (path,) = (tmp_path / "user-cache" / "measured").glob("*.idx")
    whole = path.read_bytes()
    path.write_bytes(damage or whole[:-8] + bytes(8 * [255]))
    assert numbers(opened(made, {"min_side": 33})) == right


def test_of_two_that_open_at_once_one_measures(tmp_path, monkeypatch):
    made, looks = as_shards(tmp_path), []
    before = Conversations.peek
    monkeypatch.setattr(Conversations, "peek", lambda self, i: looks.append(i) or before(self, i))
    found = []
    threads = [threading.Thread(target=lambda: found.append(len(opened(made, {"min_side": 33})))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [10, 10, 10] and sorted(looks) == [*range(COUNT)]


def test_the_samples_held_out_are_those_that_would_be_without_the_filter(tmp_path, capsys):
    made = {**as_shards(tmp_path), "allow_blank": True}
    for name, limits in {"plain": {}, "filtered": {"filter": {"expr": "lang == 'en'"}}}.items():
        (tmp_path / f"{name}.yaml").write_text(
            CONFIG.partition("data:")[0]
            + f"data: {json.dumps({'train': [{**made, **limits}], 'validation': '40%'})}\ntrain: {{steps: 2}}\n"
        )
    plain, other = (open_config(tmp_path / f"{name}.yaml").config for name in ("plain", "filtered"))
    held = [set(numbers(open_validation(config)[0])) for config in (plain, other)]
    assert held[1] == {n for n in held[0] if n % 2 == 0} and held[1]
    trained = set(numbers(open_training(other).sources[0]))
    assert trained | held[1] == set(range(0, COUNT, 2)) and not trained & held[0]
    assert cli.main(["data", "index", str(tmp_path / "filtered.yaml")]) == 0
    told = [line.partition("; ")[2] for line in capsys.readouterr().out.splitlines()]
    assert told == ["filtered: 12 by expr, 12 of 25"] * 2


def test_a_filtered_source_pickles_draws_and_knows_its_fingerprint(tmp_path):
    made = as_shards(tmp_path)
    source, plain = opened(made, {"min_side": 33}), open_source(SourceEntry(**made, allow_blank=True), seed=0)
    again = pickle.loads(pickle.dumps(source))
    assert [again.draw(i, 1)["id"] for i in range(len(again))] == [plain[n]["id"] for n in numbers(source)]
    others = [opened(made, {"min_side": least}).fingerprint for least in (32, 33)]
    assert len({plain.fingerprint, *others}) == 3 and source.fingerprint == others[1]
    with pytest.raises(IndexError, match="sample 10 of 10"):
        source[10]


class Buckets(Source):
    """A source of two buckets, whose sample i has the field n of i."""

    name, fingerprint, groups = "buckets", "buckets", (30, 12)

    def __len__(self):
        return 42

    def __getitem__(self, index):
        return {"id": str(index), "images": [], "messages": [], "fields": {"n": index}}

    def table(self, global_batch):
        return [{"bucket": str(size), "samples": size, "tokens": 10 * size, "batches": 0, "left_over": 0} for size in self.groups]


def test_buckets_keep_to_the_samples_that_pass():
    source = passing(Buckets(), SourceEntry(source="scenes", filter={"expr": "n % 3 == 0"}), "it", None)
    assert source.groups == (10, 4) and [source[i]["fields"]["n"] for i in (9, 10)] == [27, 30]
    assert [(row["samples"], row["tokens"], row["batches"], row["left_over"]) for row in source.table(4)] == [
        (10, 100, 2, 2),
        (4, 40, 1, 0),
    ]
    alone = passing(Buckets(), SourceEntry(source="scenes", filter={"expr": "n >= 30"}), "it", None)
    assert alone.groups == (12,) and [row["bucket"] for row in alone.table(4)] == ["12"]


def test_reasons_for_which_a_condition_is_undecided_are_counted(tmp_path):
    values = [None, "one", "two", None, None]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"caption": "a", "n": value}) + "\n" for value in values))
    with pytest.raises(PlaitError, match=r"is undecided for all of the 5 samples looked at: 3 x .*; 2 x n is text and 3 a number$"):
        opened({"source": "jsonl", "path": str(tmp_path / "data.jsonl")}, {"expr": "n > 3"})


WRONG = {
    "expr: 'clip_scre > 0.28'": "filter.expr 'clip_scre > 0.28' at character 1: no column 'clip_scre': did you mean 'clip_score'? the "
    "records have id, caption, clip_score, lang, image",
    "expr: 'lang > 3'": "filter.expr 'lang > 3' is undecided for all of the 20 samples looked at: lang is text and 3 a number",
    "expr: 'clip_score > 2'": "its filter leaves none of its 25 samples: 24 by expr, 1 by expr, undecided (of a null, or a value of "
    "another type)",
}


@pytest.mark.parametrize("limits", WRONG)
def test_a_filter_that_does_not_fit_the_data_is_refused_before_a_run(tmp_path, capsys, limits):
    made = as_jsonl(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    source = f"{{source: jsonl, path: '{made['path']}', filter: {{{limits}}}}}"
    assert cli.main(["train", str(tmp_path / "run.yaml"), f"--data.train=[{source}]", f"--run={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err == f"plait: data source jsonl:data.jsonl: {WRONG[limits]}\n"


ILL_FORMED = {
    "{expr: 'clip_score >'}": "data.train.0.filter.expr: 'clip_score >' at character 1: invalid syntax",
    "{expr: 'open(lang)'}": "data.train.0.filter.expr: 'open(lang)' at character 1: 'open(lang)' is not allowed: a condition has "
    "comparisons, and, or, not, in, + - * / // %, names of columns, numbers, texts, lists, len() and lower()",
    "{aspect: [2, 0.5]}": "data.train.0.filter.aspect: is [2, 0.5]: the least comes first",
    "{min_sides: 3}": "data.train.0.filter.min_sides is not a key: did you mean data.train.0.filter.min_side?",
    "{}": "data.train.0.filter: filter is empty: it takes dedup, expr, caption_tokens, min_side, aspect",
}


@pytest.mark.parametrize("limits", ILL_FORMED)
def test_an_ill_formed_filter_is_told_with_file_and_line(tmp_path, capsys, limits):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.replace("[{source: scenes, limit: 30,", f"[{{source: scenes, filter: {limits}, limit: 30,"))
    assert cli.main(["config", str(path)]) == 2
    assert capsys.readouterr().err == f"plait: {path}:9: {ILL_FORMED[limits]}\n"


def test_every_command_that_tells_of_the_data_tells_what_is_filtered(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    made = as_jsonl(tmp_path)
    source = f"--data.train=[{{source: jsonl, path: '{made['path']}', allow_blank: true, filter: {{min_side: 33}}}}]"
    told = "filtered: 15 by min_side 33, 15 of 25"
    for command in (["data", "index"], ["data", "inspect"], ["doctor"], ["plan"], ["train"]):
        more = ["--out", str(tmp_path / "seen")] if command[-1] == "inspect" else []
        cli.main([*command, str(path), *more, source, f"--run={tmp_path / 'run'}"])
        assert told in capsys.readouterr().out, command
    assert not (tmp_path / "run" / "quarantine.jsonl").exists()
    assert cli.main(["plan", str(path), "--json", source]) == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["filtered"] == {"jsonl:data.jsonl": {"min_side 33": 15}}
    both = source.replace("}]", "}, {source: jsonl, path: '" + str(made["path"]) + "', allow_blank: true, filter: {min_side: 30}}]")
    assert cli.main(["plan", str(path), "--json", both]) == 0
    planned = json.loads(capsys.readouterr().out)["stages"][0]["filtered"]
    assert [*planned] == ["jsonl:data.jsonl", "jsonl:data.jsonl (2)"] and [*planned["jsonl:data.jsonl (2)"]] == ["min_side 30"]


def test_index_takes_settings_of_a_configuration_alone(tmp_path, capsys):
    made = as_shards(tmp_path)
    assert cli.main(["data", "index", made["path"], "--seed=1"]) == 2
    assert capsys.readouterr().err == f"plait: --seed=1: {made['path']} is no configuration, which alone has settings\n"
    (tmp_path / "run.yaml").write_text(CONFIG)
    assert cli.main(["data", "index", str(tmp_path / "run.yaml"), "--beside"]) == 2
    told = "is a configuration: --beside is for a shard, a file of records or a folder of shards\n"
    assert capsys.readouterr().err.endswith(told)


def test_an_order_of_filtered_samples_draws_each_of_them_once_an_epoch(tmp_path):
    source = opened(as_shards(tmp_path), {"min_side": 33})
    ids = [identity for step in range(5) for identity in order_of([source], [1.0], 0, 2).ids(step)]
    assert sorted(ids) == [SampleId(0, i, 0) for i in range(10)]
