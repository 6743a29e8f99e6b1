"""Files of records as a user may name them: with each usual name of the picture's column, compressed, a pipe, indexed before."""

import bz2
import csv
import gzip
import json
import os
import re
import subprocess

import fsspec
import pytest

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.records import PATH_FIELDS
from plait.data.sources.open import open_source
from plait.errors import BadSample, PlaitError
from tests.data.packing import pack, picture

LINES = b'{"caption": "one"}\n{"caption": "two"}\n'
PACKED = {"gzip": gzip.compress(LINES), "bzip2": bz2.compress(LINES), "zstd": b"\x28\xb5\x2f\xfd" + LINES}


def opened(kind, path, cache, **more):
    return open_source(SourceEntry(source=kind, path=str(path), **more), seed=0, cache=cache)


@pytest.mark.parametrize("column", ["image", *PATH_FIELDS])
def test_every_kind_of_text_file_reads_the_same_names_of_picture_columns(tmp_path, column):
    (tmp_path / "x.png").write_bytes(picture(1))
    record = {column: "x.png", "caption": "seven"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (tmp_path / "a.json").write_text(json.dumps([record]))
    with (tmp_path / "a.csv").open("w") as file:
        csv.writer(file).writerows([record, record.values()])
    for kind, name in (("jsonl", "a.jsonl"), ("jsonl", "a.json"), ("datasets", "a.jsonl"), ("datasets", "a.csv")):
        sample = opened(kind, tmp_path / name, tmp_path / "cache")[0]
        assert (sample["images"], sample["messages"][-1]["content"]) == ([picture(1)], "seven")


def test_the_column_image_goes_before_other_names_of_pictures(tmp_path):
    (tmp_path / "x.png").write_bytes(picture(1))
    (tmp_path / "a.jsonl").write_text(json.dumps({"file_name": "gone.png", "image": "x.png", "caption": "c"}))
    assert opened("jsonl", tmp_path / "a.jsonl", tmp_path / "cache")[0]["images"] == [picture(1)]


@pytest.mark.parametrize(("name", "body"), [("a.jsonl", LINES), ("a.csv", b"caption\none\ntwo\n")])
@pytest.mark.parametrize("before", [False, True], ids=["new", "read by a source before"])
def test_files_of_records_are_indexed_with_their_count(tmp_path, monkeypatch, capsys, name, body, before):
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / name).write_bytes(body)
    if before:
        opened("datasets", tmp_path / name, None)
    assert cli.main(["data", "index", str(tmp_path / name)]) == 0
    said = capsys.readouterr().out
    assert re.search(rf"{name} +2  1 each \(record\) .* {'unchanged' if before else 'built'} in", said)
    assert f"1 files, 2 samples, {len(body)} B; {1 - before} indexes built, {int(before)} unchanged" in said
    assert cli.main(["data", "index", "--beside", str(tmp_path / name)]) == 0
    assert (tmp_path / f"{name}.idx").is_file() and len(opened("datasets", tmp_path / name, None)) == 2


def test_a_tar_and_a_file_of_records_of_one_name_do_not_use_the_index_of_each_other(tmp_path):
    tar = pack(tmp_path / "a.tar", [("x.txt", b"seven")])
    assert len(opened("shards", tar, tmp_path / "cache")) == 1
    with pytest.raises(PlaitError, match="is not JSON"):
        opened("jsonl", tar, tmp_path / "cache")
    assert opened("shards", tar, tmp_path / "cache")[0]["fields"]["caption"] == "seven"


@pytest.mark.parametrize("method", ["gzip", "bzip2", "zstd"])
@pytest.mark.parametrize(
    ("kind", "name", "plain"),
    [
        ("jsonl", "a.jsonl.gz", "a.jsonl"), ("jsonl", "a.jsonl", "plain-a.jsonl"), ("datasets", "a.csv", "plain-a.csv"),
        ("datasets", "a.csv.gz", "a.csv"), ("folder", "metadata.jsonl", "plain-metadata.jsonl"),
    ],
)  # fmt: skip
def test_a_compressed_file_of_records_is_refused_with_its_compression_and_the_cure(tmp_path, method, kind, name, plain):
    (tmp_path / name).write_bytes(PACKED[method])
    message = rf"{name} is compressed \({method}\), so .* at random; unpack it: {method} -dc {name} > {plain}$"
    with pytest.raises(PlaitError, match=message):
        opened(kind, tmp_path if kind == "folder" else tmp_path / name, tmp_path / "cache")


def test_the_proposed_command_unpacks_the_file(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    with pytest.raises(PlaitError, match="unpack it: ") as raised:
        opened("jsonl", tmp_path / "a.jsonl.gz", tmp_path / "cache")
    subprocess.run(str(raised.value).rpartition("unpack it: ")[2], shell=True, check=True, cwd=tmp_path)
    assert len(opened("jsonl", tmp_path / "a.jsonl", tmp_path / "cache")) == 2


@pytest.mark.parametrize(
    ("kind", "name"), [("jsonl", "a.jsonl"), ("datasets", "a.jsonl"), ("datasets", "a.csv"), ("datasets", "a.parquet"), ("shards", "a.tar")]
)
def test_a_pipe_in_place_of_a_data_file_is_told_as_one(tmp_path, kind, name):
    if name == "a.parquet":
        pytest.importorskip("datasets")
    os.mkfifo(tmp_path / name)
    with pytest.raises(PlaitError, match=rf"{name} is not a regular file"):
        opened(kind, tmp_path / name, tmp_path / "cache")


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_a_pipe_in_place_of_a_configuration_is_refused_in_one_line(tmp_path, capsys, name):
    os.mkfifo(tmp_path / name)
    assert cli.main(["config", str(tmp_path / name)]) == 2
    wrong = "not a regular file but a pipe or device: write the configuration to a file"
    assert capsys.readouterr().err == f"plait: {tmp_path / name}: {wrong}\n"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "|"])
@pytest.mark.parametrize(
    ("header", "rows", "joined"),
    [
        (["file_name", "caption"], [["0.png", '"x'], ["1.png", 'y"']], True),
        (["file_name", "caption"], [["0.png", '"x'], ["1.png", "mid"], ["2.png", ' y"']], True),
        (["caption", "file_name"], [['"x', "0.png"], ['y"', "1.png"]], True),
        (["question", "caption"], [["why", '"x'], ["what", 'y"']], True),
        (["file_name", "caption"], [["0.png", '"two'], ['lines"']], False),
        (["file_name", "caption"], [["0.png", '"red'], ["green", 'blue"']], False),
        (["file_name", "caption"], [["0.png", '"red', " or so"], ["green", ' blue"']], False),
        (["question", "caption"], [["why", '"red'], ["green", ' blue"']], False),
    ],
)
def test_rows_of_a_table_that_lone_quotes_join_are_a_bad_sample(tmp_path, newline, delimiter, header, rows, joined):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    last = {"caption": "last", "file_name": "2.png", "question": "q"}
    table = [header, *rows, [last[name] for name in header]]
    (tmp_path / "a.csv").write_bytes("".join(delimiter.join(row) + newline for row in table).encode())
    source = opened("datasets", tmp_path / "a.csv", tmp_path / "cache")
    assert (len(source), source[1]["messages"][-1]["content"]) == (2, "last")
    if joined:
        with pytest.raises(BadSample, match=rf"a\.csv:2 has {len(rows)} lines, each of them a row but for its quotes: lone quotes may"):
            source[0]
    else:
        text = newline.join(delimiter.join(row) for row in rows)
        assert source[0]["messages"][-1]["content"] == text.partition('"')[2].rstrip('"')


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            {"caption": ["x"], "n": [1]}, {"caption": ["y"], "m": [1]},
            r"b\.END, unlike .*a\.END, lacks the columns n and has also the columns m: files of one source have the same columns",
        ),
        ({"caption": ["x"], "n": [1]}, {"caption": ["y"]}, r"b\.END, unlike .*a\.END, lacks the columns n: files of one"),
        ({"caption": ["x"]}, {"caption": ["y"], "n": [1]}, r"b\.END, unlike .*a\.END, has also the columns n: files of one"),
        ({"n": [1]}, {"n": ["x"]}, r"the column n is string in .*b\.END and int64 in .*a\.END: write it as one type"),
        ({"caption": [], "n": []}, {"caption": [], "n": []}, r"a\.END and 1 more files: no rows; the columns are caption, n$"),
    ],
)  # fmt: skip
def test_tables_of_one_source_with_different_columns_or_no_rows_are_told_by_file_and_column(tmp_path, ending, first, second, message):
    datasets = pytest.importorskip("datasets")
    for name, columns in (("a", first), ("b", second)):
        write(datasets.Dataset.from_dict(columns), tmp_path / f"{name}.{ending}")
    with pytest.raises(PlaitError, match=message.replace("END", ending)) as raised:
        opened("datasets", tmp_path, tmp_path / "cache")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_tables_with_the_same_columns_in_another_order_are_one_source(tmp_path, ending):
    datasets = pytest.importorskip("datasets")
    rows = [{"caption": ["x"], "n": [1]}, {"n": [2], "caption": ["y"]}]
    for number, columns in enumerate(rows):
        write(datasets.Dataset.from_dict(columns), tmp_path / f"{number}.{ending}")
    source = opened("datasets", tmp_path, tmp_path / "cache")
    assert [(source[i]["messages"][-1]["content"], source[i]["fields"]["n"]) for i in range(len(source))] == [("x", 1), ("y", 2)]


def test_a_saved_dataset_without_rows_is_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"caption": [], "n": []}).save_to_disk(tmp_path / "saved")
    with pytest.raises(PlaitError, match=r"saved holds no rows$"):
        opened("datasets", tmp_path / "saved", tmp_path / "cache")


def write(dataset, path):
    """Write a table as parquet, or in Arrow's format with a footer."""
    if path.suffix == ".parquet":
        dataset.to_parquet(path)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        table = dataset.data.table
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as out:
            out.write_table(table)


@pytest.mark.parametrize("kind", ["folder", "tar", "remote tar"])
def test_two_values_for_one_field_in_files_of_a_stem_are_a_bad_sample_and_equal_or_null_ones_are_not(tmp_path, kind):
    members = [
        ("a.png", picture(1)), ("a.json", b'{"caption": "one"}'), ("a.txt", b"two"),
        ("b.png", picture(2)), ("b.json", b'{"caption": "same ", "label": 3}'), ("b.txt", b"same\n"), ("b.cls", b"3"),
        ("c.png", picture(3)), ("c.json", b'{"caption": null}'), ("c.caption", b"third"),
        ("d.png", picture(3)), ("d.json", b'{"meta": 1, "caption": "d"}'), ("d.meta.json", b"2"),
    ]  # fmt: skip
    tar = pack(tmp_path / "a.tar", members)
    address = f"memory://two-values-{tmp_path.name}/a.tar"
    with fsspec.open(address, "wb") as file:
        file.write(tar.read_bytes())
    (tmp_path / "f").mkdir()
    for name, body in members:
        (tmp_path / "f" / name).write_bytes(body)
    path = {"folder": tmp_path / "f", "tar": tar, "remote tar": address}[kind]
    source = opened("folder" if kind == "folder" else "shards", path, tmp_path / "cache")
    with pytest.raises(BadSample, match=r"a has two values for the field 'caption', in \.json and \.txt: keep one"):
        source[0]
    with pytest.raises(BadSample, match=r"d has two values for the field 'meta', in \.(meta\.)?json and \.(meta\.)?json: keep one"):
        source[3]
    assert [source[i]["messages"][-1]["content"] for i in (1, 2)] == ["same", "third"]


def test_what_a_remote_folder_of_shards_does_not_read_is_counted(tmp_path):
    body = pack(tmp_path / "a.tar", [("x.txt", b"seven")]).read_bytes()
    root = f"memory://left-out-{tmp_path.name}"
    for name in ("a.tar", "B.TAR", "a.tar.idx", "c.tar.gz", "d.tgz", "e.tar.part", "notes.txt", "sub/f.tar"):
        with fsspec.open(f"{root}/{name}", "wb") as file:
            file.write(body)
    with fsspec.open(f"{root}-packed/g.tar.gz", "wb") as file:
        file.write(body)
    source = opened("shards", root, tmp_path / "cache")
    assert (len(source), source.left_out) == (
        2,
        {
            "files that are packed or unfinished, as they do not end in .tar, such as c.tar.gz": 3,
            "subfolders, which are not read, such as sub": 1,
        },
    )
    assert opened("shards", f"{root}/a.tar", tmp_path / "cache").left_out == {}
    with pytest.raises(PlaitError, match=r"no file matches .*; 1 of files that are packed or unfinished.* such as g\.tar\.gz"):
        opened("shards", f"{root}-packed", tmp_path / "cache")
