"""Attention within the documents of packed rows, one after the other, without a mask of all positions by all positions.

A document is the sequence of one sample. Its positions attend to those before them in it; those of a block (an image) to all of the block
as well; those of a branch (one of several conversations about an image) to themselves and to what precedes the first branch. What is left
between documents is padding. A causal product of a whole document needs no mask; blocks are computed once more, without one, and only
sliding windows and branches have masks, of their own sizes. Short documents have masks instead, which costs less than more products do,
and those that are alike are computed at once. Used for rows that are packed or longer than LONGEST_MASK; with shorter ones
the models' own masks do. On a GPU gpu_documents.py has kernels for all documents at once. In compiled layers attention is one operator,
whose graph serves any documents. Legend: B rows, H heads, L positions, N = B L, E features of a head.
"""

import functools
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from plait.errors import PlaitError
from plait.nn import gpu_documents
from plait.nn.document import Document, Range, numbers_of, told_by

LONGEST_MASK = 2048
"""Rows of more positions have no mask (L, L)."""
_CHUNK = 512  # positions of a branch, or beyond a window, that are computed at a time
_SHORT = 256  # positions up to which a document has a mask of its own
_NAME = "plait_documents"


@dataclass
class Layout:
    """The documents of a micro-batch, with the masks that its layers share."""

    documents: Sequence[Document]
    masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    shared: dict[Any, Any] = field(default_factory=dict)
    """What kernels of GPUs need."""
    kernel: gpu_documents.Kernel = "each"
    """What computes the attention of compiled layers."""
    numbers: Tensor | None = None
    """The documents as the operator of compiled layers is given them."""

    def band(self, like: Tensor, shape: tuple[int, int], offset: int, *, causal: bool, window: int | None) -> Tensor | None:
        """Return the mask to add, `shape` (queries, keys): 0 where query i, the key i + offset, sees key j, else -inf. None: it sees all.

        If `causal`, that is j <= i + offset; with a `window`, also j > i + offset - window.
        """
        queries, keys = shape
        if not causal and (window is None or offset + queries <= window):
            return None
        name = (shape, offset, causal, window, like.dtype, like.device)
        if name not in self.masks:
            mask = torch.zeros(shape, dtype=like.dtype, device=like.device)
            ahead = torch.arange(keys, device=like.device) - torch.arange(offset, offset + queries, device=like.device)[:, None]
            mask.masked_fill_(ahead > 0, -torch.inf) if causal else None
            mask.masked_fill_(ahead <= -window, -torch.inf) if window is not None else None
            self.masks[name] = mask
        return self.masks[name]

    def square(self, like: Tensor, blocks: tuple[Range, ...], window: int | None) -> Tensor:
        """Return the mask (l, l) to add of a document of `like`'s length: causal, both ways in `blocks`, and within the `window`."""
        length = like.shape[2]
        name = (length, blocks, window, like.dtype, like.device)
        if name not in self.masks:
            index = torch.arange(length, device=like.device)
            ahead = index - index[:, None]
            hidden = ahead > 0
            for a, b in blocks:
                hidden[a:b, a:b].zero_()
            hidden = hidden if window is None else hidden | (ahead <= -window)
            self.masks[name] = torch.zeros(length, length, dtype=like.dtype, device=like.device).masked_fill_(hidden, -torch.inf)
        return self.masks[name]


def within_documents(decoder: PreTrainedModel, documents: Sequence[Document], embeds_BLD: Tensor) -> dict[str, Any]:
    """Return the arguments in place of masks with which a language model's layers attend within `documents`.

    From the first call on its layers use `_attention`, which without such arguments does what they did before. `embeds_BLD`: what the
    layers are given. Raises PlaitError for a model whose attention is not torch's.
    """
    config = decoder.config
    if config._attn_implementation != _NAME:
        if config._attn_implementation != "sdpa":
            raise PlaitError(
                f"rows are packed, or have over {LONGEST_MASK} tokens, and the language model attends by {config._attn_implementation}: "
                "load it with attn_implementation sdpa, or set data.pad=longest and a shorter data.max_tokens"
            )
        AttentionInterface.register(_NAME, _attention)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        config._attn_implementation = _NAME
    unused = torch.ones(1, 1, 1, 1, dtype=torch.bool)  # a mask of four dimensions is passed on as it is, and none is made
    kinds = set(getattr(config, "layer_types", None) or ())
    masks = dict.fromkeys(kinds, unused) if kinds - {"full_attention"} else unused
    layout = Layout(documents, numbers=numbers_of(documents))
    if "torch._dynamo" in sys.modules:  # something may be compiled: in one graph, for however many documents
        torch._dynamo.maybe_mark_dynamic(layout.numbers, 0)
    if embeds_BLD.device.type == "cuda":
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        windows = {None, getattr(config, "sliding_window", None)}
        layout.kernel = gpu_documents.prepare(embeds_BLD, documents, layout.shared, width=width, windows=windows)
    return {"attention_mask": masks, "documents": layout}


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: Any) -> tuple[Tensor, None]:
    """Return a layer's attention (B, L, H, E) as transformers has it call it: within `documents`, if there are any, else by its mask."""
    layout = how.pop("documents", None)
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **how)
    given, window = (query, key, value), how.get("sliding_window") or getattr(module, "sliding_window", None)
    if torch.compiler.is_compiling() and not how.get("dropout"):
        return _traced(given, layout, window, how.get("scaling")), None
    return _attention_within(given, layout, window, how), None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's
def _attention_within(given: gpu_documents.Given, layout: Layout, window: int | None, how: dict[str, Any]) -> Tensor:
    scale, dropout = how.get("scaling"), how.get("dropout", 0.0)
    kernel = gpu_documents.choose(given[0], layout.documents, dropout)
    if kernel != "each":
        return gpu_documents.attention(kernel, given, layout.documents, layout.shared, window=window, scale=scale)
    return _each(given, layout, window=window, scale=scale, dropout=dropout)


def _traced(given: gpu_documents.Given, layout: Layout, window: int | None, scale: float | None) -> Tensor:
    """Return what `_attention_within` does, in a compiled layer: nothing here depends on what the documents are."""
    if layout.kernel != "each":
        return gpu_documents.by_kernel(given, kernel=layout.kernel, documents=(), shared=layout.shared, window=window, scale=scale)
    assert layout.numbers is not None
    query, key, value = (each.to(gpu_documents.computed_in(each)) for each in given)
    result: Tensor = within(query, key, value, layout.numbers, window=window, scale=scale)
    return result


@torch.library.custom_op("plait::attention_within_documents", mutates_args=())
def within(query: Tensor, key: Tensor, value: Tensor, numbers: Tensor, *, window: int | None, scale: float | None) -> Tensor:
    """Return the attention (B, L, H, E) of queries, keys and values (B, H, L, E) as one operator. `numbers`: of `Layout`, on the host."""
    return _each((query, key, value), _layout(tuple(numbers.tolist())), window=window, scale=scale)


@within.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, numbers: Tensor, *, window: int | None, scale: float | None) -> Tensor:
    rows, heads, length, _ = query.shape
    return query.new_empty(rows, length, heads, value.shape[3])


@torch.library.custom_op("plait::attention_within_documents_backward", mutates_args=())
def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, numbers: Tensor, *, window: int | None, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values. The forward pass runs once more, as an operator keeps no graph of its own."""
    with torch._C._ForceDispatchKeyGuard(*_OUTSIDE), torch.enable_grad():
        given = (query.detach().requires_grad_(), key.detach().requires_grad_(), value.detach().requires_grad_())
        out = _each(given, _layout(tuple(numbers.tolist())), window=window, scale=scale)
        of_query, of_key, of_value = torch.autograd.grad(out, given, grad)
    return of_query.contiguous(), of_key.contiguous(), of_value.contiguous()


@_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, numbers: Tensor, *, window: int | None, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.how = keyword_only_inputs


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(grad, *ctx.saved_tensors, **ctx.how), None)


within.register_autograd(_gradients, setup_context=_keep)
_OUTSIDE = (torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set())
"""The state in which operators run outside of others: inside one, nothing is recorded for a backward pass."""


@functools.lru_cache(maxsize=1)
def _layout(numbers: tuple[int, ...]) -> Layout:
    """Return the documents of the micro-batch at hand, with the masks that its layers share."""
    return Layout(told_by(numbers))


def _each(given: gpu_documents.Given, layout: Layout, *, window: int | None, scale: float | None, dropout: float = 0.0) -> Tensor:
    rows, _, length, _ = given[0].shape
    query, key, value = (value if rows == 1 else value.transpose(0, 1).flatten(1, 2)[None] for value in given)
    out = attend(query, key, value, layout, window=window, scale=scale, dropout=dropout)
    result: Tensor = out[0].unflatten(1, (rows, length)).permute(1, 2, 0, 3).contiguous()
    return result


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    window: int | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Return softmax(scale query key^T) value (1, H, N, E) within each document; 0 at padding. Keys and values have H heads, or H / n.

    With a `window` a position sees those that are less than so many before it.
    """
    lengths, end = list[int](), 0
    for document in layout.documents:
        lengths += [document.start - end, document.stop - document.start]
        end = document.stop
    lengths.append(query.shape[2] - end)
    parts = [torch.split(each, lengths, dim=2) for each in (query, key, value)]  # one gradient of all, not one each
    how = _How(layout, window, scale, dropout)
    outputs = [torch.zeros_like(part) if part.shape[2] and i % 2 == 0 else part for i, part in enumerate(parts[0])]
    for members in _alike(layout.documents):
        document = layout.documents[members[0]]
        q, k, v = (torch.cat([part[2 * i + 1] for i in members]) if len(members) > 1 else part[2 * members[0] + 1] for part in parts)
        out = how.branched(q, k, v, document) if document.branches else how.whole(q, k, v, _shifted(document)[1])
        for i, one in zip(members, out.split(1), strict=True):
            outputs[2 * i + 1] = one
    return torch.cat(outputs, dim=2)


def _shifted(document: Document) -> tuple[int, tuple[Range, ...]]:
    """Return the length of a document and its blocks, counted from its start."""
    start, stop, blocks, _ = document
    return stop - start, tuple((a - start, b - start) for a, b in blocks)


def _alike(documents: Sequence[Document]) -> Iterable[list[int]]:
    """Return the indices of documents, those together that one product can compute: of one length, with blocks at the same places."""
    groups: dict[Any, list[int]] = {}
    for i, document in enumerate(documents):
        groups.setdefault(i if document.branches else _shifted(document), []).append(i)
    return groups.values()


@dataclass
class _How:
    """Attention of a document of length l, or of G that are alike, (G, H, l, E)."""

    layout: Layout
    window: int | None
    scale: float | None
    dropout: float

    def whole(self, q: Tensor, k: Tensor, v: Tensor, blocks: tuple[Range, ...]) -> Tensor:
        """Attend causally, and in `blocks` both ways."""
        length = q.shape[2]
        near = min(self.window or length, length)
        if length <= _SHORT and (blocks or near < length):
            return self.product(q, k, v, mask=self.layout.square(q, blocks, self.window))
        causal = self.product(q[:, :, :near], k[:, :, :near], v[:, :, :near], causal=True)
        if near < length:
            beyond = [self.rows(q, k, v, (a, min(a + _CHUNK, length))) for a in range(near, length, _CHUNK)]
            causal = torch.cat([causal, *beyond], dim=2)
        if not blocks:
            return causal
        pieces, end = [], 0
        for a, b in blocks:
            pieces += [causal[:, :, end:a], self.rows(q, k, v, (a, b), causal=False)]
            end = b
        return torch.cat([*pieces, causal[:, :, end:]], dim=2)

    def branched(self, q: Tensor, k: Tensor, v: Tensor, document: Document) -> Tensor:
        """Attend within what precedes the branches, and from each branch to that and itself."""
        prefix = document.branches[0][0] - document.start
        sizes = [prefix, *(b - a for a, b in document.branches)]
        (q0, *queries), (k0, *keys), (v0, *values) = (torch.split(each, sizes, dim=2) for each in (q, k, v))
        outputs = [self.whole(q0, k0, v0, ())]
        for query, key, value in zip(queries, keys, values, strict=True):
            length, seen, content = query.shape[2], torch.cat([k0, key], dim=2), torch.cat([v0, value], dim=2)
            for a in range(0, length, _CHUNK):
                chunk = (a + prefix, min(a + _CHUNK, length) + prefix)
                outputs.append(self.rows(query, seen, content, chunk, skipped=prefix))
        return torch.cat(outputs, dim=2)

    def rows(self, q: Tensor, k: Tensor, v: Tensor, chosen: Range, *, causal: bool = True, skipped: int = 0) -> Tensor:
        """Attend from the positions `chosen`, of which `q` lacks the first `skipped`, to those up to their last one, by window."""
        a, b = chosen
        low = 0 if self.window is None else max(0, a - self.window + 1)
        mask = self.layout.band(q, (b - a, b - low), a - low, causal=causal, window=self.window)
        return self.product(q[:, :, a - skipped : b - skipped], k[:, :, low:b], v[:, :, low:b], mask=mask)

    def product(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
        """Return torch's own attention. Its kernel of CPUs alone shares heads of keys and values of any type and with any mask."""
        groups = q.shape[1] // k.shape[1]
        shared = groups > 1 and q.device.type == "cpu"
        k, v = (k, v) if shared else (repeat_kv(k, groups), repeat_kv(v, groups))
        how: dict[str, Any] = {"scale": self.scale, "dropout_p": self.dropout, "enable_gqa": shared}
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, **how)
