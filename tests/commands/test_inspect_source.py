"""`plait data inspect` of data alone: a table, JSON and a page of any source, and of lists of links."""

import base64
import json
import re
import shutil
import sys

import pytest

from plait import cli
from plait.commands.actions.packing.configuration_or_data import is_configuration
from plait.commands.pages.charts import HEIGHT, WIDTH
from plait.config import reading
from plait.config.schema import SourceEntry
from plait.data.figures import languages, measure
from plait.data.sources.open import open_source
from plait.nn.tokenizer import train_tokenizer
from tests.data.faulty_server import serving
from tests.data.packing import labelled, pack, picture
from tests.data.test_figures import encoded


def photos(folder, count=12):
    folder.mkdir(parents=True)
    for k in range(count):
        (folder / f"p{k:02d}.jpg").write_bytes(encoded((40 + 10 * k, 30), seed=k))
        (folder / f"p{k:02d}.txt").write_text(f"photo <b>{k % 5}</b>")
    return folder


def inspected(capsys, what, out, *more, code=0):
    capsys.readouterr()
    assert cli.main(["data", "inspect", str(what), f"--out={out}", *more]) == code
    return capsys.readouterr().out


def figures(text):
    """The figures of the only source of a printed or written object."""
    (source,) = json.loads(text)["sources"]
    return source


def test_a_folder_alone_is_told_as_a_table(tmp_path, capsys):
    folder = photos(tmp_path / "photos")
    (folder / "p03.jpg").write_bytes(encoded((70, 30), seed=3)[:700])
    shutil.copy(folder / "p00.jpg", folder / "p05.jpg")
    said = inspected(capsys, folder, tmp_path / "out")
    assert re.search(r"^  samples +12, all measured$", said, re.MULTILINE)
    assert re.search(r"^  pictures +11; [\d.]+ kB: 11 jpg$", said, re.MULTILINE)
    assert re.search(r"^  sides +width 40 to 150 \(median 100, 95 % up to 140\), height 30 px; ", said, re.MULTILINE)
    repeats = r'^  repeated text +6 of 11 samples \(54\.5%\) have the text of an earlier one; 4 texts come again\n +3 x "photo <b>0</b>"'
    assert re.search(repeats, said, re.MULTILINE)
    assert re.search(r"^  repeated pictures +1 of 11 pictures \(9\.1%\) are an earlier one to the byte; 1 come again$", said, re.MULTILINE)
    assert re.search(r"^  duplicates +1 of 11 samples", said, re.MULTILINE)
    assert re.search(r"^  broken +1 of 12 samples \(8\.33%\)\n +1 x not a readable image \(N bytes\).* \(p03\)$", said, re.MULTILINE)
    assert said.endswith(f"written to {tmp_path / 'out/page.html'} and {tmp_path / 'out/figures.json'}\n")


def test_json_on_the_screen_and_in_the_file_are_the_same_figures(tmp_path, capsys):
    said = inspected(capsys, photos(tmp_path / "photos"), tmp_path / "out", "--json")
    assert json.loads(said) == json.loads((tmp_path / "out/figures.json").read_text(encoding="utf-8"))
    told = figures(said)
    assert (told["samples"], told["read"], told["all"], told["pictures"], told["formats"]) == (12, 12, True, 12, {"jpg": 12})
    assert (told["width"]["min"], told["width"]["median"], told["width"]["max"], told["width"]["unit"]) == (40, 90, 150, "px")
    assert sum(told["width"]["histogram"]["counts"]) == 12
    assert told["repeated_texts"]["most_frequent"][0] == {"count": 3, "samples": [0, 5, 10], "text": "photo <b>0</b>"}


def test_the_page_has_histograms_with_axes_and_small_pictures_and_loads_nothing(tmp_path, capsys):
    inspected(capsys, photos(tmp_path / "photos"), tmp_path / "out")
    page = (tmp_path / "out/page.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "<script" not in page and "default-src &#39;none&#39;" in page
    titles = re.findall(r"<figcaption><strong>(.*?)</strong>", page)
    assert titles == ["Width", "Aspect ratio", "File size"], "height and words are the same everywhere"
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        bars = [[float(number) for number in bar] for bar in re.findall(r'<rect x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)">', svg)]
        assert bars and all(x >= 0 and x + width <= WIDTH and y >= 0 and y + height <= HEIGHT for x, y, width, height in bars)
        assert len(re.findall(r"<text", svg)) >= 4
    assert "px</text>" in page and page.count('src="data:image/jpeg') >= 12
    assert "photo &lt;b&gt;0&lt;/b&gt;" in page and "<b>0" not in page


def test_a_large_source_says_that_a_part_was_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "STORED", 10)
    said = inspected(capsys, photos(tmp_path / "photos", 15), tmp_path / "out")
    assert re.search(r"samples +15, 10 of them, drawn at random, measured\n", said)
    told = figures(inspected(capsys, tmp_path / "photos", tmp_path / "again", "--figures=4", "--headers", "--json"))
    assert (told["read"], told["all"], told["headers_only"]) == (4, False, True)


def test_what_is_held_out_too_is_told(tmp_path, capsys):
    photos(tmp_path / "train"), photos(tmp_path / "held", 3)
    (tmp_path / "held/p01.txt").write_text("another")
    (tmp_path / "held/p02.jpg").write_bytes(encoded((77, 30), seed=99))
    said = inspected(capsys, tmp_path / "train", tmp_path / "out", f"--held-out={tmp_path / 'held'}")
    assert "  leakage        1 samples held out too, such as folder:train[0] and folder:held[0]; 2 pictures held out too, such as " in said
    assert "(12 samples compared with 3 of folder:held)" in said
    told = figures((tmp_path / "out/figures.json").read_text())
    assert told["held_out"] == {"name": "folder:held", "compared": 3, "samples": 1, "pictures": 2, "clips": 0, "near_copies": 0}


def clips(folder, count):
    """Write clips of three frames, the first two of which are one clip; the last has a damaged frame."""
    folder.mkdir()
    for k in range(count):
        for number in range(3):
            body = encoded((40, 30), seed=10 * max(k, 1) + number)
            (folder / f"{k}-{number}.jpg").write_bytes(body[: len(body) // 2] if (k, number) == (count - 1, 1) else body)
    rows = [{"id": f"clip{k}", "frames": [f"{k}-{number}.jpg" for number in range(3)], "caption": f"text {k}"} for k in range(count)]
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "text", "caption": "no more"}]))
    return folder / "clips.jsonl"


def test_clips_are_counted_as_clips_and_a_damaged_frame_is_broken(tmp_path, capsys):
    own, held = clips(tmp_path / "a", 5), clips(tmp_path / "b", 2)
    said = inspected(capsys, own, tmp_path / "out", f"--held-out={held}")
    assert re.search(r"^  clips +4 of 3 frames; \S+ kB: 12 jpg\n  sides of clips +width 40, height 30 px$", said, re.MULTILINE)
    assert re.search(r"^  without pictures +1 samples of text alone$", said, re.MULTILINE)
    assert re.search(r"^  repeated clips +1 of 4 clips \(25.0%\) are an earlier one to the byte; 1 come again$", said, re.MULTILINE)
    assert re.search(r"^  broken +1 of 6 samples \(16.67%\)\n +1 x frame N of N: not a readable image .* \(clip4\)$", said, re.MULTILINE)
    assert "; 2 clips held out too, such as jsonl:clips.jsonl[0] and jsonl:clips.jsonl[0] (" in said
    told = figures((tmp_path / "out/figures.json").read_text())
    assert (told["clips"], told["frames"]["max"], told["repeated_clips"]["repeated"], told["held_out"]["clips"]) == (4, 3, 1, 2)
    assert "data:image/jpeg" in (tmp_path / "out/page.html").read_text()
    broken = figures(inspected(capsys, own, tmp_path / "headers", "--headers", "--json"))["broken"]
    assert not broken, "the header of the damaged frame is whole"


def test_tokens_are_counted_by_a_tokenizer_that_is_named(tmp_path, capsys):
    (tmp_path / "tokenizer").mkdir()
    train_tokenizer(["photo <b>0</b>"], rows=300, special=[]).save(str(tmp_path / "tokenizer/tokenizer.json"))
    told = figures(inspected(capsys, photos(tmp_path / "photos"), tmp_path / "out", "--json", f"--tokenizer={tmp_path / 'tokenizer'}"))
    assert told["tokens"]["count"] == 12 and told["tokens"]["min"] >= 1


CAPTIONS = ["a dog runs on a beach", "two people walk in the rain", "ein Hund liegt am Strand", "une vue de la ville la nuit", "frog"]


def test_languages_of_captions_are_told_with_the_package_and_missed_without(tmp_path, capsys, monkeypatch):
    pytest.importorskip("py3langid")
    rows = [json.dumps({"url": f"https://host.example/{k}.jpg", "caption": text}) + "\n" for k, text in enumerate(CAPTIONS)]
    (tmp_path / "list.jsonl").write_text("".join(rows))
    for k, text in enumerate(CAPTIONS):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / f"photos/{k}.jpg").write_bytes(encoded((40, 30), seed=k))
        (tmp_path / f"photos/{k}.txt").write_text(text)
    for what in ("photos", "list.jsonl"):
        languages._identifier.cache_clear()
        told = figures(inspected(capsys, tmp_path / what, tmp_path / f"with-{what}", "--json"))
        assert told["languages"] == {"en": 2, "de": 1, "fr": 1, "unsure": 1}
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "py3langid.langid", None)
            languages._identifier.cache_clear()
            said = inspected(capsys, tmp_path / what, tmp_path / f"without-{what}")
            assert re.search(r"^  languages +not told without the package py3langid: pip install 'plait\[languages\]'$", said, re.MULTILINE)
    languages._identifier.cache_clear()


def links(path, count=40):
    rows = [{"url": f"https://host{k % 3}.example/{k % 30}.jpg", "caption": f"a text {k % 4}", "width": 100 + k} for k in range(count)]
    rows[3]["url"] = rows[4]["caption"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_list_of_links_is_measured_as_one_and_says_how_to_fetch_it(tmp_path, capsys):
    said = inspected(capsys, links(tmp_path / "list.jsonl"), tmp_path / "out")
    assert re.search(r"^  rows +40, all read; addresses in 'url', captions in 'caption'$", said, re.MULTILINE)
    assert re.search(r"^  no address +1 rows", said, re.MULTILINE) and re.search(r"^  hosts +3; .*13 host1\.example", said, re.MULTILINE)
    assert "10 addresses" in said or "9 addresses" in said
    assert f"plait data download {tmp_path / 'list.jsonl'} data/list" in said
    told = figures((tmp_path / "out/figures.json").read_text())
    assert (told["links"], told["rows"], told["without_address"], told["without_caption"]) == (True, 40, 1, 1)
    part = figures(inspected(capsys, tmp_path / "list.jsonl", tmp_path / "part", "--figures=10", "--json"))
    assert part["read"] <= 12 and not part["all"]


@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        ("a.yaml", "family: theworld", True),
        ("a.json", '{"family": "theworld", "stages": [{"name": "a"}]}', True),
        ("a.json", '{"dataset_name": "x", "learning_rate": 1}', True),
        ("a.json", '[{"image": "a.png"}]', False),
        ("a.json", '{"data": [{"image": "a.png"}]}', False),
        ("a.json", '\n [{"image": 1}]', False),
        ("a.json", '{"info": {}, "images": [{"id": 1}], "annotations": [{"id": 1}]}', False),
        ("a.json", "5", True),
        ("a.json", '{"stages": [{"name": "a"}], "evaluate": [{"bench": "loss"}]}', True),
        ("a.jsonl", '{"image": "a.png"}', False),
        ("a.csv", "image,caption", False),
        ("a.parquet", "PAR1", False),
    ],
)
def test_a_configuration_is_told_from_data(tmp_path, name, body, expected):
    (tmp_path / name).write_text(body)
    assert is_configuration(str(tmp_path / name)) is expected


def test_folders_addresses_scripts_and_scenes_are_told_too(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("")
    assert is_configuration(str(tmp_path / "run")) and not is_configuration(str(tmp_path))
    assert not is_configuration("scenes") and not is_configuration("s3://bucket/config.yaml/a.tar") and is_configuration("nowhere.yaml")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["photos", "--samples=3"], "--samples is of a configuration, and this is data alone: --figures says how many are measured"),
        (["c.yaml", "--held-out=photos"], "--held-out is of data alone"),
        (["photos", "--tokenizer=nowhere"], "--tokenizer=nowhere: there is no nowhere"),
        (["photos", "--colums.caption=x"], "--colums: Extra inputs are not permitted"),
        (["nothing"], "'nothing' is no folder of pictures, .jsonl, .json, .csv, .parquet, tar shards or `scenes`"),
        (
            ["hf://datasets/mlfoundations/datacomp_small", "--limit=10"],
            "data source mlfoundations/datacomp_small: its rows hold addresses of pictures, and no pictures: fetch them into tar shards",
        ),
        (["photos", "--out=photos"], "photos is not empty; give --out a new folder"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, capsys, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", 2)
    assert cli.main(["data", "inspect", *words]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len([row for row in err if row.startswith("plait: ")]) == 1 and err[-1].startswith(f"plait: {line}")


def test_a_configurations_sources_are_measured_beside_what_the_model_sees(tmp_path, capsys):
    labelled(tmp_path / "a.tar", 0, 6)
    model = {"base": "tiny", "tiny": {"image_size": 16, "image_tokens": 4, "vocabulary": 300}}
    entry = {"source": "shards", "path": str(tmp_path / "a.tar"), "template": {"user": "What?", "assistant": "number {label}"}}
    scenes = {"source": "scenes", "limit": 5, "options": {"size": [32, 32]}}
    tree = {"run": str(tmp_path / "run"), "family": "theworld", "model": model, "train": {"steps": 1, "global_batch": 2}}
    (tmp_path / "c.yaml").write_text(reading.write_yaml({**tree, "data": {"train": [entry, scenes]}}))
    said = inspected(capsys, tmp_path / "c.yaml", tmp_path / "out", "--samples=2")
    assert "shards:a.tar: figures\n" in said and "scenes train: figures\n" in said
    assert f"\nfigures in {tmp_path / 'out/figures.html'}\n" in said
    page = (tmp_path / "out/figures.html").read_text(encoding="utf-8")
    assert re.findall(r'<h2 class="name">(.*?)</h2>', page) == ["shards:a.tar", "scenes train"]
    told = json.loads(inspected(capsys, tmp_path / "c.yaml", tmp_path / "again", "--json"))
    assert [source["name"] for source in told["sources"]] == ["shards:a.tar", "scenes train"] and told["refused"] == []
    assert told["sources"][0]["tokens"]["count"] == 6 and told["look"][0]["about"] == "shards:a.tar"
    assert told["pages"] == [str(tmp_path / "again" / name) for name in ("page.html", "figures.html")]


def test_shards_at_an_address_are_inspected_and_packed_and_nothing_shows_their_signature(tmp_path, capsys, monkeypatch):
    members = [(f"{k}.{kind}", body) for k in range(20) for kind, body in (("png", picture(k)), ("json", b'{"label": 1}'), ("npy", b"x"))]
    path = pack(tmp_path / "a.tar", members)
    monkeypatch.setenv("SIGNATURE", "X-Amz-Signature=secret")
    with serving({"a.tar": path.read_bytes()}) as server:
        address = f"{server.url}/a.tar?${{SIGNATURE}}"
        said = inspected(capsys, address, tmp_path / "out", "--template.assistant=number {label}")
        assert re.search(r"^  samples +20, all measured$", said, re.MULTILINE) and re.search(r"^  answers +2 words", said, re.MULTILINE)
        assert cli.main(["data", "shard", address, str(tmp_path / "far"), "--plain"]) == 0
        assert cli.main(["data", "shard", address, str(tmp_path / "streamed"), "--plain", "--options.stream=true"]) == 0
        said += "".join(capsys.readouterr())
    assert cli.main(["data", "shard", str(path), str(tmp_path / "near"), "--plain"]) == 0
    bodies = [(tmp_path / folder / "000000.tar").read_bytes() for folder in ("far", "streamed", "near")]
    assert bodies[0] == bodies[1] == bodies[2], "also the members that no sample is made of"
    files = [file for folder in ("out", "far") for file in (tmp_path / folder).iterdir()]
    assert "secret" not in said and not any(b"secret" in file.read_bytes() for file in files)


def test_records_at_an_address_are_measured_and_packed(tmp_path, capsys):
    pytest.importorskip("httpx")
    address = "data:image/png;base64," + base64.b64encode(picture()).decode()
    body = "".join(json.dumps({"image": address, "caption": f"a {number}"}) + "\n" for number in range(3)).encode()
    with serving({"x.jsonl": body}) as server:
        assert "3, all measured" in inspected(capsys, f"{server.url}/x.jsonl", tmp_path / "out")
        assert cli.main(["data", "shard", f"{server.url}/x.jsonl", str(tmp_path / "packed"), "--plain"]) == 0
    source = open_source(SourceEntry(source="shards", path=str(tmp_path / "packed")), seed=0)
    assert [source.peek(number)["messages"][-1]["content"] for number in range(3)] == ["a 0", "a 1", "a 2"]
