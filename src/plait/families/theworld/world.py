"""Convert a world encoder's latents to world tokens: their split into tokens, and the projector. Encoders are in pretrained/.

Legend: B rows with a world block, F frames, T latent frames (those after the first are world steps), S pixels of a side, h latent cells
of a side, C latent channels, N tokens per latent frame, E features per token, D the language model's width. A world block is the
tokens of one row between two bracket vectors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from plait.families.theworld.config import WorldEncoderConfig
from plait.families.theworld.pretrained.encoder import Grid
from plait.nn.connectors import Connector, match_rms


def group_side(world: WorldEncoderConfig, side: int) -> int:
    """Return how many latent cells a token spans along one side, of `side` cells: 1 if `world.tokens` is "spatial".

    Else the least divisor of `side` that leaves at most `world.max_tokens` tokens for a latent frame. It has no meaning for "channel",
    where a token spans all cells, and no caller asks.
    """
    if world.tokens == "spatial":
        return 1
    return next(group for group in range(1, side + 1) if side % group == 0 and (side // group) ** 2 <= world.max_tokens)


def tokens_per_frame(world: WorldEncoderConfig, grid: Grid) -> int:
    """Return N, the number of tokens of one latent frame of the encoder's grid."""
    return grid.channels if world.tokens == "channel" else (grid.side // group_side(world, grid.side)) ** 2


def features_per_token(world: WorldEncoderConfig, grid: Grid) -> int:
    """Return E, the width of a token before the projector."""
    if world.tokens == "channel":
        return grid.side**2
    return grid.channels * group_side(world, grid.side) ** 2 if world.tokens == "patches" else grid.channels


def latents_to_tokens(latents_BCThw: Tensor, world: WorldEncoderConfig) -> Tensor:
    """Split latents (B, C, T, h, h) into tokens (B, T, N, E): N of E features in each of T frames.

    By `world.tokens` a token is a square group of cells ("patches"), its mean ("pooled"), one cell ("spatial") or one channel ("channel").
    """
    latents_BTChw = latents_BCThw.transpose(1, 2)
    if world.tokens == "channel":
        return latents_BTChw.flatten(3)
    B, T, C, h, w = latents_BTChw.shape
    group = group_side(world, h)
    cells = latents_BTChw.reshape(B, T, C, h // group, group, w // group, group)
    if world.tokens == "patches":
        return cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(B, T, h // group * (w // group), C * group * group)
    return cells.mean((4, 6)).flatten(3).transpose(2, 3)


class WorldProjector(nn.Module):
    """Maps latents to world blocks: tokens of width D (`hidden`) between a learned start and end vector (the brackets).

    Every token is scaled to the rms of these two vectors, which is learned and begins at that of the language model's embeddings.
    `grid`: of the latents.
    """

    def __init__(self, world: WorldEncoderConfig, grid: Grid, hidden: int):
        super().__init__()
        self.world = world
        self.connector = Connector(features_per_token(world, grid), hidden, world.projector)
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
