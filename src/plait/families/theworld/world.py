"""Convert images to world tokens: the Wan VAE's encoder, its normalised latents, their split into tokens, the projector.

Legend: B rows with a world block, F frames, T = 1 + (F - 1) / 4 latent frames (those after the first are world steps), S pixels of a side,
h = S / 8 latent cells of a side, C latent channels, N tokens per latent frame, E features per token, D the language model's width.
A world block is the tokens of one row between two bracket vectors.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d
from torch import Tensor, nn

from plait.families.theworld.config import LATENT_STRIDE, WorldEncoderConfig
from plait.nn.connectors import Connector, match_rms


def group_side(world: WorldEncoderConfig) -> int:
    """Return how many latent cells a token spans along one side: 1 if `world.tokens` is "spatial".

    Else the least divisor of the cells along an image's side (`image_size` / 8) that leaves at most `world.max_tokens` tokens for the
    image. It has no meaning for "channel", where a token spans all cells, and no caller asks.
    """
    side = world.image_size // LATENT_STRIDE
    if world.tokens == "spatial":
        return 1
    return next(group for group in range(1, side + 1) if side % group == 0 and (side // group) ** 2 <= world.max_tokens)


def tokens_per_frame(world: WorldEncoderConfig, channels: int) -> int:
    """Return N, the number of tokens of one latent frame with `channels` latent channels."""
    return channels if world.tokens == "channel" else (world.image_size // LATENT_STRIDE // group_side(world)) ** 2


def features_per_token(world: WorldEncoderConfig, channels: int) -> int:
    """Return E, the width of a token before the projector, for `channels` latent channels."""
    if world.tokens == "channel":
        return (world.image_size // LATENT_STRIDE) ** 2
    return channels * group_side(world) ** 2 if world.tokens == "patches" else channels


def latents_to_tokens(latents_BCThw: Tensor, world: WorldEncoderConfig) -> Tensor:
    """Split latents (B, C, T, h, h) into tokens (B, T, N, E): N of E features in each of T frames.

    By `world.tokens` a token is a square group of cells ("patches"), its mean ("pooled"), one cell ("spatial") or one channel ("channel").
    """
    latents_BTChw = latents_BCThw.transpose(1, 2)
    if world.tokens == "channel":
        return latents_BTChw.flatten(3)
    group = group_side(world)
    B, T, C, h, w = latents_BTChw.shape
    cells = latents_BTChw.reshape(B, T, C, h // group, group, w // group, group)
    if world.tokens == "patches":
        return cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(B, T, h // group * (w // group), C * group * group)
    return cells.mean((4, 6)).flatten(3).transpose(2, 3)


class FoldedConv(WanCausalConv3d):
    """Diffusers' causal convolution in time, with the same result, but a single first frame is computed as a 2-D convolution.

    Causal padding puts zero frames before the first frame, so only the last slice in time of a kernel (k, kh, kw) contributes.
    """

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """Convolve (B, C, F, H, W) causally in time; `cache_x`: last frames of the chunk before, None for the first."""
        left, _, top, _, before, _ = self._padding
        if x.shape[2] != 1 or cache_x is not None or before != self.kernel_size[0] - 1:
            output: Tensor = super().forward(x, cache_x)
            return output
        y = F.conv2d(x.squeeze(2), self.weight[:, :, -1], self.bias, (self.stride[1], self.stride[2]), (int(top), int(left)))
        return y.unsqueeze(2)


def fold(vae: AutoencoderKLWan) -> None:
    """Make the encoder's convolutions FoldedConv, in place, so that single images are encoded faster; parameters keep their names."""
    for parent in (vae.encoder, vae.quant_conv):
        for module in parent.modules():
            if type(module) is WanCausalConv3d:
                module.__class__ = FoldedConv


class WorldEncoder(nn.Module):
    """The encoder half of the Wan VAE: images to normalised latents, (mode of the posterior - latents_mean) / latents_std."""

    mean: Tensor
    std: Tensor

    def __init__(self, vae: AutoencoderKLWan):
        super().__init__()
        fold(vae)
        self.vae = vae
        for name in ("mean", "std"):
            value = torch.tensor(vae.config[f"latents_{name}"], dtype=torch.float32, device="cpu")
            self.register_buffer(name, value.view(-1, 1, 1, 1), persistent=False)

    def forward(self, frames_BFCSS: Tensor) -> Tensor:
        """Encode uint8 frames (B, F, 3, S, S), F = 1 + 4 k, to latents (B, C, T, h, h). Pixels are mapped to -1..+1 first."""
        assert frames_BFCSS.dtype == torch.uint8
        assert frames_BFCSS.shape[1] % 4 == 1, f"{frames_BFCSS.shape[1]} frames: the encoder silently drops what exceeds 1 + 4 k"
        pictures = unit_range(frames_BFCSS, self.vae.quant_conv.weight.dtype).transpose(1, 2)
        if pictures.shape[2] == 1:  # nothing to carry from frame to frame, so none of the stock loop's copies
            latents = self.vae.quant_conv(self.vae.encoder(pictures)).chunk(2, dim=1)[0]
        else:
            latents = self.vae.encode(pictures).latent_dist.mode()
        normalised: Tensor = (latents - self.mean.to(latents)) / self.std.to(latents)
        return normalised


def unit_range(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Map uint8 pixels 0..255 to -1..+1 in `dtype`, computed in float32."""
    return ((pixels.float() / 255 - 0.5) / 0.5).to(dtype)


class WorldProjector(nn.Module):
    """Maps latents to world blocks: tokens of width D (`hidden`) between a learned start and end vector (the brackets).

    Every token is scaled to the rms of these two vectors, which is learned and begins at that of the language model's embeddings.
    `channels`: C, of the latents.
    """

    def __init__(self, world: WorldEncoderConfig, channels: int, hidden: int):
        super().__init__()
        self.world = world
        self.connector = Connector(features_per_token(world, channels), hidden, world.projector)
        self.brackets = nn.Parameter(torch.empty(2, hidden))
        self.steps = nn.Parameter(torch.zeros(world.max_steps + 1, hidden)) if world.steps else None

    @torch.no_grad()
    def match_embedding_scale(self, embedding_rms: float) -> None:
        """Initialise the two bracket vectors at random with the rms of the language model's embeddings."""
        nn.init.normal_(self.brackets, std=embedding_rms)
        self.brackets.mul_(embedding_rms / self.brackets.square().mean().sqrt())

    def forward(self, latents_BCThw: Tensor) -> Tensor:
        """Return world blocks (B, 1 + T N + 1, D): start bracket, tokens, end bracket; in float32 or wider."""
        tokens_BTND = self.connector(latents_to_tokens(latents_BCThw, self.world))
        magnitude = self.brackets.square().mean().sqrt()
        tokens_BTND = match_rms(tokens_BTND, magnitude)
        if self.steps is not None:
            tokens_BTND = tokens_BTND + self.steps[: tokens_BTND.shape[1], None]
        start, end = torch.split(self.brackets.to(tokens_BTND).expand(len(tokens_BTND), 2, -1), 1, dim=1)
        return torch.cat([start, tokens_BTND.flatten(1, 2), end], dim=1)


def group_by_length(frames: Tensor, counts: Sequence[int]) -> list[tuple[list[int], Tensor]]:
    """Return rows grouped by number of frames, fewest first: [(indices of the rows, their frames (B, F, 3, S, S)), ...].

    `frames` (sum of `counts`, 3, S, S): those of all rows, one row's after the other's; `counts`: how many of them each row has.
    """
    rows = torch.split(frames, list(counts))
    return [
        ([i for i, count in enumerate(counts) if count == length], torch.stack([row for row in rows if len(row) == length]))
        for length in sorted(set(counts))
    ]


def frames_kept(available: int, steps: int) -> int:
    """Return the number of a clip's `available` frames that the encoder takes: 1 + 4 k, with k at most `steps`."""
    return 1 + 4 * min(steps, max(0, math.floor((available - 1) / 4)))
