"""Weighted cross-entropy and z-loss against torch on full logits, in float64."""

import pytest
import torch
import torch.nn.functional as F

from plait.nn.weighted import CHUNK_POSITIONS, weighted_cross_entropy


def problem(n, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, 8, generator=generator, dtype=dtype).requires_grad_()
    head = torch.randn(13, 8, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.rand(n, generator=generator, dtype=dtype) * (torch.rand(n, generator=generator) < 0.6)
    return hidden, head, torch.randint(0, 13, (n,), generator=generator), weight


@pytest.mark.parametrize("n", [3, CHUNK_POSITIONS, 2 * CHUNK_POSITIONS + 7])
def test_weighted_sums_and_gradients_equal_those_of_full_logits(n):
    hidden, head, target, weight = problem(n)
    loss, z_loss = weighted_cross_entropy(hidden, head, target, weight)
    gradients = torch.autograd.grad(loss + 0.3 * z_loss, (hidden, head))
    logits = F.linear(hidden, head)
    expected = (weight * F.cross_entropy(logits, target, reduction="none")).sum(), (weight * logits.logsumexp(-1) ** 2).sum()
    assert torch.allclose(loss, expected[0], rtol=1e-12)
    assert torch.allclose(z_loss, expected[1], rtol=1e-12)
    for gradient, oracle in zip(gradients, torch.autograd.grad(expected[0] + 0.3 * expected[1], (hidden, head)), strict=True):
        assert torch.allclose(gradient, oracle, atol=1e-10)


def test_weighted_sums_of_nothing_are_zero_with_zero_gradients():
    hidden, head, target, weight = problem(5)
    loss, z_loss = weighted_cross_entropy(hidden, head, target, torch.zeros_like(weight))
    gradients = torch.autograd.grad(loss + z_loss, (hidden, head))
    assert (loss.item(), z_loss.item()) == (0.0, 0.0)
    assert all((gradient == 0).all() for gradient in gradients)


def test_weighted_sums_under_autocast_take_products_in_bfloat16():
    hidden, head, target, weight = problem(40, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = weighted_cross_entropy(hidden, head, target, weight)[0]
    exact = weighted_cross_entropy(hidden, head, target, weight)[0]
    assert rough.dtype == torch.float32
    assert 0 < abs(rough.item() - exact.item()) < 0.02 * exact.item()  # bfloat16 has 8 bits
