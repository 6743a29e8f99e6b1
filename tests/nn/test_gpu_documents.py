"""Kernels of GPUs for attention within documents: which is chosen, what each is given, and FlexAttention's masks against dense ones."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention

from plait.engine.flops import Flops
from plait.nn import gpu_documents
from plait.nn.document import Document, positions_of
from plait.nn.documents import Layout, attend
from plait.nn.gpu_documents import attention, block_mask, block_table, choose, kernel_of
from tests.families.test_long_rows import case
from tests.families.test_packing import micros
from tests.nn.test_documents import DOCUMENTS, LENGTH, visible

__all__ = ["case"]  # a fixture

LARGE = [
    Document(0, 300, blocks=((100, 140), (250, 290))),  # the second spans two blocks of 128
    Document(310, 560, branches=((400, 470), (470, 560))),
    Document(560, 700),
]
PLAIN = [Document(0, 5), Document(5, 30), Document(33, 34)]
TOTAL = 720
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
BF16, HALF, SINGLE = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """FlexAttention without a compiler; without gradients it runs on a CPU."""
    monkeypatch.setattr(gpu_documents, "_compiled", lambda: flex_attention)


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "documents", "dropout", "kernel"),
    [
        ((9, 0), BF16, 128, PLAIN, 0.0, "varlen"),
        ((8, 0), HALF, 256, PLAIN, 0.0, "varlen"),
        ((9, 0), SINGLE, 128, PLAIN, 0.0, "flex"),
        ((7, 5), HALF, 128, PLAIN, 0.0, "flex"),
        ((9, 0), BF16, 264, PLAIN, 0.0, "flex"),
        ((9, 0), BF16, 20, PLAIN, 0.0, "flex"),
        ((9, 0), BF16, 128, DOCUMENTS[1:2], 0.0, "flex"),
        ((9, 0), BF16, 128, DOCUMENTS[3:4], 0.0, "flex"),
        ((9, 0), BF16, 128, PLAIN, 0.1, "each"),
        ((6, 1), BF16, 128, PLAIN, 0.0, "each"),
        ((9, 0), BF16, 8, PLAIN, 0.0, "each"),
    ],
)
def test_the_kernel_follows_from_the_device_the_type_and_the_documents(capability, dtype, width, documents, dropout, kernel):
    assert kernel_of(capability, dtype, width, documents, dropout) == kernel


def test_kernels_are_of_gpus_alone(monkeypatch):
    query = torch.zeros(1, 2, 5, 128, dtype=BF16)
    assert choose(query, PLAIN, 0.0) == "each"
    on_gpu = torch.empty(1, 2, 5, 128, device="meta")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(type(on_gpu), "device", property(lambda self: torch.device("cuda")), raising=False)
    with torch.autocast("cpu", BF16):
        assert choose(on_gpu, PLAIN, 0.0) == "flex"
    assert choose(on_gpu, PLAIN, 0.1) == "each"


@pytest.mark.parametrize("window", [None, 1, 4, 7, 100])
def test_the_mask_function_says_what_each_position_sees(window):
    mask = block_mask(DOCUMENTS, LENGTH, window, torch.device("cpu"))
    i, j = torch.meshgrid(torch.arange(LENGTH), torch.arange(LENGTH), indexing="ij")
    made, right = mask.mask_mod(0, 0, i, j), visible(window)
    real = right.any(1)
    assert torch.equal(made[real], right[real]) and made.any(1).all()  # padding sees padding, or a softmax would have no numbers


@pytest.mark.parametrize("window", [None, 20, 150, 1000])
@pytest.mark.parametrize("documents", [LARGE, LARGE[:1], PLAIN])
def test_the_table_has_every_block_in_which_something_is_seen_and_few_others(documents, window):
    mask = block_mask(documents, TOTAL, window, torch.device("cpu"))
    i, j = torch.meshgrid(torch.arange(TOTAL), torch.arange(TOTAL), indexing="ij")
    seen = F.pad(mask.mask_mod(0, 0, i, j), (0, -TOTAL % 128, 0, -TOTAL % 128)).view(6, 128, 6, 128).any(3).any(1)
    table = block_table(positions_of(documents, TOTAL), window)
    assert (table | ~seen).all() and int((table & ~seen).sum()) <= (6 if any(d.branches for d in documents) and window else 1)
    assert mask.to_dense()[0, 0].bool().equal(table)


def shifted(documents, by):
    move = [tuple((a + by, b + by) for a, b in part) for d in documents for part in (d.blocks, d.branches)]
    return [Document(d.start + by, d.stop + by, *move[2 * n : 2 * n + 2]) for n, d in enumerate(documents)]


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 7, 150])
@pytest.mark.parametrize(
    ("documents", "rows", "length"), [(DOCUMENTS, 1, LENGTH), (LARGE, 1, TOTAL), ([*PLAIN, *shifted(PLAIN, 40)], 2, 40)]
)
def test_flex_attention_is_that_of_each_document_by_itself(documents, rows, length, window):
    random = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(rows, heads, length, 16, generator=random) for heads in (4, 2, 2))
    shared = {}
    made = attention("flex", (query, key, value), documents, shared, window=window, scale=0.3)
    flat = [each.transpose(0, 1).flatten(1, 2)[None] for each in (query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1))]
    right = attend(*flat, Layout(documents), window=window, scale=0.3)[0].transpose(0, 1).unflatten(0, (rows, length))
    torch.testing.assert_close(made, right, rtol=1e-5, atol=1e-5)
    before = dict(shared)
    attention("flex", (query, key, value), documents, shared, window=window, scale=0.3)
    assert all(shared[name] is value for name, value in before.items()) and ("mask", window) in shared


def by_sequence(query, key, value, starts, starts_k, *, max_q, max_k, scale, window_size, enable_gqa):
    """What torch says of `varlen_attn`: causal attention in each sequence, whose window counts positions to the left."""
    assert enable_gqa and starts is starts_k and starts.dtype == torch.int32 and window_size[1] == 0
    sizes = starts.diff().tolist()
    assert max_q == max_k == max(sizes) and sum(sizes) == len(query)
    out = []
    for q, k, v in zip(*(torch.split(each, sizes) for each in (query, key, value)), strict=True):
        back = torch.arange(len(q))[:, None] - torch.arange(len(q))
        seen = (back >= 0) & ((back <= window_size[0]) if window_size[0] >= 0 else True)
        heads = [each.transpose(0, 1) for each in (q, k, v)]
        out.append(F.scaled_dot_product_attention(*heads, attn_mask=seen, scale=scale, enable_gqa=True).transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("window", [None, 1, 7])
@pytest.mark.parametrize("documents", [PLAIN, [Document(0, 40)], [Document(0, 17), Document(17, 40)]])
def test_the_flash_kernel_gets_each_document_as_a_sequence(monkeypatch, documents, window):
    monkeypatch.setattr(gpu_documents, "varlen_attn", by_sequence)
    given = [torch.randn(1, heads, 40, 16, dtype=torch.float64).requires_grad_() for heads in (4, 2, 2)]
    made = attention("varlen", tuple(given), documents, {}, window=window, scale=0.3)
    oracle = [each.detach().clone().requires_grad_() for each in given]
    query, key, value = oracle[0], oracle[1].repeat_interleave(2, 1), oracle[2].repeat_interleave(2, 1)
    right = attend(query, key, value, Layout(documents), window=window, scale=0.3)[0].transpose(0, 1)[None]
    torch.testing.assert_close(made, right, rtol=1e-5, atol=1e-5)
    for out in (made, right):
        out.square().sum().backward()
    for ours, theirs in zip(given, oracle, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)  # sums of up to 40 terms


@torch.no_grad()
def test_its_operations_are_counted_as_those_of_each_document_by_itself():
    documents = [Document(0, 25), Document(25, 40)]
    query = torch.randn(1, 4, 40, 16)
    counts = []
    for run in (lambda: attention("flex", (query, query[:, :2], query[:, :2]), documents, {}, window=None, scale=None), None):
        with Flops() as flops:
            run() if run is not None else attend(query, query, query, Layout(documents))
        counts.append(flops.total)
    assert counts[0] == counts[1] == 2 * 2 * 4 * (25**2 + 15**2) * 16


def test_attention_is_computed_in_the_type_of_autocast():
    query = torch.randn(1, 2, 40, 16)
    with torch.no_grad(), torch.autocast("cpu", BF16):
        assert attention("flex", (query, query, query), PLAIN, {}, window=None, scale=None).dtype == BF16


@torch.no_grad()
def test_models_have_the_same_loss_by_flex_attention(case, monkeypatch):
    (packed,) = micros(case, "none")
    case.model.eval()
    right = case.loss.sums(case.model, packed.batch)
    asked = []
    monkeypatch.setattr(gpu_documents, "choose", lambda query, documents, dropout: asked.append(dropout) or "flex")
    made = case.loss.sums(case.model, packed.batch)
    assert asked and set(asked) == {0.0}
    for name in right:
        torch.testing.assert_close(made[name], right[name], rtol=1e-5, atol=1e-5)
