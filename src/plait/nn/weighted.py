"""Token cross-entropy with a weight per position, and its z-loss, computed without the full logits.

Logits are computed for chunks of the positions that have a weight, and again in the backward pass: 152,064 words times 2,304 positions
would be 1.4 GB in float32, several times over. `losses.py` has the unweighted sum. N positions, D width, V words.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from plait.nn import chunked

CHUNK_POSITIONS = 256


def weighted_cross_entropy(
    hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, weight_N: Tensor, *, places_S: Tensor | None = None, tie: bool = False
) -> tuple[Tensor, Tensor]:
    """Return (cross-entropy in nats, z-loss), each a sum over N positions weighted by `weight_N`, as scalars.

    Logits (N, V) are those of hidden states (N, D) and an output head (V, D); `target_N`: token ids (N,).
    Sums over positions with w_n > 0 of w_n (Z_n - z_n) and of w_n Z_n^2, with z_n the target's logit and Z_n = logsumexp of all logits;
    the second is the z-loss of PaLM (Chowdhery et al. 2022, section 5). Float32 scalars (float64 for float64 inputs). Without a weighted
    position both are exactly 0, with gradients of zero. Under autocast the products are computed in its dtype. `places_S`: the indices of
    all positions with a weight; None: they are looked for, for which the host waits for the device. `tie`: as of `token_cross_entropy`.
    """
    if has_torch_function(factors := (hidden_ND, head_VD, target_N, weight_N)):  # a FLOP counter sees one product with its gradients
        counted: tuple[Tensor, Tensor] = handle_torch_function(weighted_cross_entropy, factors, *factors, places_S=places_S, tie=tie)
        return counted
    places_S = (weight_N > 0).nonzero()[:, 0] if places_S is None else places_S
    hidden_ND, target_N, weight_N = (value.index_select(0, places_S) for value in (hidden_ND, target_N, weight_N))
    device = hidden_ND.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head_VD.dtype
    wide = torch.float64 if product == torch.float64 else torch.float32
    if len(target_N) == 0:
        zero = (hidden_ND.sum() + head_VD[:0].sum()).to(wide)
        return zero, zero
    shared = head_VD if tie and head_VD.requires_grad and torch.is_grad_enabled() and head_VD.numel() >= chunked.LARGE else None
    head_VD = head_VD if shared is None else chunked.at_once(shared)
    apply: Callable[..., tuple[Tensor, Tensor]] = _Chunked.apply
    with torch.autocast(device, enabled=False):
        return apply(hidden_ND, head_VD, target_N, weight_N.to(wide), (product, shared))


class _Chunked(torch.autograd.Function):
    """d loss / d logits = w (softmax - onehot);  d z_loss / d logits = 2 w Z softmax."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, weight_N: Tensor, how: tuple[torch.dtype, Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        product, ctx.shared = how
        ctx.head_dtype, wide = head_VD.dtype, weight_N.dtype
        head = head_VD.to(product)
        normalisers, chosen = [], []
        for hidden, target in zip(torch.split(hidden_ND, CHUNK_POSITIONS), torch.split(target_N, CHUNK_POSITIONS), strict=True):
            logits = F.linear(hidden.to(product), head).to(wide)
            normalisers.append(logits.logsumexp(-1))
            chosen.append(logits.gather(-1, target[:, None])[:, 0])
        normaliser_N = torch.cat(normalisers)
        ctx.save_for_backward(hidden_ND, head, target_N, weight_N, normaliser_N)
        return (weight_N * (normaliser_N - torch.cat(chosen))).sum(), (weight_N * normaliser_N**2).sum()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, grad_z: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, head, target_N, weight_N, normaliser_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        grad_head, kept = torch.zeros_like(head, dtype=weight_N.dtype) if ctx.needs_input_grad[1] else None, False
        if ctx.shared is not None:
            grad_head, kept = chunked.gradient_of(ctx, head, ctx.shared, weight_N.dtype)
        for start in range(0, len(target_N), CHUNK_POSITIONS):
            chunk = slice(start, start + CHUNK_POSITIONS)
            hidden, weight, normaliser = hidden_ND[chunk].to(head.dtype), weight_N[chunk, None], normaliser_N[chunk, None]
            slope = (F.linear(hidden, head).to(weight_N.dtype) - normaliser).exp_()
            slope *= weight * (grad_loss + 2 * grad_z * normaliser)
            slope.scatter_add_(-1, target_N[chunk, None], -weight * grad_loss)
            slope = slope.to(head.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = (slope @ head).to(grad_hidden.dtype)
            if grad_head is not None:
                grad_head += slope.T @ hidden
        return grad_hidden, None if grad_head is None or kept else grad_head.to(ctx.head_dtype), None, None, None
