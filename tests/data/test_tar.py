"""The walk over a tar, against Python's tarfile, and what it says of broken ones."""

import gzip
import tarfile

import pytest

from plait.data.formats import tar
from plait.errors import PlaitError
from tests.data.packing import labelled, pack


def walk(path):
    body = path.read_bytes()
    return tar.walk(lambda offset, length: body[offset : offset + length], len(body), path.name)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_walk_finds_what_tarfile_finds(tmp_path, form):
    long = "folder/" * 10 + "x" * 90 if form != tarfile.USTAR_FORMAT else "folder/" * 10 + "x"
    members = [("./a.txt", b"1"), (f"{long}.png", b"2" * 700), ("ü.txt", b""), ("b.json", b"3" * 512)]
    path = pack(tmp_path / "a.tar", members, format=form)
    with tarfile.open(path) as theirs:
        expected = [(m.name.removeprefix("./"), m.offset_data, m.size) for m in theirs]
    assert walk(path) == expected
    body = path.read_bytes()
    assert [body[m.offset : m.offset + m.size] for m in walk(path)] == [data for _, data in members]


def test_members_are_grouped_by_stem_wherever_they_stand(tmp_path):
    path = pack(tmp_path / "a.tar", [("d/x.png", b"1"), ("y.10.png", b"2"), (".hidden", b""), ("d/x.json", b"{}"), ("y.9.png", b"3")])
    facts, arrays = tar.index(walk(path), "a.tar")
    assert facts == {"samples": 2, "members": 4, "hidden": 1, "extensions": ["10.png", "9.png", "json", "png"]}
    kinds = [facts["extensions"][k] for k in arrays["kind"]]
    assert kinds == ["json", "png", "9.png", "10.png"]  # numbers in the order of numbers
    assert arrays["first"].tolist() == [0, 2, 4]
    assert arrays["names"].tobytes() == b"d/xy"


def test_a_duplicate_member_is_named_with_both_offsets(tmp_path):
    path = pack(tmp_path / "a.tar", [("x.png", b"1"), ("x.png", b"2")])
    with pytest.raises(PlaitError, match=r"a\.tar holds 'x\.png' twice: at offsets 512 and 1536"):
        tar.index(walk(path), "a.tar")


def test_a_shard_without_samples_is_refused(tmp_path):
    with pytest.raises(PlaitError, match=r"a\.tar holds no samples"):
        tar.index(walk(pack(tmp_path / "a.tar", [(".x", b"")])), "a.tar")


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (540, "'0000.png' at offset 0 needs 69 bytes, 28 are left"),
        (1300, "is truncated: no end mark at offset 1024 of 1300 bytes"),
        (1536, "is truncated: '0000.json' at offset 1024 needs 12 bytes, 0 are left"),
        (2048, "is truncated: no end mark at offset 2048 of 2048 bytes"),
        (0, "is empty"),
        (100, "is not a tar file"),
    ],
)
def test_a_truncated_tar_names_the_offset(tmp_path, kept, words):
    path = labelled(tmp_path / "a.tar", 0, 3)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(PlaitError, match=words):
        walk(path)


def test_every_cut_of_a_tar_is_noticed(tmp_path):
    whole = labelled(tmp_path / "a.tar", 0, 2).read_bytes()
    end = 4 * 1024 + 512  # four members of two blocks each, and one block of the end mark
    for kept in range(0, end, 97):
        with pytest.raises(PlaitError, match=r"truncated|empty|not a tar"):
            tar.walk(lambda offset, length, kept=kept: whole[:kept][offset : offset + length], kept, "a.tar")


def test_a_damaged_header_is_named_and_not_taken_for_the_end(tmp_path):
    path = labelled(tmp_path / "a.tar", 0, 3)
    body = bytearray(path.read_bytes())
    body[2048 + 5] ^= 1
    path.write_bytes(body)
    with pytest.raises(PlaitError, match=r"a\.tar is damaged: no tar header at offset 2048"):
        walk(path)


def test_joined_tars_are_refused(tmp_path):
    path = labelled(tmp_path / "a.tar", 0, 1)
    path.write_bytes(path.read_bytes() + labelled(tmp_path / "b.tar", 1, 1).read_bytes())
    with pytest.raises(PlaitError, match="goes on after its end mark at offset 2048: are several tars joined"):
        walk(path)


@pytest.mark.parametrize(
    ("body", "words"),
    [(gzip.compress(b"x" * 999, mtime=0), "is compressed .gzip."), (b"<html>" * 200, "is not a tar file")],
    ids=["gzip", "html"],
)
def test_what_is_no_tar_is_named(tmp_path, body, words):
    (tmp_path / "a.tar").write_bytes(body)
    with pytest.raises(PlaitError, match=words):
        walk(tmp_path / "a.tar")


def test_a_link_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        link = tarfile.TarInfo("x.png")
        link.type, link.linkname = tarfile.SYMTYPE, "y.png"
        file.addfile(link)
    with pytest.raises(PlaitError, match=r"holds 'x\.png' at offset 0, which is a link"):
        walk(tmp_path / "a.tar")


def test_sizes_beyond_eight_gigabytes_are_read(tmp_path):
    big = 9 << 30
    header = tarfile.TarInfo("x.png")
    header.size = big
    block = header.tobuf(tarfile.GNU_FORMAT)

    def read(offset, length):
        return (block + bytes(512))[offset : offset + length] if offset < 512 else bytes(length)

    assert tar.walk(read, 512 + big + 1024, "x.tar") == [tar.Member("x.png", 512, big)]
