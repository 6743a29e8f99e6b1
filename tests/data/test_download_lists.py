"""Lists of links of every format give the same rows, whatever their columns are called; broken ones cost themselves alone."""

import csv
import json
import math
import random
import tarfile

import fsspec
import pytest

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.download.fetch import Fetcher
from plait.data.download.limits import NetworkLimits
from plait.data.download.listing import Link, Listing
from plait.data.link_lists.columns import find_columns
from plait.data.sources.open import open_source
from plait.errors import PlaitError
from tests.data.faulty_server import serving
from tests.data.link_server import ALLOWED, Pictures, serving_links

ROWS = [{"url": f"http://a.example/{n}.jpg", "text": f'it is "{n}"\tcm', "uid": f"{n:03}"} for n in range(10)]
LINKS = [Link(n, row["url"], row["text"], None, {"text": row["text"], "uid": row["uid"]}) for n, row in enumerate(ROWS)]


@pytest.fixture(scope="module")
def web():
    pytest.importorskip("aiohttp")
    with serving_links(Pictures(8, 64)) as thread:
        yield thread


def download(path, out, *more):
    return cli.main(["data", "download", str(path), str(out), f"--allow={ALLOWED}", *more])


def write(path, rows=ROWS):
    """Write rows in the format of the name's ending."""
    if path.suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_every_format_gives_the_rows_of_any_range(tmp_path, ending):
    listing = Listing(str(write(tmp_path / f"list{ending}")), {})
    assert listing.rows == 10
    for start, stop in [(0, 10), (3, 5), (5, 6), (2, 9), (9, 12), (0, 1)]:  # forwards and back
        assert listing.links(start, stop) == LINKS[start:stop]


def test_several_files_are_one_list_in_the_order_of_their_names(tmp_path):
    write(tmp_path / "b.parquet", ROWS[6:])
    write(tmp_path / "a.parquet", ROWS[:6])
    assert Listing(str(tmp_path), {}).links(4, 8) == LINKS[4:8]
    assert Listing(str(tmp_path), {}, limit=7).links(4, 8) == LINKS[4:7]


def test_a_list_in_a_store_is_copied_first(tmp_path):
    body = write(tmp_path / "list.jsonl").read_bytes()
    fsspec.filesystem("memory").pipe("/bucket/far.jsonl", body)
    assert Listing("memory://bucket/far.jsonl", {}, cache=str(tmp_path / "cache")).links(0, 10) == LINKS


def test_a_list_at_an_address_is_copied_first(tmp_path):
    pytest.importorskip("httpx")
    body = write(tmp_path / "list.jsonl").read_bytes()
    with serving({"far.jsonl": body}) as server:
        assert Listing(f"{server.url}/far.jsonl", {}, cache=str(tmp_path / "cache")).links(0, 10) == LINKS


@pytest.mark.parametrize("order", [("url", "caption"), ("caption", "url")])
def test_a_tsv_without_header_is_told_by_its_address_and_quotes_are_letters_there(tmp_path, order):
    cells = [{"url": f"https://a.example/{n}", "caption": f'"{n} inches, they say'} for n in range(3)]
    path = tmp_path / "cc.tsv"
    path.write_text("".join("\t".join(row[name] for name in order) + "\n" for row in cells) + "https://a.example/alone\n", encoding="utf-8")
    links = Listing(str(path), {}).links(0, 4)
    assert [(link.url, link.caption) for link in links[:3]] == [(row["url"], row["caption"]) for row in cells]
    assert links[3].fault == "cc.tsv:4 has 1 cells, and the first line 2"


def test_a_broken_row_is_a_fault_of_its_own(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text('{"url": "http://a.example/1"}\n{"url": \n{"url": 3}\n', encoding="utf-8")
    first, second, third = Listing(str(path), {}).links(0, 3)
    assert (first.url, first.fault) == ("http://a.example/1", "")
    assert second.fault.startswith("list.jsonl:2 is not JSON")
    assert (third.url, third.fault) == (None, "")


def test_cells_become_json_values(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "URL": ["http://a.example"],
        "similarity": pyarrow.array([0.1], pyarrow.float32()),
        "raw": [b"\x00\x01"],
        "nan": [math.nan],
        "boxes": [[[0.5, 1.0]]],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    (link,) = Listing(str(tmp_path / "a.parquet"), {}).links(0, 1)
    assert link.fields == {"similarity": 0.1, "raw": "AAE=", "nan": None, "boxes": [[0.5, 1.0]]}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["uid", "url", "text", "original_width", "sha256", "face_bboxes"], ("url", "text", "sha256")),  # DataComp
        (["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "similarity"], ("URL", "TEXT", None)),  # LAION
        (["id", "url", "text", "width", "height", "image_phash"], ("url", "text", None)),  # COYO
        (["url", "caption"], ("url", "caption", None)),  # CC12M
        (["image_url", "caption", "transcripts"], ("image_url", "caption", None)),  # PixMo-Cap
        (["image_url", "image_sha256", "points", "count", "label"], ("image_url", None, "image_sha256")),  # PixMo-Points
    ],
)
def test_columns_of_published_lists_are_recognised(names, found):
    columns = find_columns(names, {}, "it")
    assert (columns.url, columns.caption, columns.hash) == found


def test_columns_can_be_named_and_a_wrong_name_is_told_with_those_there_are():
    assert find_columns(["src", "text", "alt"], {"url": "src", "caption": "alt"}, "it").caption == "alt"
    with pytest.raises(PlaitError, match=r"it has no column 'link'; it has src, text"):
        find_columns(["src", "text"], {"url": "link"}, "it")
    with pytest.raises(
        PlaitError, match=r"it has no column of addresses \(url, image_url, img_url, image_link\); name it with --url-column; it has src"
    ):
        find_columns(["src", "text"], {}, "it")


def test_a_damaged_parquet_file_is_told_in_one_line(tmp_path):
    path = write(tmp_path / "list.parquet", [{"url": f"http://a.example/{number}", "text": "x" * number} for number in range(300)])
    body = bytearray(path.read_bytes())
    body[4 : len(body) // 2] = bytes(len(body) // 2 - 4)
    path.write_bytes(body)
    with pytest.raises(PlaitError, match=r"list\.parquet is no whole parquet file \(.*\): copy or download it again"):
        Listing(str(path), {}).links(0, 300)


def kept(out):
    """{name: content} of the texts and fields in the shards of a folder."""
    members = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            members.update({member.name: tar.extractfile(member).read() for member in tar if not member.name.endswith(".jpg")})
    return members


def test_all_columns_are_kept_whatever_they_are_called(web, tmp_path, capsys):
    row = web.server.row("ok", 1)
    own = {"caption": "own", "kind": "cat", "list_kind": "older", "title": "shown"}
    rows = [
        {**row, **own},
        {**row, "caption": "alone"},
        {**row, "title": ["first", "second"]},
        {**row, "title": 7},
        {**row, "title": {"en": "x"}},
    ]
    assert download(write(tmp_path / "list.jsonl", rows), tmp_path / "out", "--caption-column=title") == 0
    assert "captions that are no text (1 dict) are kept in NAME.json alone: those pictures have no NAME.txt" in capsys.readouterr().out
    members = kept(tmp_path / "out")
    told = [json.loads(members[f"{number:09d}.json"]) for number in range(5)]
    assert told[0] | {"caption": "shown", "list_caption": "own", "kind": "jpg", "list_list_kind": "cat", "list_kind": "older"} == told[0]
    assert told[1]["list_caption"] == "alone" and "caption" not in told[1]
    assert (told[2]["caption"], told[2]["title"], told[3]["caption"], told[4]["title"]) == ("first", ["first", "second"], "7", {"en": "x"})
    assert {name: body for name, body in members.items() if name.endswith("txt")} == {
        "000000000.txt": b"shown",
        "000000002.txt": b"first",
        "000000003.txt": b"7",
    }
    source = open_source(SourceEntry(source="shards", path=str(tmp_path / "out")), seed=0, split="train")
    assert [source[number]["fields"].get("caption") for number in range(5)] == ["shown", None, "first", "7", None]


def test_several_texts_in_a_column_called_caption_can_be_drawn_from(web, tmp_path):
    path = write(tmp_path / "list.jsonl", [{**web.server.row("ok", 1), "caption": ["one", "two"]}])
    assert download(path, tmp_path / "out") == 0
    captions = {"columns": {"list_caption": 1.0}}
    source = open_source(SourceEntry(source="shards", path=str(tmp_path / "out"), captions=captions), seed=0, split="train")
    assert source[0]["messages"][-1]["content"] in ("one", "two") and source[0]["fields"]["list_caption"] == ["one", "two"]


def test_hashes_are_checked_in_every_form_and_what_is_none_is_told(web, tmp_path, capsys):
    row = web.server.row("ok", 1)
    digest = row.pop("sha256")
    hashes = [digest, f"sha256:{digest}", "0" * 40, "no hash", "abc", None]
    path = write(tmp_path / "list.jsonl", [{**row, "title": "A dog", "sha256": value} for value in hashes])
    assert download(path, tmp_path / "wrong", "--hash-column=title") == 2
    said = "column 'title' holds no SHA-256, SHA-1 or MD5 hashes (the first is 'A dog'); name another with --hash-column, or give --ignore"
    assert said in capsys.readouterr().err
    assert download(path, tmp_path / "out") == 0
    told = [json.loads(line) for line in (tmp_path / "out" / "000000.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["status"] for row in told] == ["saved", "saved", "hash", "bad_row", "bad_row", "saved"]
    assert told[3]["detail"] == "its hash is no SHA-256, SHA-1 or MD5: 'no hash'"


@pytest.mark.parametrize("raw", [True, False])
def test_raw_bytes_of_a_hash_in_parquet_are_checked(web, tmp_path, raw):
    pytest.importorskip("pyarrow")
    row = web.server.row("ok", 1)
    right = bytes.fromhex(row["sha256"])
    rows = [{"url": row["url"].encode() if raw else row["url"], "sha256": value} for value in (right, bytes(32), bytes(16))]
    assert download(write(tmp_path / "list.parquet", rows), tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "000000.json").read_bytes())["outcomes"] == {"hash": 2, "saved": 1}


def test_a_folder_that_holds_something_else_is_refused_and_left_as_it_is(web, tmp_path, capsys):
    path, out = write(tmp_path / "list.jsonl", [web.server.row("ok", 1)]), tmp_path / "out"
    out.mkdir()
    (out / "000000.tar").write_bytes(b"another's")
    assert download(path, out) == 2
    said = f"{out} holds '000000.tar' and no download.json, so it is no download: give a new folder, or an empty one"
    assert said in capsys.readouterr().err
    assert [(there.name, there.read_bytes()) for there in out.iterdir()] == [("000000.tar", b"another's")]


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("000000.json", b"{", "is damaged, or no file of `plait data download` (JSONDecodeError): delete it, and the same command fetches"),
        ("000000.json", b"[1]", "is damaged, or no file of `plait data download` (TypeError): delete it, and"),
        ("000000.json", b'{"rows": [0, 1], "outcomes": {}, "bytes": 1}', "is damaged, or no file of `plait data download` (ValueError)"),
        ("download.json", b"\xff", "is damaged, or no file of `plait data download` (UnicodeDecodeError): give another folder"),
        ("download.json", b'{"list": 3}', "is damaged, or no file of `plait data download` (TypeError): give another folder"),
        (
            "000000.jsonl",
            b'{"row": 0}\n',
            "is missing or damaged (KeyError): delete 000000.json, and the same command fetches its rows anew",
        ),
    ],
)
def test_a_damaged_file_of_a_download_is_told_in_one_line(web, tmp_path, capsys, name, body, said):
    path, out = write(tmp_path / "list.jsonl", [web.server.row("ok", 1), web.server.row("missing", 2)]), tmp_path / "out"
    assert download(path, out) == 0
    (out / name).write_bytes(body)
    assert download(path, out, "--again=http_404") == 2
    error = capsys.readouterr().err
    assert f"{out / name} {said}" in error and "Traceback" not in error
    if name != "download.json":
        (out / "000000.json").unlink()
        assert download(path, out) == 0


def test_dates_that_python_does_not_know_are_their_text_and_cost_no_row(web, tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    url = web.server.row("ok", 1)["url"]
    far, exact = pyarrow.array([1 << 60, 0], pyarrow.timestamp("us")), pyarrow.array([1, 0], pyarrow.timestamp("ns"))
    days, nested = pyarrow.array([5_000_000, 0], pyarrow.date32()), pyarrow.array([[0], [1 << 60]], pyarrow.list_(pyarrow.timestamp("us")))
    table = pyarrow.table({"url": [url, url], "far": far, "exact": exact, "days": days})
    parquet.write_table(table, tmp_path / "list.parquet")
    assert download(tmp_path / "list.parquet", tmp_path / "out") == 0
    told = [json.loads(body) for name, body in kept(tmp_path / "out").items() if name.endswith("json")]
    assert told[0]["exact"] == "1970-01-01 00:00:00.000000001" and str(1 << 60) in told[0]["far"] and told[0]["days"] == "15659-07-15"
    assert [told[1][name][:10] for name in ("far", "exact", "days")] == ["1970-01-01"] * 3
    parquet.write_table(table.append_column("nested", nested), tmp_path / "nested.parquet")
    _, broken = Listing(str(tmp_path / "nested.parquet"), {}).links(0, 2)
    assert broken.fault == "the list<element: timestamp[us]> in column 'nested' cannot be read"


def test_columns_of_one_name_are_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table([["u"], ["a"], ["b"]], names=["url", "text", "text"]), tmp_path / "list.parquet")
    with pytest.raises(PlaitError, match=r"list\.parquet has several columns 'text': give each a name of its own"):
        Listing(str(tmp_path / "list.parquet"), {})


def test_of_parquet_at_an_address_only_the_files_of_the_rows_are_copied(web, tmp_path):
    pytest.importorskip("pyarrow"), pytest.importorskip("httpx")
    rows = [{**web.server.row("ok", number), "filler": random.Random(number).randbytes(3000).hex()} for number in range(200)]
    names = [f"{number}.parquet" for number in range(5)]
    files = {name: write(tmp_path / name, rows[40 * number : 40 * (number + 1)]).read_bytes() for number, name in enumerate(names)}
    with serving(files) as server:
        path = server.url + "/{0..4}.parquet"
        for more in (["--limit=10"], ["--limit=30"], ["--per-shard=40", "--part=2/5"]):
            out, cache = tmp_path / f"out{more[-1].replace('/', '-')}", tmp_path / f"cache{len(list(tmp_path.iterdir()))}"
            assert download(path, out, *more, f"--cache={cache}") == 0
            copied = sorted(copy.name for copy in cache.rglob("*.parquet"))
            assert copied == (["1.parquet"] if "--part=2/5" in more else ["0.parquet"])
    whole, far = Listing(str(tmp_path / "{0..4}.parquet"), {}), json.loads((tmp_path / "out--limit=10" / "download.json").read_bytes())
    assert far["list"]["digest"] == whole.digest


def test_a_list_may_be_named_in_another_way_by_the_next_command(web, tmp_path, monkeypatch):
    path, out = write(tmp_path / "list.jsonl", [web.server.row("ok", 1), web.server.row("ok", 2)]), tmp_path / "out"
    assert download(path, out, "--limit=1") == 0
    monkeypatch.chdir(tmp_path)
    web.server.asked.clear()
    assert download("./list.jsonl", out) == 0 and download("list.jsonl", out) == 0
    assert web.server.asked == ["/ok/2"]


def test_the_target_of_a_redirect_is_asked_for_as_it_was_sent(monkeypatch):
    yarl = pytest.importorskip("yarl")
    fetcher = Fetcher(NetworkLimits(), 100, answered=lambda *what: None, calm=lambda: None)
    url = yarl.URL("http://a.example/x/y", encoded=True)
    for location in ("http://b.example/%7eme/a%2Fb%41.jpg?q=%2b+c", "/%7eme/%41", "z%7e.jpg"):
        assert str(fetcher._target(url, location)).endswith(location)
    assert str(fetcher._target(url, "/ä b")) == "http://a.example/%C3%A4%20b"
