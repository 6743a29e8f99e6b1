"""Shared memory between a worker and its consumer: the same bits, used again only when nothing lies in it any more."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from plait.data.memory import allocation, shared, tensors
from plait.data.memory.shared import BufferPool, BufferWriter


def batch(length=5, value=1.0):
    return {"x": torch.full((length, 3), value), "rest": [torch.arange(4), ("text", None, torch.tensor(True))]}


class Pair:
    """A worker and its consumer in one process."""

    def __init__(self):
        self.writer, self.pool = BufferWriter(), BufferPool()

    def send(self, content):
        self.buffer = self.pool.take()
        self.packed = self.writer.pack(content, self.buffer)
        return self.pool.unpack(self.packed, self.buffer)


def test_a_batch_arrives_to_the_bit_with_its_strides():
    pixels = torch.arange(96, dtype=torch.uint8).view(2, 4, 4, 3).permute(0, 3, 1, 2)
    sent = {
        "pixels": pixels, "half": torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16), "none": torch.empty(0, 3),
        "one": torch.tensor(7), "every second": torch.arange(10)[::2], "same": torch.tensor(1.0).expand(3),
        "sparse": torch.eye(2).to_sparse(),
    }  # fmt: skip
    found = Pair().send(sent)
    for name, tensor in sent.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].to_dense().nan_to_num(9), tensor.to_dense().nan_to_num(9))
    assert found["pixels"].stride() == pixels.stride()


def test_what_is_no_tensor_arrives_in_its_container():
    found = Pair().send(batch())
    assert type(found["rest"]) is list
    assert found["rest"][1][:2] == ("text", None)


def test_a_buffer_is_used_again_once_its_tensors_are_gone_and_not_before():
    pair = Pair()
    first = pair.send(batch(value=1.0))
    part = first["x"][1:2]
    del first
    pair.send(batch(value=2.0))
    assert pair.buffer is None  # a view of the first batch still lies in its buffer
    assert part.unique().tolist() == [1.0]
    del part
    assert {pair.pool.take(), pair.pool.take()} == {0, 1}
    assert pair.pool.take() is None


def test_a_batch_larger_than_its_buffer_gets_another_and_the_small_one_is_dropped():
    pair = Pair()
    pair.send(batch())
    found = pair.send(batch(length=500, value=3.0))
    assert (pair.buffer, pair.packed.buffer) == (0, 1)
    assert torch.equal(found["x"], torch.full((500, 3), 3.0))
    del found
    pair.send(batch(length=490))
    assert (pair.buffer, pair.packed.buffer, pair.packed.new_memory) == (1, 1, None)
    assert pair.pool.take() == 1
    assert pair.pool.take() is None


def test_a_batch_without_tensors_gives_the_buffer_back():
    pair = Pair()
    pair.send(batch())
    assert pair.send({"names": ["a"]}) == {"names": ["a"]}
    assert pair.pool.take() == 0


def test_tensors_start_at_cache_lines_and_a_new_buffer_is_a_quarter_larger():
    packed = BufferWriter().pack({"a": torch.zeros(15), "b": torch.ones(4)}, None)  # 60 bytes, and 16 from byte 64 on
    assert [packed.batch[name].start for name in "ab"] == [0, 64]
    assert len(packed.new_memory) == 100  # 1.25 x 80


def test_a_buffer_that_just_fits_is_filled_again():
    writer = BufferWriter()
    first = writer.pack({"a": torch.zeros(16)}, None)
    assert len(first.new_memory) == 80
    again = writer.pack({"a": torch.zeros(20)}, first.buffer)
    assert (again.buffer, again.new_memory) == (first.buffer, None)
    larger = writer.pack({"a": torch.zeros(21)}, first.buffer)
    assert larger.buffer != first.buffer and len(larger.new_memory) == 105


@pytest.mark.parametrize(("libc", "options"), [("glibc", [(-4, 0), (-1, 2**31 - 1)]), ("", [])])
def test_a_worker_keeps_freed_memory_where_the_library_can(monkeypatch, libc, options):
    called = []
    monkeypatch.setattr(shared.platform, "libc_ver", lambda: (libc, "2"))
    monkeypatch.setattr(shared.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *given: called.append(given)))
    shared.keep_freed_memory()
    assert called == options  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h


def test_tensors_that_cannot_lie_in_shared_memory_travel_by_themselves():
    learned = torch.ones(2, requires_grad=True)
    packed = BufferWriter().pack({"a": learned, "b": torch.eye(2).to_sparse(), "c": nn.Parameter(torch.ones(1))}, None)
    assert packed.batch["a"] is learned and packed.batch["b"].is_sparse and isinstance(packed.batch["c"], nn.Parameter)
    assert (packed.buffer, packed.new_memory) == (None, None)


def collated(pair, *lengths):
    """Send a batch of tensors that are collated in the buffer which the consumer offers, as far as that goes. Returns both sides' batch."""
    pair.buffer = pair.pool.take()
    with pair.writer.collating(pair.buffer):
        made = {str(place): tensors.empty((length,), torch.float32).fill_(place) for place, length in enumerate(lengths)}
    made["beside"] = torch.arange(3)
    pair.packed = pair.writer.pack(made, pair.buffer)
    return made, pair.pool.unpack(pair.packed, pair.buffer)


def equal(made, found):
    return made.keys() == found.keys() and all(torch.equal(made[name], found[name]) for name in made)


def test_a_batch_that_is_collated_in_its_buffer_is_not_copied():
    pair = Pair()
    made, found = collated(pair, 20, 5)
    assert equal(made, found) and pair.packed.new_memory is not None  # the first has no buffer yet
    del made, found
    made, found = collated(pair, 20, 5)
    buffer = pair.writer._buffers[pair.packed.buffer]
    starts = [made[name].data_ptr() - buffer.data_ptr() for name in "01"]
    assert (pair.packed.new_memory, starts) == (None, [0, 128])  # 80 bytes, and the next from a cache line on
    assert [pair.packed.batch[name].start for name in ("0", "1", "beside")] == [0, 128, 192]
    assert equal(made, found) and allocation.place is None


def test_what_does_not_fit_in_the_buffer_is_copied_into_one_that_has_room_for_all():
    pair = Pair()
    collated(pair, 20)
    for lengths in ((5, 500, 7), (5, 500, 7, 300)):  # the first fits in the old buffer
        made, found = collated(pair, *lengths)
        assert equal(made, found) and pair.packed.new_memory is not None
        del made, found
    made, found = collated(pair, 5, 500, 7, 300)
    assert equal(made, found) and pair.packed.new_memory is None


def test_a_part_of_what_was_collated_is_sent_too():
    pair = Pair()
    collated(pair, 20)
    with pair.writer.collating(buffer := pair.pool.take()):
        whole = tensors.empty((20,), torch.float32).copy_(torch.arange(20.0))
    sent = {"whole": whole, "head": whole[:3], "every second": whole[::2]}
    found = pair.pool.unpack(pair.writer.pack(sent, buffer), buffer)
    assert equal(sent, found) and found["every second"].is_contiguous()


def test_a_tensor_that_the_worker_keeps_is_never_overwritten():
    pair = Pair()
    collated(pair, 20, 5)
    kept, found = collated(pair, 20, 5)
    found = None
    made, found = collated(pair, 21, 4)
    made["0"].fill_(9)
    assert kept["0"].unique().tolist() == [0.0] and kept["1"].unique().tolist() == [1.0]
    assert pair.packed.new_memory is not None and equal({"1": made["1"]}, {"1": found["1"]})


def test_a_buffer_that_was_outgrown_is_let_go_on_both_sides():
    writer, pool = BufferWriter(), BufferPool()
    small = writer.pack(batch(), pool.take())
    memory = weakref.ref(small.new_memory)
    pool.unpack(small, None)
    del small
    offered = pool.take()
    pool.unpack(writer.pack(batch(length=500), offered), offered)
    gc.collect()
    assert memory() is None
