"""The store of frozen encoders' features: what is written is read to the bit or not at all, by any process, within its limit."""

import os
import pickle
import signal

import pytest
import torch
from safetensors.torch import load_file

from plait import files
from plait.training.features.store import FeatureStore
from tests import processes

LIMIT = 1_000_000


def key(number):
    return number.to_bytes(16, "little")


def value(number, size=25):
    return torch.full((4, size), float(number))


OPENED = []


@pytest.fixture(autouse=True)
def _closed():
    yield
    while OPENED:
        OPENED.pop().close()


def opened(root, name="world-1", limit=LIMIT):
    store = FeatureStore(root, name, limit_bytes=limit, about={"encoder": name})
    OPENED.append(store)
    store.open()
    return store


def filled(root, numbers, **options):
    store = opened(root, **options)
    store.add([key(number) for number in numbers], [value(number) for number in numbers])
    store.flush(wait=True)
    return store


def read(store, numbers):
    return [None if found is None else float(found[0, 0]) for found in store.read([key(number) for number in numbers])]


def files_of(store):
    return sorted(store.folder.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_process_reads_what_one_has_written_to_the_bit(tmp_path, dtype):
    values = [torch.randn(3, 5).to(dtype), torch.randn(2, 5).to(dtype)]
    writer, reader = opened(tmp_path), pickle.loads(pickle.dumps(opened(tmp_path)))
    writer.add([key(1), key(2)], values)
    assert reader.read([key(1)]) == [None]
    assert torch.equal(writer.read([key(1)])[0], values[0])
    writer.flush(wait=True)
    found = reader.read([key(2), key(3), key(1)])
    assert found[1] is None
    assert torch.equal(found[0], values[1])
    assert torch.equal(found[2], values[0])
    assert found[0].dtype == dtype
    assert len(reader) == 2


def test_a_key_is_written_once(tmp_path):
    store = filled(tmp_path, [1, 2])
    store.add([key(2), key(3)], [value(2), value(3)])
    store.close()
    assert sorted(len(load_file(path)["values"]) for path in files_of(store)) == [1, 2]


def test_a_flipped_bit_is_refused_and_its_features_are_written_again(tmp_path, caplog):
    path = files_of(filled(tmp_path, [1, 2]))[0]
    body = bytearray(path.read_bytes())
    body[body.index(value(2).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(body)
    store = opened(tmp_path)
    assert read(store, [1, 2]) == [1.0, None]
    assert f"{path} is damaged (record 1 has changed since it was written): it is removed" in caplog.text
    assert read(store, [1]) == [None]
    assert not files_of(store)
    assert read(filled(tmp_path, [1, 2]), [1, 2]) == [1.0, 2.0]


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other"])
def test_a_file_that_is_no_store_is_refused_and_removed(tmp_path, caplog, damage):
    path = files_of(filled(tmp_path, [1, 2]))[0]
    body = path.read_bytes()
    other = body.replace(b'"sums"', b'"suns"')
    path.write_bytes({"empty": b"", "cut": body[:-40], "text": b"not a store at all", "other": other}[damage])
    store = opened(tmp_path)
    assert read(store, [1, 2]) == [None, None]
    assert f"{path} is damaged (" in caplog.text
    assert not path.exists()


def die_in_a_write(root):
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
    filled(root, [1, 2])


def test_a_kill_in_a_write_leaves_nothing_that_is_read_and_its_rest_is_removed(tmp_path):
    filled(tmp_path, [7])
    process = processes.FORK.Process(target=die_in_a_write, args=(tmp_path,))
    process.start()
    assert processes.codes([process]) == [-signal.SIGKILL]
    folder = tmp_path / "world-1"
    assert len(list(folder.glob(".*.tmp"))) == 1
    store = opened(tmp_path)
    assert not list(folder.glob(".*.tmp"))
    assert read(store, [1, 2, 7]) == [None, None, 7.0]


def test_a_temporary_file_that_is_being_written_stays(tmp_path):
    store = opened(tmp_path)
    beside, descriptor = files.claim(store.folder / "x.safetensors", lambda path: os.open(path, os.O_RDWR | os.O_CREAT))
    opened(tmp_path)
    assert beside.exists()
    os.close(descriptor)


def open_some(root):
    for number in range(30):
        store = opened(root, name=f"world-{number}")
        store.close()


def test_processes_that_open_at_once_leave_each_others_files_alone(tmp_path):
    assert processes.codes([processes.forked(open_some, tmp_path) for _ in range(4)]) == [0] * 4
    assert all((folder / "about.json").is_file() for folder in tmp_path.glob("world-*"))


def write_some(root, first):
    for number in range(first, first + 40, 8):
        filled(root, range(number, number + 8)).close()


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    started = [processes.forked(write_some, tmp_path, first) for first in (0, 40, 80)]
    assert processes.codes(started) == [0, 0, 0]
    assert read(opened(tmp_path), range(120)) == list(range(120))


def test_the_limit_is_kept_and_what_was_stored_stays(tmp_path, caplog):
    caplog.set_level("INFO")
    store = filled(tmp_path, range(4), limit=4000)
    store.add([key(9)], [value(9, size=250)])
    store.flush(wait=True)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 4000 + 3 * 4096  # folders count as nothing
    assert read(store, [0, 3, 9]) == [0.0, 3.0, None]
    assert f"no more features are stored ({tmp_path} holds data.feature_cache_gb, 4e-06 GB)" in caplog.text


def test_the_folder_that_was_unused_for_longest_makes_room(tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("old-1", "older-1"):
        filled(tmp_path, [1], name=name).close()
    os.utime(tmp_path / "older-1" / "about.json", (0, 0))
    one = sum(path.stat().st_size for path in (tmp_path / "old-1").iterdir())
    store = filled(tmp_path, [2], limit=int(2.5 * one))
    assert read(store, [2]) == [2.0]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["old-1", "world-1"]
    assert "older-1: removed, to make room" in caplog.text


def test_a_folder_that_a_run_uses_is_never_removed(tmp_path):
    used = filled(tmp_path, [1], name="used-1")
    store = filled(tmp_path, [2], limit=1000)
    assert store.full is not None
    assert read(used, [1]) == [1.0]
    assert used.folder.is_dir()


def test_a_full_disk_ends_the_writing_and_not_the_run(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    store = opened(tmp_path)

    def no_space(path, body):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_whole", no_space)
    store.add([key(1)], [value(1)])
    store.flush(wait=True)
    assert store.full == f"No space left on device in {store.folder}"
    assert read(store, [1]) == [None]
    store.add([key(2)], [value(2)])
    assert not store.pending
