"""The gradient of a head that is the embedding too: added to `grad` at once, with the values of the gradient that waits, in less memory."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from plait.engine.flops import Flops
from plait.nn import chunked
from plait.nn.losses import token_cross_entropy
from plait.nn.weighted import weighted_cross_entropy
from plait.training.planning.fake_step import Live

WORDS, WIDTH, POSITIONS = 40, 8, 12


def cross_entropy(hidden, weight, labels, tied):
    return token_cross_entropy(hidden, weight, labels, softcap=3.0, tie=tied)


def unchunked(hidden, weight, labels, tied):
    return token_cross_entropy(hidden, weight, labels, tie=tied)


def weighted(hidden, weight, labels, tied):
    return sum(weighted_cross_entropy(hidden, weight, labels, torch.arange(1.0, 1.0 + len(labels)), tie=tied))


LOSSES = [cross_entropy, unchunked, weighted]


def gradients(loss, tied, precision=torch.float32, trains=True):
    """The gradients of embedding and layer after two micro-batches, and the FLOPs."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(WORDS, WIDTH, generator=random).requires_grad_(trains)
    layer = torch.randn(WIDTH, WIDTH, generator=random).requires_grad_()
    with Flops() as flops:
        for _ in range(2):
            ids, labels = (torch.randint(WORDS, (POSITIONS,), generator=random) for _ in range(2))
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                total = loss(torch.tanh(F.embedding(ids, weight) @ layer), weight, labels, tied)
            total.backward()
    return weight.grad, layer.grad, flops.total


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_that_wait(loss, precision, monkeypatch):
    waiting = gradients(loss, tied=True, precision=precision)
    monkeypatch.setattr(chunked, "LARGE", 1)
    for one, other in zip(gradients(loss, tied=True, precision=precision), waiting, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # the same terms of float32, in another order
    assert torch.equal(gradients(loss, tied=False, precision=precision)[0], waiting[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_a_frozen_head_and_a_pass_without_gradients_are_as_before(loss, monkeypatch):
    frozen = gradients(loss, tied=True, trains=False)
    monkeypatch.setattr(chunked, "LARGE", 1)
    found = gradients(loss, tied=True, trains=False)
    assert found[0] is frozen[0] is None and torch.equal(found[1], frozen[1])
    weight = torch.randn(WORDS, WIDTH, requires_grad=True)
    with torch.no_grad():
        loss(torch.randn(POSITIONS, WIDTH), weight, torch.arange(POSITIONS), True)
    assert weight.grad is None


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_that_are_asked_for_alone_leave_grad_alone(loss, monkeypatch):
    monkeypatch.setattr(chunked, "LARGE", 1)
    weight, hidden = torch.randn(WORDS, WIDTH, requires_grad=True), torch.randn(POSITIONS, WIDTH, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    torch.autograd.grad(loss(hidden, weight, torch.arange(POSITIONS), True), hidden)
    assert not weight.grad.any()


def peaks(tied):
    """Bytes above the weights at the most, of the first and the second of two micro-batches, in gradients of the head."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        weight = torch.nn.Parameter(torch.empty(65_536, 1024))
        ids, places = torch.empty(64, dtype=torch.int64), torch.empty(16, dtype=torch.int64)
    found, live = [], Live([weight, ids, places])
    with fake, live:
        for _ in range(2):
            live.peak = live.now
            with torch.autocast("cpu", torch.bfloat16):
                total = token_cross_entropy(torch.tanh(F.embedding(ids, weight)), weight, ids, places_S=places, tie=tied)
            total.backward()
            del total
            found.append(live.peak / (weight.numel() * 4))
    return found


def test_of_a_large_head_one_gradient_is_held_and_at_most_two():
    assert weight_of(65_536, 1024) >= chunked.LARGE
    assert peaks(tied=False) == pytest.approx([3.0, 4.0], abs=0.1)
    assert peaks(tied=True) == pytest.approx([2.0, 2.0], abs=0.15)  # two 16-bit copies, or a second gradient


def weight_of(words, width):
    return words * width
