"""Memory that is used again: only once nothing refers to it, and never much more than is in use."""

import gc
import io
import threading
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from plait.data import images
from plait.data.loading.loader import Loader
from plait.data.memory import allocation, reused, tensors
from plait.data.order import Order
from tests.data.test_turns import Encoder, Numbers

MEGABYTE = 1 << 20


@pytest.fixture
def pool(monkeypatch):
    pool = reused.Pool()
    monkeypatch.setattr(allocation, "lease", pool.lease)
    return pool


@pytest.mark.parametrize(
    "keep",
    [
        lambda leased: leased,
        lambda leased: leased[5:90],
        lambda leased: leased.reshape(4, -1).T[3:],
        torch.from_numpy,
        lambda leased: torch.from_numpy(leased[100:]).view(torch.float32)[::2],
        lambda leased: torch.from_numpy(leased.reshape(8, -1).T).unsqueeze(0),
        lambda leased: memoryview(leased)[3:],
        lambda leased: torch.from_numpy(leased).untyped_storage(),
    ],
)
def test_memory_is_used_again_once_the_last_view_of_it_is_gone_and_not_before(pool, keep):
    leased = pool.lease(MEGABYTE)
    address, kept = leased.ctypes.data, keep(leased)
    del leased
    gc.collect()
    others = [pool.lease(MEGABYTE) for _ in range(3)]
    assert address not in [other.ctypes.data for other in others]
    del kept
    gc.collect()
    assert pool.lease(MEGABYTE).ctypes.data == address


def test_a_tensor_saved_for_a_backward_pass_keeps_its_memory(pool):
    weight = torch.ones(MEGABYTE, requires_grad=True)
    product = weight * tensors.empty((MEGABYTE,), torch.float32).fill_(3)
    tensors.empty((MEGABYTE,), torch.float32).fill_(7)
    product.sum().backward()
    assert weight.grad.unique().tolist() == [3.0]


def test_what_lies_unused_is_at_most_what_is_in_use(pool, monkeypatch):
    monkeypatch.setattr(reused, "_IDLE_BYTES", 2 * MEGABYTE)
    for size in range(1, 40):  # pictures of many sizes, one after the other
        pool.lease(size * MEGABYTE)
    assert pool._owned_bytes <= (39 + 39 + 2) * 1.13 * MEGABYTE
    held = [pool.lease(8 * MEGABYTE) for _ in range(5)]
    del held
    assert sum(size * len(free) for size, free in pool._free.items()) == pool._owned_bytes
    pool.clear()
    assert pool._owned_bytes == 0 and not any(pool._free.values())


def test_threads_never_share_a_buffer(pool):
    wrong = []

    def work(number):
        for _ in range(300):
            mine = tensors.empty((200_000,), torch.uint8).fill_(number)
            wrong.extend([number] * (not bool((mine == number).all())))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert pool._owned_bytes <= 12 * 1.13 * 200_000  # the one before is dropped once the next is there


def test_pictures_and_batches_take_reused_memory_and_the_same_values(pool):
    draw = np.random.default_rng(0)
    body = io.BytesIO()
    Image.fromarray(draw.integers(0, 256, (300, 400, 3), np.uint8)).save(body, "JPEG")
    picture = images.decode(body.getvalue())
    assert pool._owned_bytes >= 300 * 400 * 3
    assert torch.equal(picture, images.decode(body.getvalue()))
    parts = [picture.float(), picture.float() + 1]
    assert torch.equal(tensors.stack(parts), torch.stack(parts))
    assert torch.equal(tensors.cat(parts), torch.cat(parts))
    assert torch.equal(tensors.stack([p[:, ::200] for p in parts]), torch.stack([p[:, ::200] for p in parts]))  # small: not leased
    assert torch.equal(images.to_unit(picture), picture.to(torch.float32).div_(127.5).sub_(1.0))
    squares = images.resize_all([picture] * 3, 224, 224)
    assert torch.equal(squares, torch.stack([images.resize(picture, 224, 224)] * 3))


class Box:
    """An example that says whether it is gone."""

    def __init__(self, number):
        self.number = number


class Boxes:
    def __init__(self):
        self.made = {}

    def encode(self, sample, _):
        box = Box(sample["fields"]["number"])
        self.made[box.number] = weakref.ref(box)
        return box

    def collate(self, examples):
        return {"numbers": torch.tensor([box.number for box in examples])}


def test_threads_free_a_batchs_pictures_before_they_hand_it_over():
    boxes = Boxes()
    with Loader([Numbers()], Order([64], [1.0], 0, 16), boxes, seed=0, workers=2, stop_step=4) as training:
        for step in training:
            assert [boxes.made[number]() for number in step.micro[0].batch["numbers"].tolist()] == [None] * 16


def test_a_loader_that_ends_beside_another_leaves_that_one_its_memory():
    def loader():
        return Loader([Numbers()], Order([64], [1.0], 0, 16), Encoder(), seed=0, workers=2, stop_step=4)

    with loader() as training:
        steps = iter(training)
        next(steps)
        with loader() as evaluation:
            assert len(list(evaluation)) == 4
        assert allocation.lease is not None
        next(steps)
    assert allocation.lease is None


def test_memory_that_outlives_its_loader_goes_back_to_the_system(monkeypatch):
    monkeypatch.setattr(reused, "_pool", reused.Pool())
    reused.begin(user := object())
    kept = tensors.empty((MEGABYTE,), torch.float32)
    reused.end(user)
    assert reused._pool._owned_bytes > 0
    del kept
    assert reused._pool._owned_bytes == 0
