"""Change training pictures at random, as a function of a key: a mirror and a shift."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.keys import rng


@dataclass(frozen=True)
class Augmentation:
    """An augmentation of one sample: mirrored or not, and shifts as fractions of the side."""

    flip: bool
    down: float
    right: float


def draw(key: int, *, flip: bool, shift: float) -> Augmentation:
    """Draw an augmentation: with `flip` mirrored in half of the cases, shifted by at most `shift` of the side."""
    mirror, down, right = rng(key, "augment").random(3)
    return Augmentation(bool(flip and mirror < 0.5), shift * (2 * down - 1), shift * (2 * right - 1))


def apply(squares: Tensor, augmentation: Augmentation) -> Tensor:
    """Shift pictures (n, 3, S, S) uint8, whose edge is repeated, and mirror them."""
    side = squares.shape[-1]
    down, right = round(augmentation.down * side), round(augmentation.right * side)
    reach = max(abs(down), abs(right))
    if reach:
        padded = F.pad(squares.float(), (reach,) * 4, mode="replicate").to(torch.uint8)
        squares = padded[..., reach - down : reach - down + side, reach - right : reach - right + side]
    return squares.flip(-1) if augmentation.flip else squares.contiguous()
