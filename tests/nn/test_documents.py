"""Attention within documents against torch's own with a dense mask, which says by the definition what each position sees."""

import pytest
import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import repeat_kv

from plait.nn import documents
from plait.nn.document import Document
from plait.nn.documents import Layout, attend

DOCUMENTS = [
    Document(0, 5),
    Document(5, 30, blocks=((7, 13), (20, 28))),  # one that begins inside the window, one that is longer than it
    Document(33, 34),  # three of padding before it
    Document(34, 60, branches=((40, 45), (45, 60))),
    Document(60, 64, branches=((60, 62), (62, 64))),  # nothing is shared
]
LENGTH, HEADS, WIDTH = 66, 2, 8


def visible(window):
    """Which position sees which, pair by pair."""
    seen = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    for start, stop, blocks, branches in DOCUMENTS:
        branch = [next((n for n, (a, b) in enumerate(branches, 1) if a <= i < b), 0) for i in range(start, stop)]
        begins = branches[0][0] if branches else stop
        place = [i if i < begins else begins + i - branches[branch[i - start] - 1][0] for i in range(start, stop)]
        for i in range(start, stop):
            for j in range(start, stop):
                same = any(a <= i < b and a <= j < b for a, b in blocks)
                shared = branch[j - start] in (0, branch[i - start])
                near = window is None or place[i - start] - place[j - start] < window
                seen[i, j] = (j <= i or same) and shared and near
    return seen


def problem():
    random = torch.Generator().manual_seed(1)
    return [torch.randn(1, HEADS, LENGTH, WIDTH, generator=random, dtype=torch.float64).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("window", [None, 1, 4, 7, 100])
@pytest.mark.parametrize(("chunk", "short"), [(2, 0), (512, 0), (512, 256)])
def test_each_position_sees_what_its_document_has_for_it(monkeypatch, window, chunk, short):
    monkeypatch.setattr(documents, "_CHUNK", chunk)
    monkeypatch.setattr(documents, "_SHORT", short)
    (q, k, v), oracle = problem(), problem()
    mask = visible(window)
    real = mask.any(-1)
    out = attend(q, k, v, Layout(DOCUMENTS), window=window, scale=0.3)
    expected = F.scaled_dot_product_attention(*oracle, attn_mask=mask | ~real[:, None], scale=0.3) * real[:, None]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for value in (out, expected):
        (value * torch.arange(LENGTH)[:, None]).square().sum().backward()
    for ours, theirs in zip((q, k, v), oracle, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)  # sums of up to 66 terms


def test_masks_are_as_large_as_a_window_or_a_branch_and_are_made_once(monkeypatch):
    monkeypatch.setattr(documents, "_SHORT", 39)
    layout = Layout([Document(0, 40), Document(40, 60, branches=((48, 52), (52, 60)))])
    q, k, v = (torch.randn(1, 1, 60, 4) for _ in range(3))
    attend(q, k, v, layout, window=8)
    first = dict(layout.masks)
    attend(q, k, v, layout, window=8)
    assert layout.masks == first or all(layout.masks[name] is mask for name, mask in first.items())
    # beyond the window, and the two branches; the prefix needs none
    assert {tuple(mask.shape) for mask in first.values()} == {(32, 39), (4, 11), (8, 15)}
    attend(q, k, v, causal := Layout([Document(0, 60, blocks=((3, 30),))]))
    assert not causal.masks


@pytest.mark.parametrize(("short", "window", "calls"), [(256, None, [3, 1, 1]), (256, 7, [3, 1, 1]), (0, None, [3, 3, 3, 1, 1, 1])])
def test_documents_that_are_alike_are_computed_at_once_and_to_the_bit(monkeypatch, short, window, calls):
    monkeypatch.setattr(documents, "_SHORT", short)
    alike = [Document(n, n + 12, blocks=((n + 2, n + 5), (n + 6, n + 8))) for n in (0, 12, 30)]
    several = [*alike[:2], Document(24, 27), alike[2], Document(43, 55, blocks=((46, 49),))]
    made, product = [], F.scaled_dot_product_attention
    q, k, v = (torch.randn(1, 2, 57, 8) for _ in range(3))
    alone = [attend(q, k, v, Layout([one]), window=window)[:, :, one.start : one.stop] for one in several]
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *given, **how: made.append(len(given[0])) or product(*given, **how))
    out = attend(q, k, v, Layout(several), window=window)
    assert made == calls
    assert all(torch.equal(out[:, :, one.start : one.stop], right) for one, right in zip(several, alone, strict=True))
    assert not any(out[:, :, start:stop].any() for start, stop in ((27, 30), (42, 43), (55, 57)))


def grouped(repeat):
    """Attention of eight heads that share two of keys and values, its gradients, and the bytes kept for the backward pass."""
    random = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, heads, LENGTH, WIDTH, generator=random).requires_grad_() for heads in (8, 2, 2))
    kept = {}

    def pack(value):
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        out = attend(q, *((repeat_kv(each, 4) for each in (k, v)) if repeat else (k, v)), Layout(DOCUMENTS), window=7)
    out.square().sum().backward()
    return [out.detach(), q.grad, k.grad, v.grad], sum(kept.values())


def test_heads_that_share_keys_and_values_are_not_repeated():
    ours, bytes_kept = grouped(repeat=False)
    repeated, bytes_repeated = grouped(repeat=True)
    for one, other in zip(ours, repeated, strict=True):
        assert (one - other).abs().max() <= 1e-6 * other.abs().max()  # gradients of four heads are summed in another order
    assert bytes_repeated - bytes_kept >= 2 * (8 - 2) * LENGTH * WIDTH * 4
