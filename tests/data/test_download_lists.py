"""Lists of links of every format give the same rows, whatever their columns are called; broken ones cost themselves alone."""

import csv
import json
import math

import fsspec
import pytest

from plait.data.download.listing import Link, Listing
from plait.data.link_lists.columns import find_columns
from plait.errors import PlaitError
from tests.data.faulty_server import serving

ROWS = [{"url": f"http://a.example/{n}.jpg", "text": f'it is "{n}"\tcm', "uid": f"{n:03}"} for n in range(10)]
LINKS = [Link(n, row["url"], row["text"], None, {"text": row["text"], "uid": row["uid"]}) for n, row in enumerate(ROWS)]


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
