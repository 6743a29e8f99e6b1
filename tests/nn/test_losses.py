"""The chunked cross-entropy against a float64 loop over positions."""

import pytest
import torch

from plait.nn import losses
from plait.nn.losses import IGNORED, token_cross_entropy


def loop(hidden, head, target, softcap):
    """The definition, position by position."""
    total = hidden.sum() * 0 + head.sum() * 0
    for vector, word in zip(hidden, target.tolist(), strict=True):
        if word == IGNORED:
            continue
        logits = head @ vector
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        total = total + torch.log(torch.exp(logits - logits.max()).sum()) + logits.max() - logits[word]
    return total


def problem(dtype, n=19, vocabulary=37, width=8):
    random = torch.Generator().manual_seed(3)
    hidden = torch.randn(n, width, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    head = torch.randn(vocabulary, width, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    target = torch.randint(vocabulary, (n,), generator=random)
    target[::5] = IGNORED
    return hidden, head, target


@pytest.fixture(params=["torch", "own"])
def either(request, monkeypatch):
    """Both implementations, with chunks small enough that there are several and the last is short."""
    monkeypatch.setattr(losses, "CHUNK_POSITIONS", 4)
    if request.param == "torch" and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")
    if request.param == "own":
        monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])  # float32: 15 sums of 37 terms, ulp 1e-7
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_cross_entropy_equals_a_float64_loop_with_its_gradients(either, dtype, tolerance, softcap):
    hidden, head, target = problem(dtype)
    oracle_hidden, oracle_head, _ = problem(torch.float64)
    value, oracle = token_cross_entropy(hidden, head, target, softcap=softcap), loop(oracle_hidden, oracle_head, target, softcap)
    (3 * value).backward()
    (3 * oracle).backward()
    assert value.item() == pytest.approx(oracle.item(), rel=tolerance)
    torch.testing.assert_close(hidden.grad.double(), oracle_hidden.grad, atol=3 * tolerance, rtol=tolerance)
    torch.testing.assert_close(head.grad.double(), oracle_head.grad, atol=3 * tolerance, rtol=tolerance)


def test_cross_entropy_of_ignored_positions_is_zero_with_zero_gradients(either):
    hidden, head, target = problem(torch.float32)
    value = token_cross_entropy(hidden, head, torch.full_like(target, IGNORED))
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert torch.equal(head.grad, torch.zeros_like(head))


def test_cross_entropy_ignored_positions_get_no_gradient(either):
    hidden, head, target = problem(torch.float32)
    token_cross_entropy(hidden, head, target).backward()
    assert torch.equal(hidden.grad[::5], torch.zeros_like(hidden[::5]))
    assert (hidden.grad[1:5] != 0).all()


def test_cross_entropy_with_a_frozen_head_gives_the_hidden_gradient_alone(either):
    hidden, head, target = problem(torch.float32)
    token_cross_entropy(hidden, head.detach(), target).backward()
    assert hidden.grad.abs().sum() > 0
    assert head.grad is None


def test_cross_entropy_under_autocast_sums_in_float32_over_mixed_types(either):
    hidden, head, target = problem(torch.float32)
    exact = token_cross_entropy(hidden, head, target).item()
    with torch.autocast("cpu", torch.bfloat16):
        value = token_cross_entropy(hidden.to(torch.bfloat16), head, target)
    value.backward()
    assert value.dtype == torch.float32
    assert head.grad.dtype == torch.float32
    assert value.item() == pytest.approx(exact, rel=2e-2)  # bfloat16 keeps 8 bits: each logit is off by up to 0.4 %


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cross_entropy_of_products_of_16_bits_is_summed_in_float32(dtype):
    hidden, head, target = problem(dtype, n=20_000)
    value = token_cross_entropy(hidden, head, target)
    logits = torch.nn.functional.linear(hidden, head).double()
    oracle = torch.nn.functional.cross_entropy(logits, target, reduction="sum").item()
    assert oracle > 65_504  # more than float16 holds
    assert value.item() == pytest.approx(oracle, rel=1e-6)  # 16,000 float32 terms, added pairwise
