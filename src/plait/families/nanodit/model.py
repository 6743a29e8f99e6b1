"""The transformer: patches of noisy latents attend to each other and to text; time and a reference image modulate every block.

DiT with adaLN-Zero (Peebles & Xie 2023, arXiv:2212.09748) plus cross-attention on text (PixArt-alpha, arXiv:2310.00426).
It knows nothing of what its output means: velocity or clean sample is decided in flow.py.
Legend: B batch, N image tokens, L text tokens (longest of the batch), T valid text tokens of the batch, D width, C channels.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.families.nanodit import positions
from plait.families.nanodit.config import Config
from plait.keys import key
from plait.nn.connectors import seeded

Batch = dict[str, Tensor]

_TIME_FEATURES = 256
_CHUNKS = 9  # shift, scale, gate for self-attention, cross-attention and the feed-forward layer
_EPS = 1e-6


class Text(nn.Module):
    """Text features learned with the model (`text: words`): a row per word of the caption, and the word's place."""

    def __init__(self, rows: int, features: int):
        super().__init__()
        self.table = nn.Embedding(rows, features)

    def forward(self, words_T: Tensor, places_T: Tensor) -> Tensor:
        return self.table(words_T) + positions.sinusoid(places_T.float(), self.table.embedding_dim)


class Conditioning(nn.Module):
    """Time and reference image to one vector (B, D); text features to width D. What a sample lacks is a learned null vector.

    The projections of image and text have no bias: that of the time's second matrix is added to the same sum as the image's,
    and a constant on every text token moves no attention weight.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.time_in = nn.Linear(_TIME_FEATURES, config.hidden)
        self.time_out = nn.Linear(config.hidden, config.hidden)
        self.text = nn.Linear(config.text_dim, config.hidden, bias=False)
        self.null_text = nn.Parameter(torch.empty(config.text_dim))
        self.sees_image = config.image_dim > 0
        if self.sees_image:
            self.image = nn.Linear(config.image_dim, config.hidden, bias=False)
            self.null_image = nn.Parameter(torch.empty(config.image_dim))

    def vector(self, batch: Batch) -> Tensor:
        """(B, D) from `t` (B,), `image` (B, features) and `image_null` (B,)."""
        found = self.time_out(F.silu(self.time_in(positions.time(batch["t"].float(), _TIME_FEATURES))))
        if not self.sees_image:
            return found
        image = torch.where(batch["image_null"][:, None], self.null_image, batch["image"].to(self.null_image.dtype))
        return found + self.image(image)

    def tokens(self, features_TF: Tensor, null_T: Tensor) -> Tensor:
        """(T, D); where `null_T`, the one token that stands for no caption."""
        return self.text(torch.where(null_T[:, None], self.null_text, features_TF.to(self.null_text.dtype)))


class Attention(nn.Module):
    """Multi-head attention of tokens (B, N, D) on themselves, or on given keys and values; no biases."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BND: Tensor, kv_BL2D: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        k, v = kv_BL2D.chunk(2, dim=-1)
        allowed = None if mask_BL is None else mask_BL[:, None, None]
        found = F.scaled_dot_product_attention(self._split(self.q(x_BND)), self._split(k), self._split(v), attn_mask=allowed)
        return self.out(found.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer, each shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, config: Config):
        super().__init__()
        width = config.hidden
        self.modulation = nn.Linear(width, _CHUNKS * width)
        self.attention = Attention(width, config.heads)
        self.cross = Attention(width, config.heads)
        self.up = nn.Linear(width, config.mlp, bias=False)
        self.down = nn.Linear(config.mlp, width, bias=False)

    def forward(self, x_BND: Tensor, condition_BD: Tensor, text_TD: Tensor, places_T: Tensor, mask_BL: Tensor) -> Tensor:
        parts = self.modulation(F.silu(condition_BD))[:, None].chunk(_CHUNKS, dim=-1)
        inner = modulate(x_BND, parts[0], parts[1])
        x_BND = x_BND + parts[2] * self.attention(inner, self.attention.kv(inner))
        read = self.cross(modulate(x_BND, parts[3], parts[4]), spread(self.cross.kv(text_TD), places_T, mask_BL), attendable(mask_BL))
        x_BND = x_BND + parts[5] * (read * mask_BL.any(1)[:, None, None])
        inner = self.down(F.gelu(self.up(modulate(x_BND, parts[6], parts[7])), approximate="tanh"))
        return x_BND + parts[8] * inner


class Final(nn.Module):
    """The last norm, shifted and scaled by the condition channel by channel, and the matrix to patches: zero at the start.

    Two vectors instead of a matrix D x 2D: every channel learns how much of its own condition it takes.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(config.hidden))
        self.scale = nn.Parameter(torch.zeros(config.hidden))
        self.out = nn.Linear(config.hidden, config.channels * config.patch**2)

    def forward(self, x_BND: Tensor, condition_BD: Tensor) -> Tensor:
        condition = F.silu(condition_BD)[:, None]
        return self.out(modulate(x_BND, self.shift * condition, self.scale * condition))


class NanoDiT(nn.Module):
    """`forward(batch)`: the network's output, (B, C, H, W), for noisy samples `z` at times `t` under the batch's conditions."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.channels * config.patch**2, config.hidden)
        self.text = Text(config.words, config.text_dim) if config.text == "words" else None
        self.conditioning = Conditioning(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final = Final(config)

    def forward(self, batch: Batch) -> Tensor:
        z, patch = batch["z"], self.config.patch
        high, wide = z.shape[-2] // patch, z.shape[-1] // patch
        place = positions.grid(high, wide, self.config.hidden, centred=self.config.centre_positions, device=z.device)
        x_BND = self.embed(to_patches(z, patch)) + place
        condition_BD = self.conditioning.vector(batch)
        features_TF = batch["text"] if self.text is None else self.text(batch["text"], batch["text_places"] % batch["text_mask"].shape[1])
        text_TD = self.conditioning.tokens(features_TF, batch["text_null"])
        for block in self.blocks:
            x_BND = block(x_BND, condition_BD, text_TD, batch["text_places"], batch["text_mask"])
        return from_patches(self.final(x_BND, condition_BD), patch, high, wide)


def modulate(x_BND: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without parameters of its own, then x (1 + scale) + shift."""
    return F.layer_norm(x_BND, x_BND.shape[-1:], eps=_EPS) * (1 + scale) + shift


def spread(values_TK: Tensor, places_T: Tensor, mask_BL: Tensor) -> Tensor:
    """Valid tokens (T, K) at their places (row * L + column) in a padded (B, L, K); zero elsewhere."""
    rows, length = mask_BL.shape
    empty = values_TK.new_zeros(rows * length, values_TK.shape[-1])
    return empty.index_copy(0, places_T, values_TK).unflatten(0, (rows, length))


def attendable(mask_BL: Tensor) -> Tensor:
    """The mask with its empty rows opened: softmax over nothing is NaN in some kernels. The caller zeroes those rows."""
    return mask_BL | ~mask_BL.any(1, keepdim=True)


def to_patches(x_BCHW: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C * patch * patch)."""
    cells = x_BCHW.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # B C h p w q
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2)


def from_patches(x_BNK: Tensor, patch: int, high: int, wide: int) -> Tensor:
    """The inverse of `to_patches` for a grid of high x wide tokens."""
    cells = x_BNK.unflatten(-1, (-1, patch, patch)).unflatten(1, (high, wide))  # B h w C p q
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(-2).flatten(2, 3)


def build(config: Config, directory: Path, *, seed: int) -> NanoDiT:
    """The model drawn from `seed`. On the meta device: sizes only."""

    def make() -> NanoDiT:
        model = NanoDiT(config)
        initialise(model)
        return model

    return seeded(key(seed, "nanodit") >> 1, make)


@torch.no_grad()
def initialise(model: NanoDiT) -> None:
    """Xavier for matrices, small normals for the time's and the nulls; then zero gates and a zero output, after all else.

    The output is exactly 0 and each block the identity, so the first loss is E[target^2] (1 + E[x0^2] for velocity).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    conditioning = model.conditioning
    for vector in (conditioning.time_in.weight, conditioning.time_out.weight, conditioning.null_text):
        nn.init.normal_(vector, std=0.02)
    if conditioning.sees_image:
        nn.init.normal_(conditioning.null_image, std=0.02)
    for name, parameter in model.named_parameters():
        if ".modulation." in name or name.startswith("final.out."):
            nn.init.zeros_(parameter)


def components(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """embed, conditioning (time, nulls, projections of text and image), blocks, final; text, where words are learned."""
    found: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        found.setdefault(name.partition(".")[0], {})[name] = parameter
    return found


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer's blocks: units of sharding, checkpointing and compiling."""
    assert isinstance(model, NanoDiT)
    return list(model.blocks)


def forward_flops(config: Config, image_tokens: int, text_tokens: int) -> float:
    """Operations of one sample's forward pass through the blocks, two per multiply-add. Training takes three times as many."""
    width, n, length = config.hidden, image_tokens, text_tokens
    per_token = 4 * width**2 + 2 * width**2 + 2 * width * config.mlp  # self-attention; query and output of the cross; feed-forward
    attention = 2 * n * n * width + 2 * n * length * width
    return 2.0 * config.depth * (n * per_token + length * 2 * width**2 + attention)
