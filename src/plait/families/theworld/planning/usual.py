"""A batch of the usual shapes without data or tokenizer, and learning rates that have worked."""

from collections.abc import Mapping
from typing import Any

import torch

from plait.families.theworld import towers
from plait.families.theworld.config import TINY, Config
from plait.families.theworld.inputs import NO_LATENTS
from plait.families.theworld.packing.rows import documents_of
from plait.families.theworld.sequence import BOTH_WAYS, Kind, Span, fuse, pad_rows
from plait.families.theworld.world import tokens_per_frame
from plait.nn.documents import LONGEST_MASK

_TEXT = 128
"""Text tokens assumed of a sample, half of them supervised: a question and a caption."""
_MARKS = 6
"""Tokens around turns and the image."""
_RATES = {"projector": 1e-4, "vision": 5e-5, "language": 1e-5, "world": 5e-6}  # each part's first stage, configs/theworld/stages.yaml
_TINY_RATE = 1e-3


def assumed_batch(config: Config, *, samples: int, tokens: int | None, picture: tuple[int, int] | None) -> dict[str, Any]:
    """Return a batch of `samples` conversations about one picture each, as `Inputs.collate` makes it.

    The size of the `picture` does not matter, as each is resized. A row has the world block, the picture's tokens and 128 of text, or so
    many that it is `tokens` long. Raises BadSample if the picture and world alone are longer.
    """
    side, image_tokens = towers.image_sizes(towers.gemma_config(config))
    world = config.world
    grid = towers.encoder_grid(config, world) if world else None
    world_tokens = tokens_per_frame(world, grid) * (1 + world.steps) if world and grid else 0
    fixed = 1 + (world_tokens + 2 if world_tokens else 0) + image_tokens + _MARKS
    text = _TEXT if tokens is None else max(2, min(_TEXT, tokens - fixed))
    spans = [
        Span([0]),
        Span([0] * image_tokens, Kind.IMAGE),
        Span([0] * (_MARKS + text // 2)),
        Span([0] * (text - text // 2), supervised=True),
    ]
    row = fuse(spans, world_tokens, pad_id=0, max_tokens=tokens)
    batch = pad_rows([row] * samples, pad_id=0)
    if (length := len(row)) > LONGEST_MASK:
        batch["places"]["documents"] = documents_of([row] * samples, length, BOTH_WAYS)
    frames, width = (grid.frames(world.steps), world.image_size) if world and grid else (0, 8)
    batch["pixels"] = torch.zeros(samples, 3, side, side, dtype=torch.uint8)
    batch["frames"] = torch.zeros(samples * frames, 3, width, width, dtype=torch.uint8)
    counts = {"frame_counts": [frames] * samples if world else [], "latent_counts": [0] * samples if world else []}
    return {**batch, **counts, "latents": NO_LATENTS, "cut": torch.zeros(samples, dtype=torch.int64)}


def usual_rates(config: Config) -> Mapping[str, float]:
    """Return {component: peak learning rate}: those of the four published stages, or 1e-3 for a model from random weights (tiny)."""
    return dict.fromkeys(_RATES, _TINY_RATE) if config.base == TINY else _RATES
