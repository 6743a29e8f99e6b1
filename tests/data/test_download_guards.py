"""What keeps a download of strangers' links harmless: addresses inside the network, opt-outs, damaged journals, hosts that ask to wait."""

import asyncio
import hashlib
import io
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from plait.data.download.hashes import announced
from plait.data.download.hosts import Hosts
from plait.data.download.journal import Journal
from plait.data.download.limits import PictureLimits
from plait.data.download.outcomes import MEANINGS, Outcome, count_lines, meaning
from plait.data.download.pictures import Refused, judge
from plait.data.download.public_addresses import PrivateAddress, Resolver, checked_socket, may_reach
from plait.data.download.robots import forbidden_by
from plait.errors import PlaitError

PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "2002:7f00:1::",
    "64:ff9b::7f00:1",
    "not an address",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_inside_a_network_is_not_reached(address):
    assert not may_reach(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address_is_reached(address):
    assert may_reach(address)


def test_a_network_that_is_allowed_is_reached_and_no_other():
    assert may_reach("10.1.2.3", ["10.1.0.0/16"])
    assert may_reach("::ffff:10.1.2.3", ["10.1.0.0/16"])
    assert not may_reach("10.2.2.3", ["10.1.0.0/16", "fd00::/8"])


def resolved(monkeypatch, *answers, allowed=()):
    """What a resolver says of a host for which the name server gives these addresses."""
    rows = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, 80)) for answer in answers]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: rows)
    with ThreadPoolExecutor(1) as threads:
        return [row["host"] for row in asyncio.run(Resolver(threads, 5.0, allowed).resolve("a.example", 80))]


def test_a_name_that_leads_inside_is_refused_and_of_two_addresses_the_public_one_is_kept(monkeypatch):
    assert resolved(monkeypatch, "10.0.0.1", "8.8.8.8") == ["8.8.8.8"]
    assert resolved(monkeypatch, "10.0.0.1", allowed=["10.0.0.0/8"]) == ["10.0.0.1"]
    with pytest.raises(PrivateAddress, match=r"10\.0\.0\.1 is no public address"):
        resolved(monkeypatch, "10.0.0.1")


def test_the_address_of_a_connection_itself_is_checked():
    info = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))
    with pytest.raises(PrivateAddress):
        checked_socket(info, ())
    checked_socket(info, ["127.0.0.0/8"]).close()


@pytest.mark.parametrize(
    ("values", "directive"),
    [
        (["noai"], "noai"),
        (["nofollow, NoImageAI"], "noimageai"),
        (["noindex"], "noindex"),
        (["plait: noai"], "noai"),
        (["otherbot: noai, noindex"], None),
        (["otherbot: noai", "noimageindex"], "noimageindex"),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], None),
        (["max-image-preview: large, all"], None),
        ([], None),
    ],
)
def test_opt_outs_for_all_robots_and_for_plait_are_honoured(values, directive):
    assert forbidden_by(values) == directive


def filled(path):
    journal = Journal(path)
    journal.add(Outcome(3, "saved", "http://a/3", picture={"kind": "jpg", "bytes": 5}), b"three")
    journal.add(Outcome(1, "http_404", "http://a/1"))
    journal.add(Outcome(2, "saved", "http://a/2", picture={"kind": "png", "bytes": 3}), b"two")
    journal.close()
    return path.read_bytes()


def test_a_journal_cut_or_spoiled_at_any_byte_keeps_the_entries_before(tmp_path):
    whole = filled(tmp_path / "a")
    ends = [end for end in range(len(whole) + 1) if end == 0 or whole[:end].endswith((b"three", b"}\n", b"two"))]
    for cut in range(len(whole) + 1):
        for tail in (b"", b"\0" * 50):
            path = tmp_path / "b"
            path.write_bytes(whole[:cut] + tail)
            journal = Journal(path)
            assert set(journal.outcomes) < {1, 2, 3} or cut == len(whole)
            assert journal.body(3) == b"three" if 3 in journal.outcomes else cut < ends[-1]
            journal.add(Outcome(7, "saved", "u", picture={"kind": "jpg"}), b"seven")
            journal.close()
            again = Journal(path)
            assert set(again.outcomes) == {*journal.outcomes} and again.body(7) == b"seven"
            again.close()
            path.unlink()


def test_a_flipped_bit_in_a_picture_of_a_journal_is_noticed(tmp_path):
    whole = bytearray(filled(tmp_path / "a"))
    whole[whole.index(b"three")] ^= 1
    (tmp_path / "a").write_bytes(whole)
    journal = Journal(tmp_path / "a")
    assert not journal.outcomes
    journal.close()


def test_a_journal_has_one_owner(tmp_path):
    (tmp_path / "out" / "work").mkdir(parents=True)
    journal = Journal(tmp_path / "out" / "work" / "a")
    with pytest.raises(PlaitError, match=f"another process downloads into {tmp_path / 'out'}: wait for it, or give each its own --part"):
        Journal(tmp_path / "out" / "work" / "a")
    journal.close(remove=True)
    assert not list((tmp_path / "out" / "work").iterdir())


def test_hosts_hold_no_more_connections_than_they_may():
    async def main():
        hosts, now, most = Hosts(5, 2), {"a": 0, "b": 0, "c": 0, "all": 0}, {"a": 0, "b": 0, "c": 0, "all": 0}

        async def use(name):
            async with hosts.use(name):
                for key in (name, "all"):
                    now[key] += 1
                    most[key] = max(most[key], now[key])
                await asyncio.sleep(0.001)
                for key in (name, "all"):
                    now[key] -= 1

        await asyncio.gather(*(use("abc"[number % 3]) for number in range(60)))
        return most, hosts._known

    most, known = asyncio.run(main())
    assert most == {"a": 2, "b": 2, "c": 2, "all": 5}
    assert not known  # hosts that are not asked any more are forgotten


def test_a_host_that_asks_to_wait_is_not_asked_and_holds_up_no_other():
    async def main():
        hosts, order = Hosts(1, 4), []

        async def use(name):
            async with hosts.use(name):
                order.append(name)

        async with hosts.use("slow") as slow:
            slow.pause(0.2)
        await asyncio.gather(use("slow"), use("quick"))
        return order

    assert asyncio.run(main()) == ["quick", "slow"]


def test_every_outcome_has_a_meaning_and_counts_are_a_table():
    assert all(meaning(status) for status in MEANINGS)
    assert meaning("http_404") == "status 404 Not Found"
    assert count_lines({"dns": 250, "saved": 750}) == [
        "         750   75.0%  saved            the picture is in the shard",
        "         250   25.0%  dns              its host has no address",
    ]


@pytest.mark.parametrize(
    ("name", "kind"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif")]
)
def test_a_file_is_named_by_its_content(name, kind):
    file = io.BytesIO()
    Image.new("RGB", (40, 20)).save(file, name)
    body, facts = judge(file.getvalue(), None, PictureLimits())
    assert body == file.getvalue()
    assert (facts["kind"], facts["width"], facts["height"], facts["bytes"]) == (kind, 40, 20, len(body))


def test_the_size_is_that_of_a_picture_turned_upright_and_of_one_decoded_smaller():
    exif = Image.Exif()
    exif[0x0112] = 6
    for size, turned in [((400, 200), (200, 400)), ((4000, 2000), (2000, 4000))]:
        file = io.BytesIO()
        Image.new("RGB", size).save(file, "JPEG", exif=exif)
        _, facts = judge(file.getvalue(), None, PictureLimits())
        assert (facts["width"], facts["height"]) == turned


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        (PictureLimits(max_pixels=1000), "too_many_pixels"),
        (PictureLimits(min_side=60), "too_small"),
        (PictureLimits(), None),
    ],
)
def test_limits_of_pictures_are_kept(limits, status):
    file = io.BytesIO()
    Image.new("RGB", (50, 70)).save(file, "PNG")
    if status is None:
        assert judge(file.getvalue(), None, limits)[0] == file.getvalue()
        return
    with pytest.raises(Refused) as refused:
        judge(file.getvalue(), None, limits)
    assert refused.value.status == status


def test_a_hash_is_checked_by_its_digits_and_only_where_that_is_asked_for():
    file = io.BytesIO()
    Image.new("RGB", (50, 70)).save(file, "PNG")
    body = file.getvalue()
    md5, sha1, sha256 = (hashlib.new(kind, body).hexdigest() for kind in ("md5", "sha1", "sha256"))
    for digest in (md5.upper(), sha1, sha256, f"sha256:{sha256}", f"SHA-1={sha1}", announced(bytes.fromhex(md5)), None):
        assert judge(body, digest, PictureLimits())[0] == body
    for digest in ("0" * 32, "0" * 40, "0" * 64, "sha256:" + "0" * 64, "md5:" + "0" * 64, announced(bytes(32)), announced(bytes(16))):
        with pytest.raises(Refused, match="hash"):
            judge(body, digest, PictureLimits())
        assert judge(body, digest, PictureLimits(check_hash=False))[0] == body
