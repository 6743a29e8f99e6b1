"""`plait data download`: every row of a list gets exactly one outcome, whatever servers, disks and signals do."""

import hashlib
import json
import random
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from plait import cli
from plait.config.schema import SourceEntry
from plait.data.download import engine, fetch
from plait.data.download.journal import Journal
from plait.data.image_files import decode_rgb
from plait.data.sources.open import open_source
from tests.data.link_server import ALLOWED, KINDS, Pictures, serving_links

pytest.importorskip("aiohttp")

SLOW = ("hang", "drip")
"""Kinds whose outcome takes the limits of time."""
OPTIONS = ("--allow", ALLOWED, "--per-host=64", "--max-bytes=1000000", "--min-side=32", "--per-shard=25")


@pytest.fixture(scope="module")
def pictures():
    return Pictures(8, 64)


@pytest.fixture
def web(pictures):
    with serving_links(pictures) as thread:
        yield thread


def write_list(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def mixed(server, count, kinds=("missing", "dead", "circle", "html", "torn", "later", "wrong", "cut")):
    """A list of which about a third does not lead to a picture at once."""
    chosen = random.Random(5).choices(["ok", "moved", "packed", *kinds], [50, 10, 10, *[30 / len(kinds)] * len(kinds)], k=count)
    return [server.row(kind, number) for number, kind in enumerate(chosen)], chosen


def outcomes(out):
    """The outcomes of a folder of shards, in the order of their rows."""
    return [json.loads(line) for path in sorted(out.glob("0*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def download(path, out, *more):
    return cli.main(["data", "download", str(path), str(out), *OPTIONS, *more])


def test_every_kind_of_link_has_its_outcome_and_one(web, tmp_path, caplog):
    kinds = [kind for kind in KINDS if kind not in SLOW] * 2
    rows = [web.server.row(kind, number) for number, kind in enumerate(kinds)]
    rows += [{"uid": "a", "url": None}, {"uid": "b", "url": "not an address"}, {"uid": "c", "url": "http://localhost:1/x"}]
    assert download(write_list(tmp_path / "list.jsonl", rows), tmp_path / "out") == 0
    told = outcomes(tmp_path / "out")
    assert [row["row"] for row in told] == list(range(len(rows)))
    assert [row["status"] for row in told] == [*(KINDS[kind] for kind in kinds), "no_url", "bad_url", "private_address"]
    counts = [json.loads(path.read_bytes())["outcomes"] for path in sorted((tmp_path / "out").glob("0*.json"))]
    assert sum(sum(count.values()) for count in counts) == len(rows)
    assert not [path for path in web.server.asked if path.startswith("/reached")]
    assert "           8   13.6%  saved            the picture is in the shard" in caplog.text


def test_a_host_that_asks_to_wait_loses_no_row_and_one_that_always_does_ends(web, tmp_path, monkeypatch):
    rows = [web.server.row("later", number) for number in range(60)]
    assert download(write_list(tmp_path / "list.jsonl", rows), tmp_path / "out") == 0
    assert {row["status"] for row in outcomes(tmp_path / "out")} == {"saved"}
    rows = [web.server.row("never", number) for number in range(40)]
    assert download(write_list(tmp_path / "never.jsonl", rows), tmp_path / "never", "--connections=2") == 0
    assert {row["status"] for row in outcomes(tmp_path / "never")} == {"http_503"}
    assert len([path for path in web.server.asked if path.startswith("/never")]) < 80


def test_hosts_that_hang_or_drip_end_in_time(web, tmp_path):
    rows = [web.server.row(kind, number) for number, kind in enumerate(["hang", "ok", "drip", "hang"])]
    assert download(write_list(tmp_path / "list.jsonl", rows), tmp_path / "out", "--timeout=1", "--attempts=1") == 0
    assert [row["status"] for row in outcomes(tmp_path / "out")] == ["timeout", "saved", "timeout", "timeout"]


def test_shards_are_read_as_a_source_with_the_captions_and_columns_of_the_list(web, tmp_path):
    rows, chosen = mixed(web.server, 60)
    assert download(write_list(tmp_path / "list.jsonl", rows), tmp_path / "out") == 0
    saved = [number for number, kind in enumerate(chosen) if KINDS[kind] == "saved"]
    source = open_source(SourceEntry(source="shards", path=str(tmp_path / "out")), seed=0, split="train")
    assert len(source) == len(saved)
    for index, number in enumerate(saved):
        sample = source[index]
        assert sample["images"] == [web.server.pictures.body(number)]
        assert sample["messages"][-1]["content"] == rows[number]["text"]
        fields = sample["fields"]
        assert (fields["uid"], fields["url"], fields["sha256"]) == (f"u{number}", rows[number]["url"], rows[number]["sha256"])
        assert (fields["width"], fields["height"], fields["kind"]) == (64, 64, "jpg")


def test_a_finished_download_asks_for_nothing_again(web, tmp_path):
    rows, _ = mixed(web.server, 60)
    path = write_list(tmp_path / "list.jsonl", rows)
    assert download(path, tmp_path / "out") == 0
    before, asked = tree(tmp_path / "out"), len(web.server.asked)
    assert download(path, tmp_path / "out") == 0
    assert tree(tmp_path / "out") == before
    assert len(web.server.asked) == asked


def test_the_end_says_what_to_do_next_and_what_an_own_network_takes(web, tmp_path, capsys):
    rows = [web.server.row("ok", number) for number in range(6)]
    path, out = write_list(tmp_path / "list.jsonl", rows), tmp_path / "own pictures"
    assert cli.main(["data", "download", str(path), str(out), "--min-side=32"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "they are fetched from a network of your own by the same command with --allow=10.0.0.0/8 --again=private_address"
    assert "private_address" in said[-3] and "0 pictures" in said[-2]
    assert cli.main(["data", "download", str(path), str(out), "--min-side=32", f"--allow={ALLOWED}", "--again=private_address"]) == 0
    look, train = capsys.readouterr().out.splitlines()[-2:]
    assert train == f"train        {{source: shards, path: {out}}}; in a flat JSON file --dataset_name={shlex.quote(str(out))}"
    words = shlex.split(look.removeprefix("look"))
    assert cli.main([*words[1:], "--out", str(tmp_path / "seen")]) == 0 and "6, all measured" in capsys.readouterr().out


def test_parts_of_several_machines_are_the_whole(web, tmp_path):
    rows, _ = mixed(web.server, 110)
    path = write_list(tmp_path / "list.jsonl", rows)
    assert download(path, tmp_path / "whole") == 0
    for part in ("3/3", "1/3", "2/3"):
        assert download(path, tmp_path / "parts", f"--part={part}") == 0
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")


def test_kills_at_any_moment_lose_and_double_nothing(web, tmp_path):
    rows, _ = mixed(web.server, 300)
    path = write_list(tmp_path / "list.jsonl", rows)
    assert download(path, tmp_path / "straight") == 0
    command = [sys.executable, "-m", "plait", "data", "download", str(path), str(tmp_path / "killed"), *OPTIONS, "--connections=8"]
    dice, kills = random.Random(1), 0
    while True:
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        asked, until = len(web.server.asked), dice.randrange(5, 120)
        while process.poll() is None and len(web.server.asked) < asked + until:
            time.sleep(0.002)
        process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        kills += process.returncode == -9
    assert kills >= 3
    assert tree(tmp_path / "killed") == tree(tmp_path / "straight")


def test_rows_in_a_journal_are_not_fetched_again(web, tmp_path, monkeypatch):
    rows = [web.server.row("ok", number) for number in range(20)]
    path = write_list(tmp_path / "list.jsonl", rows)
    record, done = engine.Download._record, []

    def fail(self, *what):
        if len(done) == 12:
            raise OSError(28, "No space left on device")
        done.append(what)
        record(self, *what)

    monkeypatch.setattr(engine.Download, "_record", fail)
    assert download(path, tmp_path / "out", "--connections=1") == 1
    monkeypatch.undo()
    web.server.asked.clear()
    assert download(path, tmp_path / "out") == 0
    assert len(web.server.asked) == 8
    assert {row["status"] for row in outcomes(tmp_path / "out")} == {"saved"}


def test_a_full_disk_ends_in_one_line_and_the_same_command_goes_on(web, tmp_path):
    rows, _ = mixed(web.server, 60)
    path = write_list(tmp_path / "list.jsonl", rows)
    assert download(path, tmp_path / "straight") == 0
    words = ["data", "download", str(path), str(tmp_path / "full"), *OPTIONS]
    limited = "import resource, sys; from plait import cli; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
    code = f"{limited} sys.exit(cli.main({words}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert f"cannot write in {tmp_path / 'full'}: File too large; free space there, and the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr
    assert download(path, tmp_path / "full") == 0
    assert tree(tmp_path / "full") == tree(tmp_path / "straight")


def test_a_dead_network_records_no_row_and_the_same_command_goes_on(web, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine, "_PROBE_WAITS_S", (0.1,))
    rows, _ = mixed(web.server, 200)
    path = write_list(tmp_path / "list.jsonl", rows)
    assert download(path, tmp_path / "straight") == 0
    note, answers = engine.Download._note_answer, []

    def unplug(self, url, began_s):
        answers.append(url)
        if len(answers) == 90:
            web.stop()
        note(self, url, began_s)

    monkeypatch.setattr(engine.Download, "_note_answer", unplug)
    assert download(path, tmp_path / "cut", "--connections=8") == 1
    assert "no server answers: the last " in capsys.readouterr().err
    monkeypatch.undo()
    web.start()
    assert download(path, tmp_path / "cut") == 0
    assert tree(tmp_path / "cut") == tree(tmp_path / "straight")


@pytest.mark.parametrize("graceful", [False, True])
def test_rows_that_fail_while_the_network_is_away_are_asked_for_again(web, tmp_path, monkeypatch, graceful):
    kinds = ["dead" if number % 50 == 7 else "ok" for number in range(500)]
    rows = [web.server.row(kind, number) for number, kind in enumerate(kinds)]
    path = write_list(tmp_path / "list.jsonl", rows)
    note, answers = engine.Download._note_answer, []

    def unplug(self, url, began_s):
        answers.append(url)
        if len(answers) == 100:
            web.stop(graceful=graceful)
            threading.Timer(2.5, web.start).start()
        note(self, url, began_s)

    monkeypatch.setattr(engine.Download, "_note_answer", unplug)
    assert download(path, tmp_path / "out", "--connections=32", "--timeout=1", "--attempts=1") == 0
    told = [row["status"] for row in outcomes(tmp_path / "out")]
    assert told == ["connect" if kind == "dead" else "saved" for kind in kinds]
    assert len(web.server.asked) < 700


def test_a_stopped_download_of_which_only_dead_links_are_left_ends_as_the_straight_one(web, tmp_path, monkeypatch):
    kinds = ["missing", *["dead"] * 50, "ok", *["dead"] * 48]  # the shards in the middle and at the end have no answer
    path = write_list(tmp_path / "list.jsonl", [web.server.row(kind, number) for number, kind in enumerate(kinds)])
    assert download(path, tmp_path / "straight") == 0
    for number in range(4):  # of each shard alone, what the others tell is enough
        shutil.copytree(tmp_path / "straight", tmp_path / f"{number}")
        for left in (tmp_path / f"{number}").glob(f"{number:06d}.*"):
            left.unlink()
        assert download(path, tmp_path / f"{number}") == 0
        assert tree(tmp_path / f"{number}") == tree(tmp_path / "straight")


def test_a_list_of_dead_links_alone_is_recorded_only_when_it_is_asked_for(web, tmp_path, capsys):
    path = write_list(tmp_path / "list.jsonl", [web.server.row("dead", number) for number in range(70)])
    assert download(path, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "0 of 70 rows are recorded; when the network is back, the same command goes on; --record-unreachable" in said
    assert download(path, tmp_path / "out", "--record-unreachable") == 0
    assert {row["status"] for row in outcomes(tmp_path / "out")} == {"connect"}


def test_another_list_or_other_limits_are_refused_in_the_same_folder(web, tmp_path, capsys):
    path = write_list(tmp_path / "list.jsonl", [web.server.row("ok", number) for number in range(3)])
    assert download(path, tmp_path / "out") == 0
    assert download(path, tmp_path / "out", "--max-side=32") == 2
    assert "holds a download with pictures {" in capsys.readouterr().err


def test_large_pictures_are_scaled_down_where_that_is_asked_for(web, tmp_path):
    path = write_list(tmp_path / "list.jsonl", [web.server.row("ok", 3)])
    assert download(path, tmp_path / "out", "--max-side=40") == 0
    (row,) = outcomes(tmp_path / "out")
    source = open_source(SourceEntry(source="shards", path=str(tmp_path / "out")), seed=0, split="train")
    assert decode_rgb(source[0]["images"][0]).shape == (40, 40, 3)
    assert (row["width"], row["height"], row["sha256"]) == (40, 40, web.server.row("ok", 3)["sha256"])


def test_an_older_journal_of_another_process_is_locked(web, tmp_path, capsys):
    path = write_list(tmp_path / "list.jsonl", [web.server.row("hang", 0)])
    command = [sys.executable, "-m", "plait", "data", "download", str(path), str(tmp_path / "out"), *OPTIONS]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not web.server.asked:
        time.sleep(0.01)
    assert download(path, tmp_path / "out") == 2
    assert f"another process downloads into {tmp_path / 'out'}" in capsys.readouterr().err
    process.kill()
    process.wait()
    shutil.rmtree(tmp_path / "out")


def test_pictures_as_files_are_named_by_their_address_and_fetched_once_for_all_lists(web, tmp_path, capsys):
    rows = [web.server.row(kind, number) for kind, number in [("ok", 1), ("ok", 2), ("ok", 1), ("missing", 3), ("moved", 4)]]
    out, first, second = tmp_path / "pictures", tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    assert download(write_list(first, rows), out, "--as-files") == 0
    named = {
        hashlib.sha256(rows[number]["url"].encode()).hexdigest(): web.server.pictures.body(at) for number, at in [(0, 1), (1, 2), (4, 4)]
    }
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == named
    (folder,) = (out / "lists").iterdir()
    assert [row["status"] for row in outcomes(folder)] == ["saved", "saved", "repeated", "http_404", "saved"]
    web.server.asked.clear()
    assert download(write_list(second, [rows[1], rows[0], web.server.row("ok", 9)]), out, "--as-files") == 0
    assert web.server.asked == ["/ok/9"]
    assert download(first, out, "--as-files") == 0
    assert web.server.asked == ["/ok/9"]
    assert download(first, tmp_path / "shards") == 0
    assert download(second, tmp_path / "shards", "--as-files") == 2
    assert "holds shards: give pictures as files a folder of their own" in capsys.readouterr().err


def test_kills_lose_and_double_no_file(web, tmp_path):
    rows, _ = mixed(web.server, 120)
    path = write_list(tmp_path / "list.jsonl", rows + rows[:20])
    assert download(path, tmp_path / "straight", "--as-files") == 0
    command = [
        sys.executable,
        "-m",
        "plait",
        "data",
        "download",
        str(path),
        str(tmp_path / "killed"),
        *OPTIONS,
        "--connections=8",
        "--as-files",
    ]
    for until in (15, 60, 90, 10**9):
        process, asked = subprocess.Popen(command, stderr=subprocess.DEVNULL), len(web.server.asked)
        while process.poll() is None and len(web.server.asked) < asked + until:
            time.sleep(0.002)
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "straight")


def test_a_machine_that_opens_no_more_connections_is_told_and_no_row_is_blamed(web, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fetch, "checked_socket", lambda *_: (_ for _ in ()).throw(OSError(24, "Too many open files")))
    path = write_list(tmp_path / "list.jsonl", [web.server.row("ok", number) for number in range(3)])
    assert download(path, tmp_path / "out") == 2
    assert "this machine opens no more connections (Too many open files): give fewer --connections" in capsys.readouterr().err
    monkeypatch.undo()
    assert download(path, tmp_path / "out") == 0
    assert [row["status"] for row in outcomes(tmp_path / "out")] == ["saved"] * 3


def test_more_connections_than_the_machine_allows_are_refused_before(web, tmp_path, capsys):
    path = write_list(tmp_path / "list.jsonl", [web.server.row("ok", 0)])
    assert download(path, tmp_path / "out", "--connections=2000000000") == 2
    assert "2000000256 open files are needed, and this machine allows" in capsys.readouterr().err
    assert not web.server.asked


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_webdataset_reads_the_shards_as_those_of_its_own(web, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    rows, chosen = mixed(web.server, 60)
    assert download(write_list(tmp_path / "list.jsonl", rows), tmp_path / "out") == 0
    shards = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    saved = [number for number, kind in enumerate(chosen) if KINDS[kind] == "saved"]
    assert [(sample["__key__"], sample["txt"].decode()) for sample in samples] == [(f"{n:09d}", rows[n]["text"]) for n in saved]
    assert [json.loads(sample["json"])["uid"] for sample in samples] == [f"u{number}" for number in saved]
    assert [sample["jpg"] for sample in samples] == [web.server.pictures.body(number) for number in saved]


@pytest.mark.parametrize("form", [(), ("--as-files",)])
def test_a_list_may_be_read_further_in_the_same_folder(web, tmp_path, form):
    rows, _ = mixed(web.server, 110)
    path = write_list(tmp_path / "list.jsonl", rows)
    assert download(path, tmp_path / "straight", *form) == 0
    for limit in ("--limit=10", "--limit=60", "--limit=110"):
        assert download(path, tmp_path / "grown", *form, limit) == 0
    assert tree(tmp_path / "grown") == tree(tmp_path / "straight")


def test_fewer_rows_of_a_list_are_refused_in_the_same_folder(web, tmp_path, capsys):
    path = write_list(tmp_path / "list.jsonl", [web.server.row("ok", number) for number in range(30)])
    assert download(path, tmp_path / "out") == 0
    before = tree(tmp_path / "out")
    assert download(path, tmp_path / "out", "--limit=10") == 2
    assert "holds a download with list {" in capsys.readouterr().err
    assert tree(tmp_path / "out") == before


def test_outcomes_that_pass_are_fetched_again_and_no_others(web, tmp_path, capsys):
    kinds = ["ok", "later", "missing", "moved"] * 15
    path = write_list(tmp_path / "list.jsonl", [web.server.row(kind, number) for number, kind in enumerate(kinds)])
    assert download(path, tmp_path / "out", "--attempts=1") == 0
    assert [row["status"] for row in outcomes(tmp_path / "out")] == ["saved", "http_429", "http_404", "saved"] * 15
    web.server.asked.clear()
    assert download(path, tmp_path / "out", "--again=http_429,timeout") == 0
    assert sorted(web.server.asked) == sorted(f"/later/{number}" for number, kind in enumerate(kinds) if kind == "later")
    assert download(path, tmp_path / "straight") == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "straight")
    assert download(path, tmp_path / "out", "--again=saved") == 2
    assert "--again=saved: no link has this outcome; there are bad_row, no_url, repeated, " in capsys.readouterr().err


def test_a_kill_while_a_shard_is_opened_again_leaves_it_whole(web, tmp_path, monkeypatch):
    kinds = ["ok", "later"] * 10
    path = write_list(tmp_path / "list.jsonl", [web.server.row(kind, number) for number, kind in enumerate(kinds)])
    assert download(path, tmp_path / "out", "--attempts=1") == 0
    before, added, add = tree(tmp_path / "out"), [], Journal.add

    def fail(self, *what):
        added.append(what)
        if len(added) == 7:
            raise OSError(28, "No space left on device")
        add(self, *what)

    monkeypatch.setattr(Journal, "add", fail)
    assert download(path, tmp_path / "out", "--again=http_429") == 1
    monkeypatch.undo()
    assert {name: body for name, body in tree(tmp_path / "out").items() if "journal" not in name} == before
    assert download(path, tmp_path / "out", "--again=http_429") == 0
    assert [row["status"] for row in outcomes(tmp_path / "out")] == ["saved"] * 20


def test_parts_at_once_may_share_one_folder(web, tmp_path):
    rows, _ = mixed(web.server, 110)
    path = write_list(tmp_path / "list.jsonl", rows)
    assert download(path, tmp_path / "whole") == 0
    command = [sys.executable, "-m", "plait", "data", "download", str(path), str(tmp_path / "parts"), *OPTIONS]
    parts = [subprocess.Popen([*command, f"--part={part}/3"], stderr=subprocess.DEVNULL) for part in (1, 2, 3)]
    assert [part.wait() for part in parts] == [0, 0, 0]
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")


def test_files_that_wait_to_be_judged_are_bounded(web, tmp_path, monkeypatch):
    waiting, judge = [], engine.judge

    def slowly(*what):
        time.sleep(0.01)
        return judge(*what)

    class Watched(engine.Download):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name == "_waiting_bytes":
                waiting.append(value)

    monkeypatch.setattr(engine, "judge", slowly)
    monkeypatch.setattr("plait.commands.actions.download_data.Download", Watched)
    monkeypatch.setattr(engine, "_WAITING_BYTES", 20_000)
    path = write_list(tmp_path / "list.jsonl", [web.server.row("ok", number) for number in range(150)])
    assert download(path, tmp_path / "out", "--connections=4") == 0
    largest = max(map(len, web.server.pictures.bodies))
    assert 20_000 < max(waiting) <= 20_000 + 6 * largest  # what was asked for already comes on top
    assert waiting[-1] == 0 and len(outcomes(tmp_path / "out")) == 150


ODD = {
    "http://": "bad_url",
    "http:///a.jpg": "bad_url",
    "//a.example/a.jpg": "bad_url",
    "a.jpg": "bad_url",
    "javascript:alert(1)": "bad_url",
    "file:///etc/passwd": "bad_url",
    "http://[::1": "bad_url",
    "http://a.example:port/": "bad_url",
    "http://a.example:99999/": "bad_url",
    "http://[::1]/": "private_address",
    "http://[fe80::1%25eth0]/": "private_address",
    "http://[::ffff:10.0.0.1]/": "private_address",
    "http://user:word@10.0.0.1/": "private_address",
    "http://0.0.0.0/": "private_address",
    "http://2130706433/": "private_address",
    "http://127.1/": "private_address",
    "http://0x7f.1/": "dns",
    "http://xn--/": None,
    "http://a..b/": None,
    "http://.../": None,
    "http://-/": None,
    "http://a.example/\ud800": None,
    "http://\ud800/": None,
    "http://a.example/a b\tc\n": "dns",
    "http://" + "a" * 300 + "/": None,
    "http://" + "a." * 2000 + "/": None,
    "http://ä.example/ü?q=ö": "dns",
    "http://１２７.0.0.1/": None,
    "HTTP://A.EXAMPLE/": "dns",
}
"""Addresses that a list may hold, with their outcome; None: that no host has this name, or that it is none."""


@pytest.mark.parametrize("form", [(), ("--as-files",)])
def test_odd_addresses_are_rows_like_any_others(web, tmp_path, monkeypatch, form):
    def no_such_host(*what, **more):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    path = write_list(tmp_path / "list.jsonl", [{"url": url} for url in ODD] + [web.server.row("ok", 1), {"url": 3}, {"url": ["x"]}, {}])
    assert download(path, tmp_path / "out", *form) == 0
    told = outcomes(tmp_path / "out" if not form else next((tmp_path / "out" / "lists").iterdir()))
    wrong = {url: row["status"] for url, row in zip(ODD, told, strict=False) if row["status"] != ODD[url]}
    assert not {url: status for url, status in wrong.items() if ODD[url] or status not in ("bad_url", "dns", "private_address")}
    assert [row["status"] for row in told[len(ODD) :]] == ["saved", "no_url", "no_url", "no_url"]


def test_several_networks_may_be_allowed(web, tmp_path):
    path = write_list(tmp_path / "list.jsonl", [web.server.row("private", 0), {"url": f"http://127.0.2.1:{web.server.port}/ok/1"}])
    assert download(path, tmp_path / "out", "--allow=127.0.2.0/24") == 0
    assert [row["status"] for row in outcomes(tmp_path / "out")][1] == "saved"
    assert any(path.startswith("/reached") for path in web.server.asked)


@pytest.mark.parametrize("again", [(), ("--again=http_429",)])
def test_a_journal_of_a_finished_shard_is_removed(web, tmp_path, monkeypatch, again):
    path = write_list(tmp_path / "list.jsonl", [web.server.row(kind, 1) for kind in ("ok", "later", "missing")])
    close = Journal.close

    def leave(self, *, remove=False):  # as a kill before the last of a shard's steps does
        close(self)

    monkeypatch.setattr(Journal, "close", leave)
    assert download(path, tmp_path / "out", "--attempts=1") == 0
    assert (tmp_path / "out" / ".download" / "000000.journal").exists()
    monkeypatch.undo()
    assert download(path, tmp_path / "out", *again) == 0
    assert [row["status"] for row in outcomes(tmp_path / "out")] == ["saved", "saved" if again else "http_429", "http_404"]
    assert not (tmp_path / "out" / ".download").exists()


SPOILED = {
    "gone": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2]),
    "flipped": lambda path: path.write_bytes(path.read_bytes().replace(b"\xff\xd8\xff", b"\xff\xd8\xfe", 1)),
}


@pytest.mark.parametrize("form", [(), ("--as-files",)])
def test_pictures_that_are_lost_or_damaged_since_are_fetched_again_and_no_others(web, tmp_path, caplog, form):
    kinds = ["ok", "missing", *["ok"] * 4]
    path = write_list(tmp_path / "list.jsonl", [web.server.row(kind, number) for number, kind in enumerate(kinds)])
    out = tmp_path / "out"
    assert download(path, out, *form) == 0
    whole = tree(out)
    for how, spoil in SPOILED.items():
        spoil(next(file for file in sorted(out.iterdir()) if file.is_file() and (form or file.suffix == ".tar")))
        web.server.asked.clear()
        assert download(path, out, *form, *(["--verify"] if how == "flipped" else [])) == 0
        assert tree(out) == whole
        assert "are fetched again" in caplog.text and not [asked for asked in web.server.asked if "missing" in asked]
        assert len(web.server.asked) == 1 or how != "flipped"
        caplog.clear()
    assert download(path, out, *form, "--verify") == 0 and "fetched again" not in caplog.text
