"""Token cross-entropy computed without the full logits, which would be 1.07 GB in float32 for 262,208 words x 1,024 positions, three times.

Logits are computed for chunks of the positions that have a target, and again in the backward pass.
`torch.nn.functional.linear_cross_entropy` (torch 2.13) is used where possible; `chunked.py` with older versions, soft-capped logits, and
16-bit products, whose sum torch returns in 16 bits as well: 3 digits of a loss, and no more than 65,504 nats in float16.
`weighted.py` has the sum with a weight per position. Legend: N positions, D width, V words.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from plait.nn import chunked

IGNORED = -100
"""The label of positions that the loss does not count."""
CHUNK_POSITIONS = 256


def token_cross_entropy(
    hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, *, softcap: float | None = None, places_S: Tensor | None = None, tie: bool = False
) -> Tensor:
    """Return the cross-entropy of N positions, summed over those that are supervised, in nats.

    Logits (N, V) are those of hidden states (N, D) and an output head (V, D); `target_N`: token ids (N,), or IGNORED where unsupervised.
    The sum over n with target_n != IGNORED (-100) of -log softmax(head @ hidden_n)[target_n]: a float32 scalar (float64 for such inputs).
    `softcap` c replaces logits z by c tanh(z / c). Without a supervised position the result is exactly 0, with gradients of zero. Under
    autocast the products are computed in its dtype. `places_S`: the indices of all supervised positions; None: they are looked for, for
    which the host waits for the device. `tie`: `head_VD` is the embedding too; the gradient of a large one is added to its `grad` at once.
    """
    if has_torch_function(factors := (hidden_ND, head_VD, target_N)):  # a FLOP counter sees one product; chunks have no gradients
        counted: Tensor = handle_torch_function(token_cross_entropy, factors, *factors, softcap=softcap, places_S=places_S, tie=tie)
        return counted
    places_S = (target_N != IGNORED).nonzero()[:, 0] if places_S is None else places_S
    hidden_ND, target_N = hidden_ND.index_select(0, places_S), target_N.index_select(0, places_S)
    device = hidden_ND.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head_VD.dtype
    if len(target_N) == 0:
        return (hidden_ND.sum() + head_VD[:0].sum()).to(_sum_dtype(product))
    shared = head_VD if tie and head_VD.requires_grad and torch.is_grad_enabled() and head_VD.numel() >= chunked.LARGE else None
    head_VD = head_VD if shared is None else chunked.at_once(shared)
    apply: Callable[..., Tensor] = chunked.ChunkedCrossEntropy.apply
    with torch.autocast(device, enabled=False):
        if softcap is None and product.itemsize >= torch.float32.itemsize and hasattr(F, "linear_cross_entropy"):
            return _torch_cross_entropy(hidden_ND.to(product), head_VD.to(product), target_N)
        return apply(hidden_ND, head_VD, target_N, chunked.Chunking(softcap, product, _sum_dtype(product), CHUNK_POSITIONS, shared))


def _torch_cross_entropy(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK_POSITIONS, chunking_method=None)  # the defaults do not chunk
    total: Tensor = F.linear_cross_entropy(hidden_ND, head_VD, target_N, reduction="sum", options=options)
    return total.to(_sum_dtype(hidden_ND.dtype))


def _sum_dtype(product: torch.dtype) -> torch.dtype:
    return torch.float64 if product == torch.float64 else torch.float32
