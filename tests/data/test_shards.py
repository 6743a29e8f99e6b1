"""Shards: the index beside them, reads at random, and shards behind an address."""

import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest

from plait.config.schema import SourceEntry
from plait.data import images, remote
from plait.data.formats import index
from plait.data.remote import RemoteFile
from plait.data.sources import shards
from plait.data.sources.indexed import JSON, IndexedRecords
from plait.data.sources.open import open_source
from plait.errors import BadSample, PlaitError
from tests.data.packing import labelled, pack, picture


def opened(*paths, cache=None):
    return shards.Shards([str(path) for path in paths], cache, {})


def test_any_sample_is_read_at_random_from_any_shard(tmp_path):
    three = opened(*(labelled(tmp_path / f"{n}.tar", n * 10, n + 2) for n in range(3)))
    assert len(three) == 9
    assert [three.read(i).fields["label"] for i in (8, 0, 4, 5, 1, 2)] == [23, 0, 12, 20, 1, 10]
    assert three.read(5).id == "2/0020"
    assert three.read(5).images == [picture(20)]


def test_a_photo_costs_few_calls_from_its_shard_to_its_pixels(tmp_path, calls):
    members = [(f"{n}.{kind}", body) for n in range(9) for kind, body in (("jpg", picture(n, kind="JPEG")), ("json", b'{"label": "a"}'))]
    source = open_source(SourceEntry(source="shards", path=str(pack(tmp_path / "a.tar", members))), seed=0)

    def read():
        return [images.decode(source.draw(i % 9, i)["images"][0], at_least=(64, 64)) for i in range(100)]

    read()
    assert calls(read) < 90 * 100  # 82 each; another thread waits for every one of them


def test_reads_equal_tarfile_on_real_shards(real_data):
    path = real_data / "cifar10" / "validation-00000.tar"
    ours = opened(path)
    assert len(ours) == 2000
    with tarfile.open(path) as theirs:
        for i in (0, 1, 777, 1999):
            record = ours.read(i)
            stem = record.id.split("/")[1]
            assert record.images == [theirs.extractfile(f"{stem}.jpg").read()]
            assert stem.startswith(record.fields["label"])


def test_the_index_is_made_once_and_nothing_is_written_beside_the_shard(tmp_path):
    path = labelled(tmp_path / "data" / "a.tar", 0, 3)
    first, again = (shards.open_shard(str(path), None) for _ in range(2))
    assert (first.built, again.built) == (True, False)
    assert again.head.path == index.candidate_paths(path, None)[1] and again.head.path.is_relative_to(tmp_path / "user-cache")
    assert [file.name for file in path.parent.iterdir()] == ["a.tar"]


def test_an_index_beside_the_shard_is_made_when_asked_for_and_used_from_then_on(tmp_path):
    path = labelled(tmp_path / "data" / "a.tar", 0, 3)
    asked = shards.open_shard(str(path), None, beside=True)
    again = shards.open_shard(str(path), None)
    assert (asked.built, again.built) == (True, False)
    assert asked.head.path == again.head.path == tmp_path / "data" / "a.tar.idx" and not (tmp_path / "user-cache").exists()


def test_an_index_beside_the_shard_is_made_though_the_cache_has_one(tmp_path):
    path = labelled(tmp_path / "data" / "a.tar", 0, 3)
    shards.open_shard(str(path), None)
    assert shards.open_shard(str(path), None, beside=True).head.path == tmp_path / "data" / "a.tar.idx"


def test_every_flipped_bit_of_an_index_is_found(tmp_path):
    path = labelled(tmp_path / "a.tar", 0, 3)
    beside = shards.open_shard(str(path), None, beside=True).head.path
    sound = beside.read_bytes()
    body_at = index.read_head(beside).body_at
    for bit in range(8 * len(sound)):
        body = bytearray(sound)
        body[bit // 8] ^= 1 << bit % 8
        beside.write_bytes(body)
        if bit < 8 * body_at:
            assert index.read_head(beside) is None  # it is made again
        else:
            with pytest.raises(PlaitError, match=r"a\.tar\.idx is damaged; delete it, and it will be made again"):
                index.map_arrays(index.read_head(beside))
    beside.write_bytes(sound[: body_at - 3])
    assert opened(path).read(2).fields["label"] == 2
    assert index.candidate_paths(path, None)[1].read_bytes() == sound


def test_a_shard_that_is_cut_while_it_is_read_is_an_error_with_its_name(tmp_path):
    path = labelled(tmp_path / "a.tar", 0, 30)
    source = opened(path)
    assert source.read(0).fields["label"] == 0
    os.truncate(path, 2048)
    with pytest.raises(BadSample, match=r"a\.tar was cut while it was in use: it ends before byte \d+$"):
        source.read(29)
    with pytest.raises(PlaitError, match=r"a\.tar changed while it was in use: 2048 bytes, its index knows \d+$"):
        pickle.loads(pickle.dumps(source)).read(29)


def test_lines_that_are_cut_while_they_are_read_are_an_error_with_their_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"caption": "x"}\n' * 9)
    records = IndexedRecords(path, JSON, None, {}, images=path.parent)
    assert records.read(8).fields == {"caption": "x"}
    os.truncate(path, 20)
    with pytest.raises(BadSample, match=r"a\.jsonl was cut while it was in use"):
        records.read(8)


def test_a_stale_index_is_made_again(tmp_path):
    path = labelled(tmp_path / "a.tar", 0, 3)
    opened(path)
    labelled(path, 0, 4)
    assert len(opened(path)) == 4  # another size
    os.utime(path, ns=(1, 1))
    assert shards.open_shard(str(path), None).built  # another time
    index.candidate_paths(path, None)[1].write_bytes(b"something else")
    assert shards.open_shard(str(path), None).built  # not an index


def test_an_index_that_cannot_be_written_is_an_error_with_its_cure(tmp_path, monkeypatch):
    def refuse(path, body):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(index, "write_whole", refuse)
    path = labelled(tmp_path / "a.tar", 0, 3)
    for beside, cure in ((False, "set data.cache to a folder that can be written"), (True, "leave out --beside, and it goes to the cache")):
        with pytest.raises(PlaitError, match=rf"^cannot write the index .*\.idx: Permission denied; {cure}$"):
            shards.open_shard(str(path), None, beside=beside)


def test_a_damaged_index_is_noticed_when_it_is_mapped(tmp_path):
    path = labelled(tmp_path / "a.tar", 0, 3)
    made = shards.open_shard(str(path), None, beside=True).head.path
    body = bytearray(made.read_bytes())
    body[-20] ^= 1
    made.write_bytes(body)
    with pytest.raises(PlaitError, match=r"the index .*a\.tar\.idx is damaged; delete it"):
        opened(path).read(0)


def test_a_shard_that_shrinks_while_in_use_is_noticed(tmp_path):
    path = labelled(tmp_path / "a.tar", 0, 3)
    source = opened(path)
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(PlaitError, match=r"a\.tar changed while it was in use"):
        source.read(0)


def test_index_arrays_are_mapped_and_survive_packing(tmp_path):
    arrays = {"a": np.arange(5, dtype=np.int64), "b": np.array([1, 2, 3], np.uint8)}
    (tmp_path / "x.idx").write_bytes(index.pack({"size": 1}, {"n": 5}, arrays))
    head = index.read_head(tmp_path / "x.idx")
    mapped = index.map_arrays(head)
    assert (head.stamp, head.facts) == ({"size": 1}, {"n": 5})
    assert {k: v.tolist() for k, v in mapped.items()} == {k: v.tolist() for k, v in arrays.items()}
    assert not mapped["a"].flags.writeable


def test_more_shards_than_may_be_open_are_read_by_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN_MAX", 2)
    many = opened(*(labelled(tmp_path / f"{n}.tar", n * 10, 10) for n in range(6)))
    wanted = np.random.default_rng(0).integers(0, 60, 400).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert [record.fields["label"] for record in pool.map(many.read, wanted)] == wanted
    assert len(many._mapped) == 2


def test_shards_travel_to_another_process(tmp_path):
    source = opened(labelled(tmp_path / "a.tar", 0, 3))
    source.read(0)
    assert pickle.loads(pickle.dumps(source)).read(2) == source.read(2)


def test_members_become_images_frames_fields_caption_and_label(tmp_path):
    members = [("x.frame1.png", b"f1"), ("x.frame0.png", b"f0"), ("x.a.jpg", b"i"), ("x.json", b'{"n": 1}'), ("x.meta.json", b"[2]")]
    path = pack(
        tmp_path / "a.tar",
        [*members, ("x.txt", b" hi\n"), ("x.cls", b"7"), ("x.npy", b"?"), ("y.frame0.png", b"g0"), ("y.frame1.png", b"g1")],
    )
    source = opened(path)
    record = source.read(0)
    assert record.fields == {"n": 1, "meta": [2], "caption": "hi", "label": "7"}
    assert (record.images, record.frames) == ([b"i"], [b"f0", b"f1"])
    assert (source.read(1).images, source.read(1).frames) == ([], [b"g0", b"g1"])


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("x.json", b"{", "a/x.json is not JSON"),
        ("x.json", b"[1]", "a/x.json holds a list, not"),
        ("x.txt", b"\xff\xfe", "a/x.txt is not UTF-8"),
    ],
)
def test_a_member_that_cannot_be_understood_is_a_bad_sample(tmp_path, name, body, words):
    source = opened(pack(tmp_path / "a.tar", [(name, body)]))
    with pytest.raises(BadSample, match=words):
        source.read(0)


def test_the_digest_is_of_content_and_not_of_place_or_time(tmp_path):
    here = opened(labelled(tmp_path / "here" / "a.tar", 0, 3)).digest
    path = labelled(tmp_path / "there" / "a.tar", 0, 3)
    os.utime(path, ns=(1, 1))
    assert opened(path).digest == here
    assert opened(labelled(tmp_path / "more" / "a.tar", 0, 4)).digest != here
    assert opened(labelled(tmp_path / "other" / "b.tar", 0, 3)).digest != here


# --- behind an address ---


@pytest.fixture
def store(tmp_path):
    """A shard in fsspec's memory store; the list of ranges read from it."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pipe("/far/a.tar", labelled(tmp_path / "a.tar", 0, 40).read_bytes())
    return system


@pytest.fixture
def ranges(store, monkeypatch):
    read = []
    whole = type(store).cat_file
    monkeypatch.setattr(
        type(store), "cat_file", lambda self, path, start=None, end=None: read.append((start, end)) or whole(self, path, start, end)
    )
    return read


def test_a_remote_shard_equals_the_local_one(tmp_path, store):
    far, near = opened("memory://far/a.tar", cache=tmp_path / "cache"), opened(tmp_path / "a.tar")
    assert [far.read(i) for i in (39, 0, 7)] == [near.read(i) for i in (39, 0, 7)]
    assert far.digest == near.digest


def test_a_remote_sample_is_one_range(tmp_path, store, ranges):
    far = opened("memory://far/a.tar")
    ranges.clear()
    record = far.read(7)
    assert len(ranges) == 1
    start, end = ranges[0]
    assert end - start < 2048
    assert record.fields == {"label": 7}


def test_the_index_of_a_remote_shard_is_kept(tmp_path, store, ranges):
    opened("memory://far/a.tar")
    ranges.clear()
    assert not shards.open_shard("memory://far/a.tar", None).built
    assert ranges == []
    store.pipe("/far/a.tar", labelled(tmp_path / "b.tar", 0, 2).read_bytes())
    assert len(opened("memory://far/a.tar")) == 2


def test_an_uploaded_index_saves_reading_the_shard(tmp_path, store, ranges):
    shards.index_files(str(tmp_path / "a.tar"), beside=True)
    store.pipe("/far/a.tar.idx", (tmp_path / "a.tar.idx").read_bytes())
    far = opened("memory://far/a.tar")
    assert ranges == [(None, None)]  # the index, whole
    assert far.read(3).fields == {"label": 3}


def test_cached_blocks_are_fetched_once_and_mended_when_cut(tmp_path, store, ranges, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 4096)
    file = RemoteFile("memory://far/a.tar", tmp_path / "cache")
    whole = store.cat_file("/far/a.tar")
    ranges.clear()
    assert file.read(4000, 5000) == whole[4000:9000]
    assert file.read(8191, 2) == whole[8191:8193]
    assert ranges == [(0, 4096), (4096, 8192), (8192, 12288)]
    block = next((tmp_path / "cache").rglob("00000001"))
    block.write_bytes(b"cut")
    assert pickle.loads(pickle.dumps(file)).read(4096, 10) == whole[4096:4106]
    assert block.read_bytes() == whole[4096:8192]


def test_a_network_that_fails_is_tried_again_and_then_named(store, monkeypatch):
    monkeypatch.setattr(remote, "_WAITS_S", (0.0, 0.0))
    file = RemoteFile("memory://far/a.tar", None)
    whole, failures = store.cat_file("/far/a.tar"), iter([OSError("reset"), OSError("reset")])

    def flaky(self, path, start=None, end=None):
        for error in failures:
            raise error
        return whole[start:end]

    monkeypatch.setattr(type(store), "cat_file", flaky)
    assert file.read(0, 4) == whole[:4]
    failures = iter([OSError("reset by peer")] * 9)
    with pytest.raises(PlaitError, match=r"cannot read bytes 0 to 4 of memory://far/a\.tar \(3 attempts\): reset by peer"):
        file.read(0, 4)


def test_remote_errors_are_one_line(store):
    with pytest.raises(PlaitError, match=r"there is no file memory://far/none\.tar"):
        opened("memory://far/none.tar")
    with pytest.raises(PlaitError, match=r"cannot open nowhere://x/a\.tar: Protocol not known"):
        opened("nowhere://x/a.tar")
    store.pipe("/far/cut.tar", store.cat_file("/far/a.tar")[:5000])
    with pytest.raises(PlaitError, match=r"memory://far/cut\.tar is truncated"):
        opened("memory://far/cut.tar")
