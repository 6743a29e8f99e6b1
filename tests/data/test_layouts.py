"""What a folder or file of records is laid out as: several formats, records that are not one per line, zeros, files at an address."""

import json
import re
import shlex
import subprocess
import tarfile

import pytest
import yaml

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.sources.open import open_source
from plait.errors import BadSample, PlaitError
from tests.data import faulty_server
from tests.data.packing import picture
from tests.data.test_dirty_records import opened, outcomes
from tests.data.test_hub_tables import parquet
from tests.families.test_conformance import TINY

LINES = b'{"caption": "x"}\n'
TABLE = b"caption\nx\n"


@pytest.mark.parametrize(
    ("files", "told", "cures"),
    [
        ({"a.jsonl": LINES, "b.csv": TABLE, "c.csv": TABLE}, "(1 json and 2 csv)", ("*.jsonl", "*.csv")),
        ({"a.parquet": b"", "b.CSV": TABLE}, "(1 parquet and 1 csv)", ("*.parquet", "*.CSV")),
        ({"a.arrow": b"", "b.ndjson": LINES}, "(1 arrow and 1 json)", ("*.arrow", "*.ndjson")),
    ],
)
@pytest.mark.parametrize("pattern", ["", "/*"])
def test_files_of_several_formats_are_refused_with_their_counts_and_how_to_name_one(tmp_path, capsys, files, told, cures, pattern):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, body in files.items():
        (folder / name).write_bytes(body)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"family: theworld\nmodel: {{base: tiny}}\ndata: {{train: [{{source: datasets, path: 'data{pattern}'}}]}}\ntrain: {{steps: 1}}\n"
    )
    assert cli.main(["train", str(recipe), f"--run={tmp_path / 'run'}"]) == 2
    cure = " or ".join(f"path: {folder}/{end}" for end in cures)
    line = f"{folder}{pattern} names files of 2 formats {told}, and a source reads one: name it, as {cure}"
    assert capsys.readouterr().err == f"plait: data source datasets:{'data' if not pattern else '*'}: {line}\n"
    assert len(opened("datasets", f"{folder}/{cures[1]}")) == sum(name.endswith(cures[1][1:]) for name in files)


@pytest.mark.parametrize("kind", ["datasets", "jsonl"])
def test_a_folder_of_one_format_is_read_whole_and_what_is_not_is_counted(tmp_path, kind):
    (tmp_path / "sub").mkdir()
    names = ["a.JSON", "sub/b.jsonl", ".c.jsonl", "d.jsonl.gz", "e.jsonl.part"]
    for name in [*names, "f.jsonl"] if kind == "datasets" else names:
        (tmp_path / name).write_bytes(LINES)
    source = opened(kind, tmp_path)
    assert outcomes(source) == ["x"] * (2 if kind == "datasets" else 1)
    assert {reason.partition(",")[0]: count for reason, count in source.left_out.items()} == {
        "files that are packed or unfinished": 2,
        "hidden files (a name begins with a dot)": 1,
        ".jsonl files in subfolders": 1,
    }


@pytest.mark.parametrize(
    ("pattern", "cures"),
    [
        ("https://store.example/{a.csv,b.jsonl}", ("https://store.example/a.csv", "https://store.example/b.jsonl")),
        ("https://store.example/a{0..8}.{csv,jsonl}", ("https://store.example/{a0.csv,a1.csv,a2.csv,a3.csv,...}", None)),
        ("https://store.example/{a.csv,b.csv,c.json}", ("https://store.example/{a.csv,b.csv}", "https://store.example/c.json")),
        ("memory://formats/{a.csv,b.jsonl}", ("memory://formats/a.csv", "memory://formats/b.jsonl")),
        ("memory://formats", ("memory://formats/*.csv", "memory://formats/*.jsonl")),
        ("memory://formats/*", ("memory://formats/*.csv", "memory://formats/*.jsonl")),
        ("{root}/one/{a.csv,b.jsonl}", ("{root}/one/a.csv", "{root}/one/b.jsonl")),
        ("{root}/{one,two}", ("{root}/{one,two}/*.{csv,tsv}", "{root}/{one,two}/*.jsonl")),
        ("{root}/{one,two}/*", ("{root}/{one,two}/*.{csv,tsv}", "{root}/{one,two}/*.jsonl")),
        ("{root}/o*/{a.csv,b.jsonl}", ("{root}/one/a.csv", "{root}/one/b.jsonl")),
    ],
)
def test_the_path_to_name_one_of_several_formats_is_one_that_names_it(tmp_path, pattern, cures):
    import fsspec

    for name in ("one/a.csv", "one/b.jsonl", "two/a.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINES if name.endswith("jsonl") else TABLE)
        fsspec.filesystem("memory").pipe(f"/formats/{name[4:]}", LINES if name.endswith("jsonl") else TABLE)
    fsspec.filesystem("memory").rm("/formats/a.tsv")
    pattern, cures = pattern.replace("{root}", str(tmp_path)), [cure and cure.replace("{root}", str(tmp_path)) for cure in cures]
    with pytest.raises(PlaitError) as error:
        opened("datasets", pattern)
    told = str(error.value).partition("and a source reads one: name it, as path: ")[2].split(" or path: ")
    assert len(told) == 2 and all(given in (cure, None) for cure, given in zip(told, cures, strict=True))
    for cure in told if "https" not in pattern else ():
        assert set(outcomes(opened("datasets", cure))) == {"x"}


def test_a_folder_at_an_address_is_read_as_one_on_disk(tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    for name, body in {"train.csv": TABLE, "test.csv": TABLE, "deep/c.csv": TABLE, "README.md": b"x", "d.csv.gz": b"x"}.items():
        store.pipe(f"/tables/{name}", body)
    source = opened("datasets", "memory://tables", tmp_path / "cache")
    assert outcomes(source) == ["x"]
    assert {reason.partition(", ")[0]: count for reason, count in source.left_out.items()} == {
        "files of other splits or formats": 1,
        "files that are packed or unfinished": 1,
        "subfolders": 1,
    }
    with pytest.raises(PlaitError, match=r"cannot tell the format of memory://none; .*; name files, as memory://none/\*\.parquet$"):
        opened("datasets", "memory://none")


def test_a_table_beside_json_lines_is_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.csv").write_bytes(TABLE)
    source = opened("jsonl", tmp_path)
    assert outcomes(source) == ["x"] and source.left_out == {"files of other splits or formats, such as b.csv": 1}


@pytest.mark.parametrize("kind", ["jsonl", "datasets"])
def test_what_describes_a_copy_of_a_hub_dataset_is_no_data(tmp_path, kind):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "dataset_infos.json").write_text('{"default": {"description": "x"}}')
    source = opened(kind, tmp_path)
    assert outcomes(source) == ["x"]
    assert source.left_out == {"files that describe the dataset, and hold no records, such as dataset_infos.json": 1}
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(
        PlaitError, match=r"no file matches .*; 1 of files that describe the dataset, and hold no records, such as dataset_inf"
    ):
        opened(kind, tmp_path)


def test_a_split_of_a_folder_is_of_one_format_whatever_the_others_are(tmp_path):
    (tmp_path / "train.csv").write_bytes(TABLE)
    (tmp_path / "test.jsonl").write_bytes(LINES)
    assert len(opened("datasets", tmp_path)) == 1
    with pytest.raises(PlaitError, match=r"train\.csv ends in \.csv, which is no JSON: `source: datasets` reads it"):
        opened("jsonl", tmp_path / "train.csv")


RECORDS = [{"caption": text, "n": n} for n, text in enumerate(("a, b", "c}", "d"))]
ROWS = [json.dumps(record) for record in RECORDS]
WIDE = [json.dumps(record, indent=1) for record in RECORDS]


@pytest.mark.parametrize("kind", ["jsonl", "datasets"])
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("\r".join(ROWS), "has carriage returns alone between its records"),
        ("\r".join(ROWS) + "\r", "has carriage returns alone between its records"),
        (",\n".join(ROWS) + "\n", "has a comma at the end of its lines"),
        (",\r\n".join(ROWS) + ",\r\n", "has a comma at the end of its lines"),
        (",\n".join(WIDE) + "\n", "has commas between its records, and no brackets"),
        (",\n".join(WIDE) + ",\n", "has commas between its records, and no brackets"),
        (", ".join(ROWS), "has commas between its records, and no brackets"),
        ("\n".join(WIDE), "has records of several lines"),
        ("".join(ROWS), "has several records in one line"),
    ],
)
def test_records_that_are_not_one_a_line_are_told_with_the_command_that_mends_them(tmp_path, kind, text, fault):
    path = tmp_path / "my data.json"
    path.write_text(text, newline="")
    with pytest.raises(PlaitError) as error:
        opened(kind, path)
    told, _, command = str(error.value).partition("; JSON lines are one record a line: ")
    assert told.endswith(f"my data.json {fault}") and "\n" not in command
    if command.startswith("jq"):
        assert command == f"jq -c . {shlex.quote(path.name)} > new.json"
        return
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    source = opened(kind, tmp_path / "new.json")
    assert outcomes(source) == ["a, b", "c}", "d"] and [source[i]["fields"] for i in range(3)] == RECORDS


LATIN = [json.dumps({"caption": text}, ensure_ascii=False).encode("latin-1") + b"\n" for text in ("caf\xe9", "na\xefve", "plain")]
LATIN_REASON = "is not UTF-8 text: invalid continuation byte at byte 16; where its file is in Latin-1: iconv -f LATIN1 -t UTF-8 OLD > NEW"


@pytest.mark.parametrize("kind", ["jsonl", "datasets"])
def test_lines_in_latin_1_are_bad_samples_that_name_the_encoding(tmp_path, kind):
    (tmp_path / "lat.jsonl").write_bytes(b"".join(LATIN))
    first, second, third = outcomes(source := opened(kind, tmp_path / "lat.jsonl"))
    assert str(first) == f"lat.jsonl:1 {LATIN_REASON}" and "lat.jsonl:2 is not UTF-8 text" in str(second)
    assert third == "plain" and len(source) == 3
    (tmp_path / "lat.jsonl").write_bytes(b"".join(LATIN[:2]))
    with pytest.raises(PlaitError, match=re.escape(f"none of the first 2 samples can be read: lat.jsonl:1 {LATIN_REASON}")):
        opened(kind, tmp_path / "lat.jsonl")


@pytest.mark.parametrize("rows", [{"data": [{"caption": "caf\xe9"}]}, {"caption": "caf\xe9"}], ids=["array", "record"])
def test_json_in_latin_1_that_is_no_lines_either_is_told_its_encoding_first(tmp_path, rows):
    (tmp_path / "a.json").write_bytes(json.dumps(rows, indent=1, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(PlaitError, match=r"a\.json is not UTF-8, as JSON is: iconv -f LATIN1 -t UTF-8 a\.json > new\.json$"):
        opened("jsonl", tmp_path / "a.json")
    subprocess.run("iconv -f LATIN1 -t UTF-8 a.json > new.json", shell=True, check=True, cwd=tmp_path)
    if "data" in rows:
        assert outcomes(opened("jsonl", tmp_path / "new.json")) == ["caf\xe9"]


@pytest.mark.parametrize("line", [b'{"caption": "x"}}', b'{"caption": "x"} trailing', b'{"caption": "x"}]'])
def test_lines_with_something_after_their_record_are_bad_samples_each(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([line, line, b'{"caption": "y"}']))
    first, second, third = outcomes(opened("jsonl", tmp_path / "a.jsonl"))
    assert re.fullmatch(r"a\.jsonl:1 is not JSON: Extra data: column \d+", str(first)) and isinstance(second, BadSample)
    assert third == "y"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"caption": "x"}\n{"caption": "y"}\n', "Extra data: line 2, column 1: several records, where one is expected"),
        (b'{"caption": "x"}\r\n{"caption": "y"}', "Extra data: line 2, column 1: several records, where one is expected"),
        (b'{"caption": "x"}\r{"caption": "y"}', "column 18: a carriage return alone, which ends no line, stands between records"),
        (b'{"caption": "x"}}', "Extra data: column 17"),
        (b"\n", "a.json is empty: there is no JSON in it"),
        (b"", "a.json is empty: there is no JSON in it"),
        (b"\0\0\n", "a.json is 2 zero bytes: it was not written whole"),
    ],
)
def test_the_json_beside_a_picture_is_told_as_what_it_is(tmp_path, body, reason):
    for name, text in (("a", body), ("b", b'{"caption": "z"}')):
        (tmp_path / f"{name}.png").write_bytes(picture(1))
        (tmp_path / f"{name}.json").write_bytes(text)
    bad, good = outcomes(opened("folder", tmp_path))
    assert str(bad).endswith(reason) and good == "z"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"caption": "x"},', "a.jsonl:2 is not JSON: Extra data: column 17: a comma follows a whole record"),
        (b'{"caption": "x"}\r{"caption": "y"}', "a carriage return alone, which ends no line, stands between records"),
        (b'{"caption": "x"} {"caption": "y"}', "several records in one line"),
        (b"\0" * 4096, "a.jsonl:2 is 4,096 zero bytes: it was not written whole"),
    ],
)
def test_one_line_of_that_kind_is_one_bad_sample(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(LINES + line + b"\n" + LINES)
    good, bad, last = outcomes(opened("jsonl", tmp_path / "a.jsonl"))
    assert (good, last) == ("x", "x") and reason in str(bad)


@pytest.mark.parametrize(("size", "said"), [(4000, "all of it is zero"), (5000, "its first 4,096 bytes are zero")])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_file_of_zeros_is_told_as_that(tmp_path, name, size, said):
    (tmp_path / name).write_bytes(bytes(size))
    with pytest.raises(PlaitError, match=rf"{name} was not written whole: {said}, as after a full disk or a power cut"):
        opened("datasets", tmp_path / name)


CELLS = ["NA", "007", "2024-01-15", "None"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "A.CSV", "a.parquet"])
def test_a_table_at_an_address_is_read_as_a_local_one(tmp_path, monkeypatch, name):
    pytest.importorskip("httpx")
    rows = "".join(f"{cell},1\n" for cell in CELLS).encode()
    lines = b"".join(json.dumps({"caption": cell, "n": "1"}).encode() + b"\n" for cell in CELLS)
    body = {"csv": b"caption,n\n" + rows, "jsonl": lines}.get(name[2:].lower()) or parquet(caption=CELLS, n=["1"] * 4)
    (tmp_path / name).write_bytes(body)
    local = opened("datasets", tmp_path / name)
    with faulty_server.serving({name: body}) as server:
        monkeypatch.setenv("SIGNATURE", "sig=secret-of-the-address")
        for path in (f"{server.url}/{name}", f"{server.url}/{name}?${{SIGNATURE}}"):
            entry = SourceEntry(source="datasets", path=path, template={"assistant": "{caption} {n}"})
            source = open_source(entry, seed=0, cache=tmp_path / "cache")
            assert outcomes(source) == [f"{cell} 1" for cell in CELLS]
            assert "secret" not in source[0]["id"] + source.name + "".join(map(str, (tmp_path / "cache").rglob("*")))
        again = open_source(SourceEntry(source="datasets", path=f"{server.url}/{name}"), seed=0, cache=tmp_path / "cache")
        assert again.fingerprint == local.fingerprint or name.endswith("parquet")
        assert sum(asked.startswith(f"/{name}") and wanted != "bytes=0-0" for asked, wanted in server.asked) == 1


LARGE = (1 << 30) + 8192


@pytest.mark.parametrize("kind", ["folder", "jsonl", "shards", "line"])
def test_a_sample_of_gigabytes_is_a_bad_one_and_is_not_read(tmp_path, kind):
    huge = tmp_path / "data" / "b.png"
    huge.parent.mkdir()
    for name in "ac":
        huge.with_name(f"{name}.png").write_bytes(picture(1))
    for name in "abc":
        huge.with_name(f"{name}.txt").write_text(name)
    with huge.open("wb") as file:
        file.truncate(LARGE)  # a hole: it takes no place on the disk
    if kind == "shards":
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as tar:
            for name in ("a.png", "a.txt"):
                tar.add(huge.with_name(name), name)
            member = tar.gettarinfo(huge, "b.png")
            tar.addfile(member)  # its header alone: what follows is a hole
            tar.fileobj.seek(member.size + tar.offset)
            tar.offset += member.size
            tar.add(huge.with_name("c.png"), "c.png")
            tar.add(huge.with_name("c.txt"), "c.txt")
    elif kind == "jsonl":
        path = tmp_path / "data" / "a.jsonl"
        path.write_text("".join(json.dumps({"image": f"{name}.png", "caption": name}) + "\n" for name in "abc"))
    elif kind == "line":
        path = tmp_path / "data" / "a.jsonl"
        path.write_bytes(LINES + b"{" + b" " * 5000)
        with path.open("r+b") as file:
            file.seek(LARGE)
            file.write(b"\n" + LINES)
    else:
        path = huge.parent
    told = outcomes(opened("jsonl" if kind == "line" else kind, path, tmp_path / "cache"))
    assert len(told) == 3 and all(isinstance(text, str) for text in (told[0], told[2]))
    assert re.search(r"1,073,7\d\d,\d{3} bytes for one sample, over the limit of 1,073,741,824", str(told[1]))


@pytest.mark.parametrize("mark", ["sep=;", "SEP=,"])
def test_the_first_line_of_a_spreadsheet_is_told(tmp_path, mark):
    path = tmp_path / "a.csv"
    path.write_text(f"{mark}\nimage{mark[-1]}caption\na.png{mark[-1]}x\n")
    with pytest.raises(PlaitError, match=r"is a spreadsheet's `sep=`, and no header: sed 1d a\.csv > new\.csv$"):
        opened("datasets", path)


@pytest.mark.parametrize("family", ["molmo", "theworld"])
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_rows_without_a_picture_are_counted_before_training(tmp_path, capsys, form, family):
    (tmp_path / "a.png").write_bytes(picture(1, (48, 48)))
    rows = [{"image": "a.png" if number % 4 else None, "caption": f"number {number}"} for number in range(12)]
    path = tmp_path / f"a.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "csv":
        path.write_text("image,caption\n" + "".join(f"{row['image'] or ''},{row['caption']}\n" for row in rows))
    else:
        path.write_bytes(parquet(image=[row["image"] for row in rows], caption=[row["caption"] for row in rows]))
    data = {"train": [{"source": "datasets", "path": f"a.{form}"}], "workers": 0}
    recipe = {"family": family, "data": data, "train": {"steps": 1}, **yaml.safe_load(TINY[family])}
    (tmp_path / "recipe.yaml").write_text(yaml.dump(recipe))
    assert cli.main(["data", "inspect", str(tmp_path / "recipe.yaml"), f"--out={tmp_path / 'out'}"]) == 0
    assert re.search(r"datasets:a\.\w+: 12 samples, all looked at: 3 without images", " ".join(capsys.readouterr().out.split()))


@pytest.mark.parametrize("header", ['"text": "about this file"', '"caption": "c", "version": 1', '"image": "a.png"'])
def test_a_record_that_holds_an_array_of_records_is_refused(tmp_path, header):
    path = tmp_path / "d.json"
    (tmp_path / "a.png").write_bytes(picture())
    path.write_text("{" + header + ', "data": [{"text": "b"}, {"text": "c"}]}')
    with pytest.raises(
        PlaitError, match=r"d\.json may be one record or those in its array 'data': write the array to a file of its own, or put"
    ):
        opened("jsonl", path)
    path.write_text("[" + path.read_text() + "]")
    assert len(opened("jsonl", path)) == 1


@pytest.mark.parametrize("own", ['"messages": [{"role": "user", "content": "a"}]', '"objects": [{"box": [1, 2]}], "text": "a"'])
def test_an_array_that_belongs_to_a_record_makes_no_records(tmp_path, own):
    path = tmp_path / "d.json"
    path.write_text("{" + own + "}")
    assert len(opened("jsonl", path)) == 1


def test_fields_and_turns_that_name_other_images_make_a_bad_sample(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.png").write_bytes(picture())

    def record(turn, **fields):
        parts = [{"type": "image", "image": turn}, {"type": "text", "text": "q"}]
        return json.dumps({**fields, "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]})

    rows = [record("b.png", image="a.png"), record("a.png", image="a.png"), record("b.png"), record(None, image="a.png")]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(rows) + "\n")
    found = outcomes(opened("jsonl", path))
    assert [isinstance(one, BadSample) and "name other images than its messages do" in str(one) for one in found] == [
        True,
        False,
        False,
        False,
    ]
