"""What `plait plan` asks of nanodit: a batch of the usual shapes without data, and learning rates that have worked."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from plait.families.nanodit.config import Config
from plait.families.nanodit.inputs import Example, Inputs
from plait.families.nanodit.network.conditions import Conditions

_STRIDE = 8
"""Pixels of a side of a latent cell."""
_PIXELS = 1024
"""Side of a picture whose size is not known."""
_SMALL = 512
"""Width below which a model is trained from scratch at the rate of small ones."""
_TEXT = 64
"""Text tokens assumed of a caption."""
_RATE, _SMALL_RATE = 3e-4, 1e-3  # presets/production.yaml, presets/tiny.yaml
_PARTS = ("embed", "text", "conditioning", "blocks", "final")


def assumed_batch(config: Config, *, samples: int, tokens: int | None, picture: tuple[int, int] | None) -> dict[str, Tensor]:
    """Return a batch of `samples` pictures of `model.image_size`, or latents of the `picture`, with captions of 64 tokens at most.

    Latents are those of an encoder of stride 8, of 1,024 x 1,024 pixels where no `picture` is known. `tokens`: the longest caption, or
    None.
    """
    wide, high = (config.image_size, config.image_size) if config.space == "pixels" else _cells(picture, config.patch)
    length = min(_TEXT, tokens or _TEXT)
    words = config.text == "words"
    text = torch.zeros(length, dtype=torch.int64) if words else torch.zeros(length, config.text_dim, dtype=torch.float16)
    x0 = torch.zeros(config.channels, high, wide)
    conditions = Conditions(text, torch.zeros(config.image_dim) if config.image_dim else None)
    example = Example(x0, x0, 0.5, conditions, "", mirrored=False)
    return Inputs(config, Path(), max_tokens=tokens).collate([example] * samples)


def _cells(picture: tuple[int, int] | None, patch: int) -> tuple[int, int]:
    """Return the cells of the latents of a picture, across and down, of which `patch` make a token's side."""
    wide, high = picture or (_PIXELS, _PIXELS)
    return wide // _STRIDE // patch * patch, high // _STRIDE // patch * patch


def usual_rates(config: Config) -> Mapping[str, float]:
    """Return {component: peak learning rate}: 3e-4 as in the production preset, 1e-3 for models of a width below 512."""
    return dict.fromkeys(_PARTS, _RATE if config.hidden >= _SMALL else _SMALL_RATE)
