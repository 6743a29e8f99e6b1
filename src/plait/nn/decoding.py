"""Token-by-token decoding of a batch over a key-value cache: greedy, or nucleus sampling with a seed per row.

The model implements `CachedModel`; images, masks and positions are handled there. A row's tokens do not depend on the other rows of its
batch. Legend: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from plait.keys import rng


class CachedModel(Protocol):
    """A language model together with the prompts of one batch and its key-value cache, which `prefill` fills and `advance` extends."""

    def prefill(self) -> Tensor:
        """Process the prompts; return the logits (B, V) of the first new token."""

    def advance(self, token_B: Tensor) -> Tensor:
        """Append one token, `token_B` (B,), to each row; return the logits (B, V) of the next."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the likeliest at temperature 0, else nucleus sampling with `top_p`.

    `keys`: a seed per row of the batch, needed unless the temperature is 0.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    keys: Sequence[int] = ()


GREEDY = Sampling()
"""Always the likeliest token."""


@torch.no_grad()
def decode(model: CachedModel, *, max_new_tokens: Sequence[int], stops: frozenset[int], sampling: Sampling = GREEDY) -> list[list[int]]:
    """Generate up to `max_new_tokens[row]` tokens for each row of prompts in `model`; return the new token ids of each row.

    They end before the row's first token in `stops`. `sampling`: how each token is chosen; by default the likeliest.
    """
    assert stops, "without a stop token no row could end before its limit"
    logits_BV = model.prefill()
    stop_S = torch.tensor(sorted(stops), device=logits_BV.device)
    limit_B = torch.tensor(max_new_tokens, device=logits_BV.device)
    running_B = limit_B > 0
    chosen: list[Tensor] = []
    for count in range(max(max_new_tokens)):
        draws = [rng(key, count).random() for key in sampling.keys]
        token_B = choose_tokens(logits_BV.float(), sampling.temperature, sampling.top_p, draws)
        chosen.append(torch.where(running_B, token_B, stop_S[0]))
        running_B = running_B & ~torch.isin(token_B, stop_S) & (limit_B > count + 1)
        if not running_B.any():
            break
        logits_BV = model.advance(token_B)
    rows = torch.stack(chosen, dim=1).tolist()
    return [row[: next((i for i, token in enumerate(row) if token in stops), len(row))] for row in rows]


def choose_tokens(logits_BV: Tensor, temperature: float = 0.0, top_p: float = 1.0, draws: Sequence[float] = ()) -> Tensor:
    """Choose a token id per row (B,) by logits (B, V): the likeliest, or for a temperature above 0 one drawn.

    `draws`: a random number in [0, 1) per row, which selects the token.
    Nucleus sampling (Holtzman et al. 2019, arXiv:1904.09751): tokens are kept, likeliest first, until their probability exceeds `top_p`.
    """
    if temperature == 0.0:
        return logits_BV.argmax(-1)
    assert len(draws) == len(logits_BV), "sampling needs one draw per row"
    probability_BV, order_BV = (logits_BV.double() / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    before_BV = probability_BV.cumsum(-1) - probability_BV
    kept_BV = torch.where(before_BV < top_p, probability_BV, 0.0).cumsum(-1)
    draw_B1 = torch.tensor(draws, dtype=kept_BV.dtype, device=kept_BV.device)[:, None] * kept_BV[:, -1:]
    return order_BV.gather(-1, (kept_BV <= draw_B1).sum(-1, keepdim=True).clamp(max=kept_BV.shape[-1] - 1))[:, 0]
