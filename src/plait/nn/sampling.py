"""Choosing the next token from logits: the likeliest, or a draw given from outside, so that a row's text does not depend on its batch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def pick(logits_BV: Tensor, *, temperature: float = 0.0, top_p: float = 1.0, draws: Sequence[float] = ()) -> Tensor:
    """(B,): the likeliest token, or the one where a row's draw in [0, 1) falls in the distribution cut to `top_p`.

    The cut keeps the likeliest tokens until their probability exceeds `top_p` (nucleus sampling, arXiv:1904.09751).
    """
    if temperature == 0.0:
        return logits_BV.argmax(-1)
    assert len(draws) == len(logits_BV), "sampling needs one draw per row"
    probability, order = (logits_BV.double() / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = probability.cumsum(-1) - probability
    kept = torch.where(before < top_p, probability, 0.0).cumsum(-1)
    draw = torch.tensor(draws, dtype=kept.dtype, device=kept.device)[:, None] * kept[:, -1:]
    return order.gather(-1, (kept <= draw).sum(-1, keepdim=True).clamp(max=kept.shape[-1] - 1))[:, 0]
