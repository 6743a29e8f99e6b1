"""Attention within documents as one operator of compiled layers: what eager layers compute, in one graph for any documents."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention import varlen

from plait.nn import documents, gpu_documents
from plait.nn.document import Document, numbers_of, told_by
from plait.nn.documents import Layout, within
from tests.nn.test_documents import DOCUMENTS, LENGTH
from tests.nn.test_gpu_documents import PLAIN, by_sequence
from tests.waits import Waits

PACKS = [DOCUMENTS, PLAIN, [Document(0, 40, blocks=((2, 9),))], [Document(0, 17), Document(20, 45)]]


def given(rows=1, length=LENGTH):
    random = torch.Generator().manual_seed(1)
    return [torch.randn(rows, length, heads, 16, generator=random).transpose(1, 2).requires_grad_() for heads in (4, 2, 2)]


def gradients(out, values):
    return torch.autograd.grad(out.square().sum(), values)


@pytest.mark.parametrize("of", PACKS)
def test_documents_are_told_by_numbers(of):
    assert told_by(numbers_of(of).tolist()) == of


@pytest.mark.parametrize(("rows", "length", "of"), [(1, LENGTH, DOCUMENTS), (2, 40, [*PLAIN, Document(41, 70, blocks=((43, 49),))])])
@pytest.mark.parametrize("window", [None, 7])
def test_the_operator_gives_what_each_document_by_itself_gives_to_the_bit(rows, length, of, window):
    values, oracle, numbers = given(rows, length), given(rows, length), numbers_of(of)
    with Waits() as waits:
        out = within(*values, numbers, window=window, scale=0.3)
        found = gradients(out, values)
    expected = documents._each(tuple(oracle), Layout(of), window=window, scale=0.3)
    assert torch.equal(out, expected) and not waits.found
    assert all(torch.equal(one, other) for one, other in zip(found, gradients(expected, oracle), strict=True))
    torch.library.opcheck(within, (*values, numbers), {"window": window, "scale": 0.3})


@pytest.fixture
def compiled(monkeypatch):
    """An attention layer that is traced anew, whose packs have the kernel that is asked for."""
    torch._dynamo.reset()
    counters.clear()

    class Layer(torch.nn.Module):
        sliding_window = 7

        def forward(self, query, key, value, documents):
            return documents_attention(self, 2 * query, key, value, None, documents=documents, scaling=0.3)[0] + 1

    documents_attention = documents._attention
    layer = torch.compile(Layer().forward, backend="eager", fullgraph=True)

    def run(kernel, of):
        monkeypatch.setattr(gpu_documents, "choose", lambda *_: kernel)
        layout, values = Layout(of, numbers=numbers_of(of)), given(length=of[-1].stop)
        torch._dynamo.maybe_mark_dynamic(layout.numbers, 0)
        layout.kernel = gpu_documents.prepare(torch.empty(1, of[-1].stop, 64), of, layout.shared, width=16, windows={None, 7})
        with torch.set_grad_enabled(kernel != "flex"):  # which has gradients on a GPU alone
            out = layer(*values, documents=layout)
            expected = documents._each((2 * values[0], *values[1:]), Layout(of), window=7, scale=0.3) + 1
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        return counters["stats"]["unique_graphs"]

    return run


def test_one_graph_serves_any_documents(compiled):
    assert [compiled("each", of) for of in PACKS] == [1, 2, 2, 2]  # the first length, and any


def test_a_gpus_kernels_are_traced_through(compiled, monkeypatch):
    """Compiled without a break, of which `fullgraph` would make an error."""
    assert [compiled("flex", of) for of in (PACKS[0], PACKS[3], PACKS[0], PACKS[3])][-1] <= 3

    def flash(query, key, value, starts, starts_k, max_q, max_k, is_causal, scale, window_size, enable_gqa, *_):
        how = {"max_q": max_q, "max_k": max_k, "scale": scale, "window_size": window_size, "enable_gqa": enable_gqa}
        out = by_sequence(query, key, value, starts, starts, **how)
        return out, torch.zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)

    kernels = varlen._varlen_attn._backend_fns
    monkeypatch.setitem(kernels, None, flash)
    graphs = [compiled("varlen", of) for of in (PLAIN, PACKS[3], PLAIN, [Document(0, 9), Document(11, 30)])]
    assert graphs[-1] - graphs[0] <= 2
