"""Files at an address that are read whole: one process downloads each, and what fails leaves nothing."""

import errno
import logging
import threading
from types import SimpleNamespace

import pytest

from plait.config.schema import SourceEntry
from plait.data import remote, remote_files
from plait.data.sources.open import open_source
from plait.errors import PlaitError
from tests.data.faulty_server import serving

pytest.importorskip("httpx")
BODY = b"caption\n" + b"".join(b"number %d\n" % number for number in range(3000))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(remote_files, "BLOCK_BYTES", 8192)
    monkeypatch.setattr(remote, "_servers", remote._Servers())
    with serving({"a.csv": BODY}) as server:
        yield server


def table(server, tmp_path):
    return open_source(SourceEntry(source="datasets", path=f"{server.url}/a.csv"), seed=0, cache=tmp_path)


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "files").rglob("*") if path.is_file())


def test_one_of_several_downloads_and_the_others_wait(server, tmp_path, caplog, monkeypatch):
    begun, waited = threading.Event(), threading.Event()
    server.fault = lambda path, asked: "" if asked == "bytes=0-0" or (begun.set() or waited.wait(60)) else "stall"
    monkeypatch.setattr(remote_files, "_LARGE_BYTES", 1)
    monkeypatch.setattr(remote_files, "time", SimpleNamespace(sleep=lambda _: waited.set(), monotonic=lambda: 0.0))
    times = []

    def read():
        path = remote_files.fetched(f"{server.url}/a.csv", tmp_path)
        times.append(path.stat().st_mtime_ns)

    with caplog.at_level(logging.INFO):
        readers = [threading.Thread(target=read) for _ in range(4)]
        readers[0].start()
        assert begun.wait(60)
        for reader in readers[1:]:
            reader.start()
        for reader in readers:
            reader.join()
    blocks = [asked for _, asked in server.asked if asked != "bytes=0-0"]
    assert len(blocks) == len(set(blocks)) == -(-len(BODY) // 8192) and len(times) == 4 and len(set(times)) == 1
    told = [record.message.partition("a.csv: ")[2] for record in caplog.records]
    assert [line.partition(" are downloaded")[0] for line in told if "are downloaded" in line] == ["0 MB"]
    assert 1 <= told.count("another process is downloading it, which is waited for") <= 3
    assert left(tmp_path) == [".a.csv.lock", "a.csv"]


@pytest.mark.parametrize("fault", ["status 403", "status 404"])
def test_a_download_that_fails_leaves_nothing_and_is_made_again(server, tmp_path, fault):
    server.fault = lambda path, asked: fault if asked.startswith("bytes=8192") else ""
    with pytest.raises(PlaitError, match=r"/a\.csv"):
        table(server, tmp_path)
    assert left(tmp_path) == [".a.csv.lock"]
    server.fault = lambda path, asked: ""
    assert len(table(server, tmp_path)) == 3000


def test_what_a_killed_download_left_is_deleted(server, tmp_path):
    table(server, tmp_path)
    (path,) = (tmp_path / "files").rglob("a.csv")
    path.unlink()
    for name in (".a.csv.tmp", ".a.csv.123-456.tmp"):
        path.with_name(name).write_bytes(b"part")
    table(server, tmp_path)
    assert left(tmp_path) == [".a.csv.lock", "a.csv"]


def test_a_full_disk_is_told_and_leaves_nothing(server, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote_files.os, "fsync", full)
    line = r"cannot write .*/a\.csv, a copy of .*/a\.csv: No space left on device; free space there, or set data\.cache to a folder"
    with pytest.raises(PlaitError, match=line):
        table(server, tmp_path)
    assert left(tmp_path) == [".a.csv.lock"]
