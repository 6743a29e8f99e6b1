"""Cross-entropy of chunks of positions, with its gradients: the code for what `torch.nn.functional.linear_cross_entropy` does not do.

`losses.py` has the function that is called, and says when this is used. Legend: N positions, D width, V words.
"""

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Chunking(NamedTuple):
    """Settings of how logits are computed: their `softcap` or None, the types of `product` and `sums`, and `positions` at a time.

    `shared`: the weight that the head is, where `at_once` gave the head.
    """

    softcap: float | None
    product: torch.dtype
    sums: torch.dtype
    positions: int
    shared: Tensor | None = None


LARGE = 1 << 24
"""Weights of a head, from which its gradient is not left waiting."""


def at_once(head_VD: Tensor) -> Tensor:
    """Return a head that is the embedding too as a leaf of its own, whose gradient goes to `head_VD.grad` at once.

    Autograd adds the gradients of all uses before it keeps any: the head's, 2.7 GB of 262,208 words, would wait through the whole backward
    pass for the embedding's, and then be one of three of that size.
    """
    leaf = head_VD.detach().requires_grad_()
    leaf.register_post_accumulate_grad_hook(functools.partial(_add, head_VD))
    return leaf


def _add(head_VD: Tensor, leaf: Tensor) -> None:
    gradient, leaf.grad = leaf.grad, None
    if head_VD.grad is None:
        head_VD.grad = gradient
    elif gradient is not None:
        head_VD.grad += gradient


def gradient_of(ctx: Any, head_VD: Tensor, shared: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, bool]:
    """Return the tensor to which chunks add gradients of the head, in `dtype`, and whether it is `shared.grad` itself.

    `ctx`: of a function whose second input is the head. None: that wants no gradient, in this pass.
    """
    if not ctx.needs_input_grad[1]:
        return None, False
    present = None if shared is None else shared.grad
    if present is not None and present.dtype == dtype and torch._C._will_engine_execute_node(ctx.next_functions[1][0]):
        return present, True
    return torch.zeros_like(head_VD, dtype=dtype), False


class ChunkedCrossEntropy(torch.autograd.Function):
    """Forward keeps one log-normaliser per position; backward recomputes each chunk's logits: d loss / d logits = softmax - onehot."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, how: Chunking) -> Tensor:
        """Return the summed cross-entropy of positions that all have a target."""
        ctx.how, ctx.head_dtype = how, head_VD.dtype
        head = head_VD.to(how.product)
        total = torch.zeros((), dtype=how.sums, device=hidden_ND.device)
        normalisers = []
        for hidden, target in zip(torch.split(hidden_ND, how.positions), torch.split(target_N, how.positions), strict=True):
            logits = _logits(hidden, head, how)
            normalisers.append(logits.logsumexp(-1))
            total += (normalisers[-1] - logits.gather(-1, target[:, None])[:, 0]).sum()
        ctx.save_for_backward(hidden_ND, head, target_N, torch.cat(normalisers))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the hidden states and of the head."""
        hidden_ND, head, target_N, normaliser_N = ctx.saved_tensors
        how: Chunking = ctx.how
        grad_hidden = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        grad_head, kept = gradient_of(ctx, head, how.shared, normaliser_N.dtype)
        for start in range(0, len(target_N), how.positions):
            chunk = slice(start, start + how.positions)
            hidden = hidden_ND[chunk].to(how.product)
            logits = _logits(hidden, head, how)
            slope = (logits - normaliser_N[chunk, None]).exp_()
            slope.scatter_add_(-1, target_N[chunk, None], slope.new_full((len(slope), 1), -1.0))
            if how.softcap is not None:
                slope *= 1 - (logits / how.softcap) ** 2  # d (c tanh(z / c)) / dz
            slope = (slope * grad).to(how.product)
            if grad_hidden is not None:
                grad_hidden[chunk] = slope @ head
            if grad_head is not None:
                grad_head += slope.T @ hidden
        return grad_hidden, None if grad_head is None or kept else grad_head.to(ctx.head_dtype), None, None


def _logits(hidden: Tensor, head: Tensor, how: Chunking) -> Tensor:
    logits = F.linear(hidden.to(how.product), head).to(how.sums)
    return logits if how.softcap is None else how.softcap * torch.tanh(logits / how.softcap)
