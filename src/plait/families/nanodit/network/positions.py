"""Compute sinusoidal embeddings of token positions and of times; nothing is stored, so images may have any size. Imports torch alone.

Legend: N tokens in reading order (rows from the top, each from the left), B batch.
"""

import math

import torch
from torch import Tensor

_PERIOD = 10_000.0  # the longest wavelength over 2 pi (Vaswani et al. 2017, section 3.5)
TIME_SCALE = 1000.0
"""Factor on t in [0, 1] before its sinusoid. Without it t = .1 and t = .9 have a cosine similarity of 0.98; with it 0.19."""


def sinusoid(position: Tensor, width: int) -> Tensor:
    """Embed positions (...) as sines at width / 2 frequencies, then cosines: (..., width), in the dtype of `position`."""
    half = width // 2
    steps = torch.arange(half, dtype=position.dtype, device=position.device) / half
    angle = position[..., None] * torch.exp(-math.log(_PERIOD) * steps)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def grid(height: int, width: int, dim: int, *, centred: bool, device: torch.device | None = None) -> Tensor:
    """Return sine and cosine position embeddings, float32 (height * width, dim) row by row, of an image of height x width tokens.

    The first half of the features encodes y, the second x. `centred` measures from the middle, so that images of different sizes share a
    frame; else from the top left. `dim`, asserted: a multiple of 4.
    """
    assert dim % 4 == 0
    y = torch.arange(height, dtype=torch.float32, device=device) - (height - 1) / 2 * centred
    x = torch.arange(width, dtype=torch.float32, device=device) - (width - 1) / 2 * centred
    rows = sinusoid(y, dim // 2)[:, None].expand(height, width, dim // 2)
    columns = sinusoid(x, dim // 2)[None].expand(height, width, dim // 2)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def embed_time(t: Tensor, width: int) -> Tensor:
    """Embed times (B,) in [0, 1] as (B, width) sines and cosines of 1000 t."""
    return sinusoid(TIME_SCALE * t, width)
