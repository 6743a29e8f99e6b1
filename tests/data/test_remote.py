"""Shards at web addresses whose server fails: what is tried again, what is refused, and what is said without a secret."""

import errno
import logging
import random
import re
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import fsspec
import pytest

from plait.config.schema import SourceEntry
from plait.data import addresses, paths, remote, web
from plait.data.loading.loader import Loader
from plait.data.order import Order
from plait.data.remote import RemoteFile, Unreachable
from plait.data.sources import shards
from plait.data.sources.kind import Opening
from plait.data.sources.open import open_source
from plait.data.streaming import tar_shard
from plait.errors import BadSample, PlaitError, sample_errors
from tests.data.faulty_server import serving
from tests.data.packing import labelled, pack, picture

BODY = random.Random(0).randbytes(1000)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits are over at once and noted; nothing is remembered of other tests' servers."""
    waits = []
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr(remote, "_servers", remote._Servers())
    monkeypatch.setattr(web, "SILENCE_S", 0.3)
    web._client.cache_clear()
    yield waits
    web._client().close()
    web._client.cache_clear()


@pytest.fixture
def server():
    with serving({"a.tar": BODY}) as server:
        yield server


AGAIN = {
    "status 500": "status 500 Internal Server Error",
    "status 502": "status 502 Bad Gateway",
    "status 503": "status 503 Service Unavailable",
    "status 429": "status 429 Too Many Requests",
    "short": "the connection failed after 5 of 10 bytes",
    "reset": "the connection failed",
    "wrong range": "Content-Range is 'bytes 5-14/1000', not bytes 4-13",
    "no content range": "Content-Range is 'missing', not bytes 4-13",
    "endless size": "Content-Range is 'bytes 4-13/99999999",
    "no ranges": "the whole file came in place of a range",
    "long": "more than the 10 bytes asked for came",
    "stall": "nothing came for 0.3 s",
    "changed": "it is another file than at the start",
}


@pytest.mark.parametrize("fault", AGAIN)
def test_a_passing_fault_is_tried_again(server, fault):
    file = RemoteFile(f"{server.url}/a.tar", None)
    server.next_faults(fault, fault)
    assert file.read(4, 10) == BODY[4:14]
    assert len(server.asked) == 1 + 3


@pytest.mark.parametrize("fault", AGAIN)
def test_a_fault_that_stays_is_one_line_after_a_bounded_number_of_attempts(server, fault):
    file = RemoteFile(f"{server.url}/a.tar?X-Amz-Signature=sesame", None)
    server.fault = lambda path, asked: fault
    with pytest.raises(PlaitError, match=re.escape(f"cannot read bytes 4 to 14 of {server.url}/a.tar (5 attempts): ")) as caught:
        file.read(4, 10)
    assert AGAIN[fault] in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(server.asked) == 1 + 5


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("status 403", "(1 attempt): status 403 Forbidden; its signature may have expired: renew it"),
        ("status 401", "(1 attempt): status 401 Unauthorized"),
        ("status 418", "(1 attempt): status 418"),
        ("redirect loop", "(1 attempt): it redirects more than 10 times; name the address that holds the file"),
        ("gzip", "(1 attempt): Content-Encoding is 'gzip', so offsets mean nothing"),
        ("status 503 3600", "(1 attempt): status 503 Service Unavailable"),
        ("status 404", "there is no file"),
    ],
)
def test_what_another_attempt_would_meet_again_is_refused_at_once(server, quick, fault, reason):
    file = RemoteFile(f"{server.url}/a.tar", None)
    server.fault = lambda path, asked: fault
    with pytest.raises(PlaitError, match=re.escape(reason)):
        file.read(4, 10)
    assert quick == []


@pytest.mark.parametrize("fault", ["no ranges", "no content range", "endless size", "wrong range", "status 400"])
def test_a_server_that_gives_no_ranges_is_asked_once(server, quick, fault):
    server.fault = lambda path, asked: fault
    with pytest.raises(PlaitError, match=r"cannot read .*/a\.tar \(1 attempt\): "):
        RemoteFile(f"{server.url}/a.tar", None)
    assert quick == [] and len(server.asked) == 1


class Status(Exception):
    def __init__(self, status):
        super().__init__(f"status {status}")
        self.code = status


class NoCredentialsError(Exception):
    """As s3fs raises where it has no keys."""


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (Status(400), 1), (Status(416), 1), (Status(429), 5), (Status(503), 5), (OSError(errno.EINVAL, "bad request"), 1),
        (OSError(errno.EBUSY, "slow down"), 5), (TimeoutError("late"), 5), (PermissionError("no"), 1), (NotImplementedError("info"), 1),
        (OSError(errno.ENOSYS, "no such operation"), 1), (Status(501), 1), (NoCredentialsError("no keys"), 1),
    ],
    ids=repr,
)  # fmt: skip
def test_a_store_is_asked_again_only_for_what_may_pass(monkeypatch, quick, error, attempts):
    def refuse(self, path, **_):
        raise error

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", refuse)
    with pytest.raises(PlaitError, match=rf"cannot read memory://refused/a\.tar \({attempts} attempts?\): "):
        RemoteFile("memory://refused/a.tar", None)
    assert len(quick) == attempts - 1


@pytest.mark.parametrize(("path", "call", "what"), [("a.tar", "info", "read"), ("", "isdir", "list"), ("*.tar", "glob", "list")])
def test_a_store_that_does_not_answer_is_named_soon_and_given_up_after_a_bounded_time(monkeypatch, quick, caplog, path, call, what):
    monkeypatch.setattr(remote, "_SOON_S", 0.02)
    monkeypatch.setattr(web, "allowed_s", lambda length: 0.0)
    gone = threading.Event()
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), call, lambda *_, **__: gone.wait(60))
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(PlaitError, match=rf"cannot {what} memory://gone/\S* \(2 attempts\): no whole answer in 0 s"),
    ):
        shards.KIND.open(
            SourceEntry(source="shards", path=f"memory://gone/{path}"), Opening(seed=0, split="train", cache=None, open_named=None)
        )
    gone.set()
    assert caplog.messages[0] == "waiting for an answer of memory://gone, 1 s at most"  # twice 0.3 s, and 0.5 s between
    assert len(caplog.messages) == 2 and caplog.messages[1].endswith("tried again, 4 times at most; of memory://gone this is said once")
    assert quick == [0.5]


def test_a_sample_of_gigabytes_at_an_address_is_a_bad_one_and_is_not_read(server, tmp_path, monkeypatch):
    monkeypatch.setattr("plait.data.formats.open_file.MOST_BYTES", 50_000)
    monkeypatch.setattr(tar_shard, "_SCAN_BYTES", 4096)
    members = [(f"{name}.{ending}", body) for name in "abc" for ending, body in (("png", picture(1)), ("txt", name.encode()))]
    members[2] = ("b.png", bytes(80_000))
    server.files["b.tar"] = pack(tmp_path / "b.tar", members).read_bytes()
    source = open_source(SourceEntry(source="shards", path=f"{server.url}/b.tar"), seed=0, cache=tmp_path / "cache")
    assert [source[i]["messages"][-1]["content"] for i in (0, 2)] == ["a", "c"]
    with pytest.raises(BadSample, match=r"/b\.tar: 8\d,\d{3} bytes for one sample, over the limit of 50,000$"):
        source[1]


def test_a_slow_drip_is_given_up_after_a_time_that_grows_with_the_length(server, monkeypatch):
    file = RemoteFile(f"{server.url}/a.tar", None)
    monkeypatch.setattr(web, "CONNECT_S", 0.1)
    monkeypatch.setattr(web, "_SLOWEST_BYTES_PER_S", 1000)
    assert web.allowed_s(100) == pytest.approx(0.5)
    server.next_faults("drip")
    assert file.read(4, 100) == BODY[4:104]
    server.fault = lambda path, asked: "drip"
    with pytest.raises(PlaitError, match=r"\(5 attempts\): only \d+ of 100 bytes came in \d s"):
        file.read(4, 100)


def test_waits_grow_and_a_server_may_ask_for_longer_ones(server, quick):
    file = RemoteFile(f"{server.url}/a.tar", None)
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    server.next_faults("status 503", "status 429 7", "status 503 nonsense", f"status 503 {date}")
    assert file.read(0, 4) == BODY[:4]
    assert quick == [0.5, 7.0, 8.0, 30.0]


def test_retries_are_reported_once_for_a_server(server, caplog):
    file = RemoteFile(f"{server.url}/a.tar?sig=sesame", None)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            server.next_faults("status 503", "reset")
            file.read(0, 4)
    assert [record.message for record in caplog.records] == [
        f"{server.url}/a.tar: status 503 Service Unavailable; tried again, 4 times at most; of {server.url} this is said once"
    ]


def test_a_server_that_is_down_is_asked_less_and_then_ends_the_run(server, quick):
    file = RemoteFile(f"{server.url}/a.tar", None)
    server.fault = lambda path, asked: "status 503"
    attempts = []
    for _ in range(7):
        before = len(server.asked)
        with pytest.raises(BadSample), sample_errors:
            file.read(0, 4)
        attempts.append(len(server.asked) - before)
    assert attempts == [5, 5, 1, 1, 1, 1, 1]
    with (
        pytest.raises(Unreachable, match=rf"{server.url} is down: 8 reads in a row failed, the last: cannot read .*503") as caught,
        sample_errors,
    ):
        file.read(0, 4)
    assert caught.value.exit_code == 1
    server.fault = lambda path, asked: ""
    assert file.read(0, 4) == BODY[:4]
    server.next_faults("status 503", "status 503")
    assert file.read(0, 4) == BODY[:4]


def test_a_server_without_ranges_an_empty_file_and_a_missing_one_are_one_line(server):
    server.files["empty.tar"] = b""
    with pytest.raises(PlaitError, match=r"empty\.tar is empty \(0 bytes\)"):
        shards.open_shard(f"{server.url}/empty.tar", None)
    with pytest.raises(PlaitError, match=rf"there is no file {server.url}/none\.tar$"):
        shards.open_shard(f"{server.url}/none.tar?token=sesame", None)
    server.fault = lambda path, asked: "no ranges"
    with pytest.raises(
        PlaitError, match=r"\(1 attempt\): the whole file came in place of a range; use a server that answers Range requests"
    ):
        shards.open_shard(f"{server.url}/a.tar", None)


def test_files_at_a_web_address_are_named_and_not_listed():
    assert paths.files("https://h/a-{0..1}.tar", ".tar", split=None) == ["https://h/a-0.tar", "https://h/a-1.tar"]
    assert paths.files("https://h/download?id=[3]", ".tar", split=None) == ["https://h/download?id=[3]"]
    for pattern in ("https://h/a-*.tar?sig=sesame", "https://h/folder/"):
        with pytest.raises(
            PlaitError, match=r"files at an http\(s\) address cannot be listed: name them, as in a-\{00000\.\.00003\}\.tar"
        ) as caught:
            paths.files(pattern, ".tar", split=None)
        assert "sesame" not in str(caught.value)


# --- names ---


@pytest.mark.parametrize(
    ("address", "shown", "identity"),
    [
        ("https://h/a.tar?X-Amz-Signature=s&X-Amz-Date=d&id=3", "https://h/a.tar", "https://h/a.tar?id=3"),
        ("https://me:pw@h/a.tar?se=1&sig=s#x", "https://h/a.tar", "https://h/a.tar"),
        ("https://h/get?se=1&st=2", "https://h/get", "https://h/get?se=1&st=2"),
        ("https://h/a.tar?$SAS", "https://h/a.tar", "https://h/a.tar"),
        ("$WHOLE", "$WHOLE", "https://h/b.tar"),
        ("s3://bucket/a?b#c.tar", "s3://bucket/a?b#c.tar", "s3://bucket/a?b#c.tar"),
        ("s3://key:pw@bucket/a.tar", "s3://bucket/a.tar", "s3://bucket/a.tar"),
    ],
)
def test_an_address_is_shown_without_secrets_and_known_however_it_is_signed(monkeypatch, address, shown, identity):
    monkeypatch.setenv("SAS", "sig=sesame")
    monkeypatch.setenv("WHOLE", "https://h/b.tar?sig=sesame")
    assert (addresses.shown(address), addresses.identity(address)) == (shown, identity)


def test_a_variable_stands_for_an_address_or_its_signature_and_is_never_shown(server, tmp_path, monkeypatch):
    server.files = {"b.tar": labelled(tmp_path / "b.tar", 0, 5).read_bytes()}
    near = shards.Shards([str(tmp_path / "b.tar")], None, {})
    opened = []
    for signature in ("sig=sesame", "sig=renewed"):
        monkeypatch.setenv("SIGNATURE", signature)
        monkeypatch.setenv("ADDRESS", f"{server.url}/b.tar?{signature}")
        for path in (f"{server.url}/b.tar?${{SIGNATURE}}", "$ADDRESS"):
            opened.append(
                open_source(SourceEntry(source="shards", path=path, template={"assistant": "{label}"}), seed=0, cache=tmp_path / "cache")
            )
    names = [(source.name, source[3]["id"], source.fingerprint) for source in opened]
    assert names[0] == ("shards:b.tar", "b/0003", names[2][2])
    assert names[1] == ("shards:$ADDRESS", "$ADDRESS/0003", names[3][2])
    assert opened[0].reader.digest == near.digest
    assert {path for path, _ in server.asked} == {"/b.tar?sig=sesame", "/b.tar?sig=renewed"}
    cached = sorted(path.name.partition("-")[0] for path in (tmp_path / "cache").glob("*/*"))
    assert cached == ["$ADDRESS", "$ADDRESS", "b.tar", "b.tar"]  # an index and a folder of blocks each, whatever the signature
    monkeypatch.delenv("SIGNATURE")
    with pytest.raises(PlaitError, match=r"b\.tar needs the environment variable SIGNATURE, which is not set"):
        RemoteFile(f"{server.url}/b.tar?$SIGNATURE", None)


def test_a_variable_that_names_no_file_keeps_its_value(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + 4 * "sesame")
    for pattern in ("$HF_TOKEN", "${HF_TOKEN}/a.tar", "$HF_TOKEN/{0..1}.tar", "$HF_TOKEN/*.tar"):
        with pytest.raises(PlaitError, match="file") as caught:
            paths.files(pattern, ".tar", split=None)
        assert "sesame" not in str(caught.value)


# --- through the loader ---


class Labels:
    """Inputs whose batches are the labels of the samples."""

    def encode(self, sample, key):
        return sample["fields"]["label"]

    def collate(self, examples):
        return {"labels": examples}


def test_forty_faults_cost_exactly_the_samples_that_cannot_be_had(server, tmp_path):
    """Of an epoch every sample comes once, but for those whose range fails for good: each of these is listed with its replacement."""
    server.files = {f"{n}.tar": labelled(tmp_path / f"{n}.tar", 20 * n, 20).read_bytes() for n in range(3)}
    source = open_source(SourceEntry(source="shards", path=f"{server.url}/{{0..2}}.tar", template={"assistant": "{label}"}), seed=0)
    server.asked.clear()
    asked = [source[i] and server.asked[-1] for i in range(60)]
    random_faults = random.Random(7)
    broken = random_faults.sample(range(60), 24)
    lasting, kinds = set(broken[:4]), [fault for fault in AGAIN if fault != "stall"]
    passing = {asked[i]: random_faults.choices(kinds, k=random_faults.choice((1, 2))) for i in broken[4:]}
    given = []

    def fault(path, range_):
        request = (f"/{path}", range_)
        kind = "short" if request in {asked[i] for i in lasting} else passing[request].pop() if passing.get(request) else ""
        given.extend([kind] if kind else [])
        return kind

    server.fault = fault
    with Loader([source], Order((60,), (1.0,), 3, 6), Labels(), seed=3, workers=3, stop_step=10) as loader:
        batches = list(loader)
    bad = [row for batch in batches for row in batch.bad]
    labels = [label for batch in batches for micro in batch.micro for label in micro.batch["labels"]]
    assert len(given) >= 40
    assert not any(passing.values())
    assert {row.id.index for row in bad if row.attempt == 0} == lasting
    assert set(range(60)) - set(labels) == lasting
    assert len(labels) == 60
    assert {(row.reason.partition(" of http")[0], "(5 attempts): the connection failed after" in row.reason) for row in bad} == {
        (f"cannot read bytes {first} to {int(last) + 1}", True) for first, last in (asked[i][1][6:].split("-") for i in lasting)
    }
