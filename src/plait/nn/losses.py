"""Token cross-entropy computed without the full logits, which would be 1.07 GB in float32 for 262,208 words x 1,024 positions, three times.

Logits are computed for chunks of the positions that have a target, and again in the backward pass.
`torch.nn.functional.linear_cross_entropy` (torch 2.13) is used where possible; the code here with older versions, soft-capped logits, and
16-bit products, whose sum torch returns in 16 bits as well: 3 digits of a loss, and no more than 65,504 nats in float16.
`weighted.py` has the sum with a weight per position. Legend: N positions, D width, V words.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

IGNORED = -100
"""The label of positions that the loss does not count."""
CHUNK_POSITIONS = 256


def token_cross_entropy(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, *, softcap: float | None = None) -> Tensor:
    """Return the cross-entropy of N positions, summed over those that are supervised, in nats.

    Logits (N, V) are those of hidden states (N, D) and an output head (V, D); `target_N`: token ids (N,), or IGNORED where unsupervised.
    The sum over n with target_n != IGNORED (-100) of -log softmax(head @ hidden_n)[target_n]: a float32 scalar (float64 for such inputs).
    `softcap` c replaces logits z by c tanh(z / c). Without a supervised position the result is exactly 0, with gradients of zero. Under
    autocast the products are computed in its dtype.
    """
    if has_torch_function(factors := (hidden_ND, head_VD, target_N)):  # a FLOP counter sees one product; chunks have no gradients
        counted: Tensor = handle_torch_function(token_cross_entropy, factors, *factors, softcap=softcap)
        return counted
    supervised = target_N != IGNORED
    hidden_ND, target_N = hidden_ND[supervised], target_N[supervised]
    device = hidden_ND.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head_VD.dtype
    if len(target_N) == 0:
        return (hidden_ND.sum() + head_VD[:0].sum()).to(_sum_dtype(product))
    chunked: Callable[..., Tensor] = _Chunked.apply
    with torch.autocast(device, enabled=False):
        if softcap is None and product.itemsize >= torch.float32.itemsize and hasattr(F, "linear_cross_entropy"):
            return _torch_cross_entropy(hidden_ND.to(product), head_VD.to(product), target_N)
        return chunked(hidden_ND, head_VD, target_N, softcap, product)


def _torch_cross_entropy(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor) -> Tensor:
    # The defaults of the options would not cut positions into chunks.
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK_POSITIONS, chunking_method=None)
    total: Tensor = F.linear_cross_entropy(hidden_ND, head_VD, target_N, reduction="sum", options=options)
    return total.to(_sum_dtype(hidden_ND.dtype))


class _Chunked(torch.autograd.Function):
    """Forward keeps one log-normaliser per position; backward recomputes each chunk's logits: d loss / d logits = softmax - onehot."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, softcap: float | None, product: torch.dtype) -> Tensor:
        ctx.softcap, ctx.product = softcap, product
        head = head_VD.to(product)
        total = torch.zeros((), dtype=_sum_dtype(product), device=hidden_ND.device)
        normalisers = []
        for hidden, target in zip(torch.split(hidden_ND, CHUNK_POSITIONS), torch.split(target_N, CHUNK_POSITIONS), strict=True):
            logits = _logits(hidden.to(product), head, softcap)
            normalisers.append(logits.logsumexp(-1))
            total += (normalisers[-1] - logits.gather(-1, target[:, None])[:, 0]).sum()
        ctx.save_for_backward(hidden_ND, head_VD, target_N, torch.cat(normalisers))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, head_VD, target_N, normaliser_N = ctx.saved_tensors
        head = head_VD.to(ctx.product)
        grad_hidden = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        grad_head = torch.zeros_like(head_VD, dtype=normaliser_N.dtype) if ctx.needs_input_grad[1] else None
        for start in range(0, len(target_N), CHUNK_POSITIONS):
            chunk = slice(start, start + CHUNK_POSITIONS)
            hidden = hidden_ND[chunk].to(ctx.product)
            logits = _logits(hidden, head, ctx.softcap)
            slope = (logits - normaliser_N[chunk, None]).exp_()
            slope.scatter_add_(-1, target_N[chunk, None], slope.new_full((len(slope), 1), -1.0))
            if ctx.softcap is not None:
                slope *= 1 - (logits / ctx.softcap) ** 2  # d (c tanh(z / c)) / dz
            slope = (slope * grad).to(ctx.product)
            if grad_hidden is not None:
                grad_hidden[chunk] = slope @ head
            if grad_head is not None:
                grad_head += slope.T @ hidden
        return grad_hidden, None if grad_head is None else grad_head.to(head_VD.dtype), None, None, None


def _logits(hidden: Tensor, head: Tensor, softcap: float | None) -> Tensor:
    logits = F.linear(hidden, head).to(_sum_dtype(head.dtype))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _sum_dtype(product: torch.dtype) -> torch.dtype:
    return torch.float64 if product == torch.float64 else torch.float32
