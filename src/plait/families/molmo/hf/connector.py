"""The connector from patch features to the language model's embeddings: padding marks, attention pooling of 2 x 2 patches, SwiGLU.

It also holds the extra embedding rows: those of the image tokens, which have no rows in the output head.
Legend: n crops, P patches per crop, F = 2 hidden features per patch, T image tokens, K = 4 patches of a pool, widths E (tower), D (LM).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.families.molmo.hf.sizes import EXTRA_ROWS, Tower

_SWIGLU_RMS = 0.5964  # of silu(a) b for independent standard normal a and b: sqrt(E silu(a)^2), E = 0.3557 by quadrature


class MeanQueryPooling(nn.Module):
    """Pools K patches (T, K, `features`) to one vector (T, `hidden`) by attention. Query: the mean of those where bool (T, K) is True."""

    def __init__(self, features: int, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv = (nn.Linear(features, hidden) for _ in range(3))
        self.wo = nn.Linear(hidden, hidden)

    def forward(self, pools_TKF: Tensor, real_TK: Tensor) -> Tensor:
        """Pool patch features (T, K, F) to (T, E). Bool `real_TK`: patches that exist, at least one in each pool, or it gives NaN."""
        count_T1 = real_TK.sum(-1, keepdim=True)
        query_T1F = ((pools_TKF * real_TK[..., None]).sum(1) / count_T1)[:, None]
        q, k, v = (self._split_heads(x) for x in (self.wq(query_T1F), self.wk(pools_TKF), self.wv(pools_TKF)))
        pooled = F.scaled_dot_product_attention(q, k, v, attn_mask=real_TK[:, None, None, :])
        output_TE: Tensor = self.wo(pooled.transpose(1, 2).flatten(2))[:, 0]
        return output_TE

    def _split_heads(self, x_TKE: Tensor) -> Tensor:
        return torch.unflatten(x_TKE, -1, (self.heads, -1)).transpose(1, 2)


class Projector(nn.Module):
    """The SwiGLU layer w2(silu(w1 x) * w3 x), without biases (Shazeer 2020), from width `features` through `inner` to `hidden`."""

    def __init__(self, features: int, inner: int, hidden: int):
        super().__init__()
        self.w1, self.w3 = nn.Linear(features, inner, bias=False), nn.Linear(features, inner, bias=False)
        self.w2 = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., features) to (..., hidden)."""
        output: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return output


class Connector(nn.Module):
    """Turns patch features into one vector per image token, which the model adds to the embedding of the token `<im_patch>`.

    `tower`: whose features; `inner`: width inside the projector; `hidden`: D, of the vectors; `scale`: their root mean square at first.
    """

    def __init__(self, tower: Tower, inner: int, hidden: int, scale: float):
        super().__init__()
        features = tower.hidden * len(tower.features)
        self.pooling = MeanQueryPooling(features, tower.hidden, tower.heads)
        self.projector = Projector(tower.hidden, inner, hidden)
        self.pad_embed = nn.Parameter(torch.zeros(2, features))
        self.new_embedding = nn.Parameter(torch.empty(EXTRA_ROWS, hidden))
        nn.init.normal_(self.new_embedding, std=scale)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.projector.w2.weight, std=scale / _SWIGLU_RMS * inner**-0.5)

    def forward(self, features_nPF: Tensor, real_nP: Tensor, pools_TK: Tensor) -> Tensor:
        """Return vectors (T, D) of the image tokens of n crops. `pools_TK`: the 4 patches of each, as indices into n * P; -1: none.

        `real_nP`: fraction of each patch that is image, not padding; at 0 the first pad embedding is added, else below 1 the second.
        """
        marks_nP2 = torch.stack([real_nP == 0, (real_nP != 0) & (real_nP < 1)], dim=-1)
        weight = self.pooling.wq.weight
        features_nPF = features_nPF.to(weight.dtype)
        features_nPF = features_nPF + marks_nP2.to(features_nPF.dtype) @ self.pad_embed.to(features_nPF.dtype)
        pools_TKF = features_nPF.flatten(0, 1)[pools_TK.clamp(min=0)]
        embeds_TD: Tensor = self.projector(self.pooling(pools_TKF, pools_TK >= 0))
        return embeds_TD

    def embed(self, ids_BL: Tensor, words: nn.Module, rows: int) -> Tensor:
        """Return embeddings (B, L, D). Ids below `rows` have those of `words`, the language model's own; the others, the extra rows."""
        extra_BL = ids_BL >= rows
        words_BLD: Tensor = words(ids_BL.masked_fill(extra_BL, 0))
        extra_BLD = F.embedding((ids_BL - rows).clamp(min=0), self.new_embedding).to(words_BLD.dtype)
        return torch.where(extra_BL[..., None], extra_BLD, words_BLD)


def add_features(embeds_BLD: Tensor, features_TD: Tensor, positions_T: Tensor) -> Tensor:
    """Add the vectors of image tokens to the embeddings, in order, at T of the B L positions."""
    assert len(positions_T) == len(features_TD), f"{len(positions_T)} positions for {len(features_TD)} image tokens"
    return embeds_BLD.flatten(0, 1).index_add(0, positions_T, features_TD.to(embeds_BLD.dtype)).view_as(embeds_BLD)
