"""The diffusion transformer: patches of noisy latents with cross-attention on text, modulated by time and a reference image.

DiT with adaLN-Zero (Peebles & Xie 2023, arXiv:2212.09748) plus cross-attention on text (PixArt-alpha, arXiv:2310.00426).
Whether its output is a velocity or a clean sample is decided in flow.py, not here. An export holds a copy of this code.
Legend: B batch, N image tokens, L text tokens (longest of the batch), T valid text tokens of the whole batch, D width, C channels,
F features of a text token, K any features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.families.nanodit.network.positions import embed_time, grid, sinusoid
from plait.families.nanodit.network.shape import Shape

Batch = dict[str, Tensor]
"""Tensors by name: `z`, `t` and what `conditions.pack` returns."""

_TIME_FEATURES = 256
_CHUNKS = 9  # shift, scale, gate for self-attention, cross-attention and the feed-forward layer
_EPS = 1e-6


class WordEmbedding(nn.Module):
    """Text features learned with the model (`text: words`): an embedding per word of the caption plus a sinusoid of its position.

    `rows`: embeddings in the table; `features`: their width F.
    """

    def __init__(self, rows: int, features: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, features)

    def forward(self, words_T: Tensor, positions_T: Tensor) -> Tensor:
        """Return features (T, F) of word ids (T,); `positions_T`: each word's position in its caption, from 0."""
        embedded: Tensor = self.table(words_T)
        return embedded + sinusoid(positions_T.float(), self.table.embedding_dim)


class Conditioning(nn.Module):
    """Projects the conditions: time and reference image to one vector (B, D), text features to width D.

    A learned null vector stands for a condition that a sample lacks. The projections of image and text have no bias: the image's would be
    added to that of `time_out`, and a constant on every text token changes no attention weight.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.time_in = nn.Linear(_TIME_FEATURES, shape.hidden)
        self.time_out = nn.Linear(shape.hidden, shape.hidden)
        self.text = nn.Linear(shape.text_dim, shape.hidden, bias=False)
        self.null_text = nn.Parameter(torch.empty(shape.text_dim))
        self.sees_image = shape.image_dim > 0
        if self.sees_image:
            self.image = nn.Linear(shape.image_dim, shape.hidden, bias=False)
            self.null_image = nn.Parameter(torch.empty(shape.image_dim))

    def vector(self, batch: Batch) -> Tensor:
        """Return the vector (B, D) that modulates all blocks, from `t` (B,), `image` (B, features) and bool `image_null` (B,)."""
        time_BD: Tensor = self.time_out(F.silu(self.time_in(embed_time(batch["t"].float(), _TIME_FEATURES))))
        if not self.sees_image:
            return time_BD
        image = torch.where(batch["image_null"][:, None], self.null_image, batch["image"].to(self.null_image.dtype))
        image_BD: Tensor = self.image(image)
        return time_BD + image_BD

    def tokens(self, features_TF: Tensor, null_T: Tensor) -> Tensor:
        """Project text features (T, F) to (T, D); where bool `null_T` is True, the result is a learned token for "no caption"."""
        projected: Tensor = self.text(torch.where(null_T[:, None], self.null_text, features_TF.to(self.null_text.dtype)))
        return projected


class Attention(nn.Module):
    """Multi-head attention without biases. The layer `kv` makes keys and values, of the same tokens or of others."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BND: Tensor, kv_BL2D: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Attend from `x_BND`; return (B, N, D). `kv_BL2D`: output of `kv` for the other tokens; `mask_BL`: True: attend; None: to all."""
        k, v = kv_BL2D.chunk(2, dim=-1)
        allowed = None if mask_BL is None else mask_BL[:, None, None]
        attended = F.scaled_dot_product_attention(self._split(self.q(x_BND)), self._split(k), self._split(v), attn_mask=allowed)
        projected: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return projected

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """A transformer block: self-attention, cross-attention and a feed-forward layer, each modulated by the condition (adaLN-Zero)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.hidden
        self.modulation = nn.Linear(width, _CHUNKS * width)
        self.attention = Attention(width, shape.heads)
        self.cross = Attention(width, shape.heads)
        self.up = nn.Linear(width, shape.mlp, bias=False)
        self.down = nn.Linear(shape.mlp, width, bias=False)

    def forward(self, x_BND: Tensor, condition_BD: Tensor, text_TD: Tensor, index_T: Tensor, mask_BL: Tensor) -> Tensor:
        """Return updated image tokens (B, N, D). `index_T`: index of each text token in the flattened `mask_BL` of valid text tokens.

        `text_TD`: projected text tokens of all rows. `condition_BD`: vector of time and image. Rows without text get no cross-attention.
        """
        modulation_BK: Tensor = self.modulation(F.silu(condition_BD))
        parts = modulation_BK[:, None].chunk(_CHUNKS, dim=-1)
        inner = modulate(x_BND, parts[0], parts[1])
        x_BND = x_BND + parts[2] * self.attention(inner, self.attention.kv(inner))
        kv_BL2D = pad_tokens(self.cross.kv(text_TD), index_T, mask_BL)
        read = self.cross(modulate(x_BND, parts[3], parts[4]), kv_BL2D, open_empty_rows(mask_BL))
        x_BND = x_BND + parts[5] * (read * mask_BL.any(1)[:, None, None])
        update: Tensor = self.down(F.gelu(self.up(modulate(x_BND, parts[6], parts[7])), approximate="tanh"))
        return x_BND + parts[8] * update


class Final(nn.Module):
    """The final norm, modulated by the condition, and the projection to patches, which is zero at initialisation.

    The modulation has two vectors instead of a matrix D x 2D: each channel is shifted and scaled by its own channel of the condition.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape.hidden))
        self.scale = nn.Parameter(torch.zeros(shape.hidden))
        self.out = nn.Linear(shape.hidden, shape.channels * shape.patch**2)

    def forward(self, x_BND: Tensor, condition_BD: Tensor) -> Tensor:
        """Return predicted patches (B, N, C * patch * patch), the input of `from_patches`."""
        condition = F.silu(condition_BD)[:, None]
        patches: Tensor = self.out(modulate(x_BND, self.shift * condition, self.scale * condition))
        return patches


class NanoDiT(nn.Module):
    """The network: from noisy samples `z`, times `t` and conditions to a tensor of the shape of `z` (velocity or clean sample)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.patch, self.hidden, self.centred = shape.patch, shape.hidden, shape.centre_positions
        self.embed = nn.Linear(shape.channels * shape.patch**2, shape.hidden)
        self.text = WordEmbedding(shape.words, shape.text_dim) if shape.text == "words" else None
        self.conditioning = Conditioning(shape)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.final = Final(shape)

    def forward(self, batch: Batch) -> Tensor:
        """Return velocity or clean sample (as `prediction` says), for noisy `z` at times `t` (B,); both (B, C, H, W).

        `batch` also has the conditions packed by `Inputs.pack`.
        """
        z, patch = batch["z"], self.patch
        high, wide = z.shape[-2] // patch, z.shape[-1] // patch
        position_ND = grid(high, wide, self.hidden, centred=self.centred, device=z.device)
        x_BND = self.embed(to_patches(z, patch)) + position_ND
        condition_BD = self.conditioning.vector(batch)
        features_TF = batch["text"] if self.text is None else self.text(batch["text"], batch["text_index"] % batch["text_mask"].shape[1])
        text_TD = self.conditioning.tokens(features_TF, batch["text_null"])
        for block in self.blocks:
            x_BND = block(x_BND, condition_BD, text_TD, batch["text_index"], batch["text_mask"])
        return from_patches(self.final(x_BND, condition_BD), patch, high, wide)


def modulate(x_BND: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Apply adaLN: LayerNorm without parameters, then x (1 + scale) + shift; `shift` and `scale` are (B, 1, D)."""
    return F.layer_norm(x_BND, x_BND.shape[-1:], eps=_EPS) * (1 + scale) + shift


def pad_tokens(values_TK: Tensor, index_T: Tensor, mask_BL: Tensor) -> Tensor:
    """Scatter the batch's valid tokens (T, K) into zeros (B, L, K). `index_T`: the index of each in the flattened `mask_BL` (B, L)."""
    rows, length = mask_BL.shape
    empty = values_TK.new_zeros(rows * length, values_TK.shape[-1])
    return torch.unflatten(empty.index_copy(0, index_T, values_TK), 0, (rows, length))


def open_empty_rows(mask_BL: Tensor) -> Tensor:
    """Return the mask with all-False rows set to True (softmax over them is NaN in some kernels); the caller zeroes their output."""
    return mask_BL | ~mask_BL.any(1, keepdim=True)


def to_patches(x_BCHW: Tensor, patch: int) -> Tensor:
    """Cut (B, C, H, W) into patches (B, N, C * patch * patch), in reading order."""
    cells = torch.unflatten(torch.unflatten(x_BCHW, -1, (-1, patch)), -3, (-1, patch))  # B C h p w q
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)


def from_patches(x_BNK: Tensor, patch: int, high: int, wide: int) -> Tensor:
    """Reassemble patches (B, N, C * patch * patch) of high x wide tokens to (B, C, H, W). The inverse of `to_patches`."""
    cells = torch.unflatten(torch.unflatten(x_BNK, -1, (-1, patch, patch)), 1, (high, wide))  # B h w C p q
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(-2).flatten(2, 3)
