"""What every world encoder has: the grid of its latents, and the way from uint8 frames to them. Each class of encoder has a file beside.

Legend: B rows, F frames, T latent frames, S pixels of a side, C latent channels, h latent cells of a side.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plait.engine.parallel.hosted import OnHost
from plait.errors import PlaitError


@dataclass(frozen=True)
class Grid:
    """The size of the latents of encoder class `name`: C `channels`, and h cells along a `side`.

    The first latent frame is made of `first` frames and each later one of `later`; a picture is one frame, and gives one latent frame.
    `most`: latent frames at most; None: any number.
    """

    name: str
    channels: int
    side: int
    first: int = 1
    later: int = 1
    most: int | None = None

    @property
    def rule(self) -> str:
        """Return how many frames a clip has, for messages: "1 + 4 k frames, k from 1 on"."""
        return f"{self.first} + {self.later if self.later > 1 else ''} k frames, k from 1 on".replace("  ", " ")

    def frames(self, steps: int) -> int:
        """Return the frames of a clip of `steps` latent frames after the first; of none, a picture: 1."""
        return self.first + self.later * steps if steps else 1

    def latent_frames(self, frames: int) -> int:
        """Return T, the latent frames of a clip of `frames`. Raises PlaitError for a number of which the encoder would drop some."""
        steps = max(0, frames - self.first) // self.later
        if frames != self.frames(steps):
            raise PlaitError(f"{frames} frames: {self.name} takes one picture, or {self.rule}, and would drop what exceeds that")
        return 1 + steps

    def kept(self, available: int, steps: int) -> int:
        """Return how many of a clip's `available` frames the encoder takes, for at most `steps` latent frames after the first."""
        return self.frames(min(steps, max(0, available - self.first) // self.later))


def cells(name: str, image_size: int, stride: int) -> int:
    """Return h, the cells of `stride` pixels along a side of `image_size`. Raises PlaitError where they do not fill it."""
    if image_size % stride:
        below = image_size - image_size % stride
        sizes = f"{below} or {below + stride}" if below else str(stride)
        raise PlaitError(f"model.world.image_size is {image_size} px, and {name} has cells of {stride} px: set it to {sizes}")
    return image_size // stride


class WorldEncoder(nn.Module, ABC):
    """Encodes clips to latents, normalised as their model's authors do. A subclass holds the library's own model.

    `grid`: the latents' size; `settings`: the model's configuration, with its class, from which classes.py builds another.
    """

    def __init__(self, grid: Grid, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.grid, self.settings = grid, dict(settings)

    def forward(self, frames_BFCSS: Tensor) -> Tensor:
        """Encode uint8 frames (B, F, 3, S, S) to latents (B, C, T, h, h). Raises PlaitError for a number of frames that does not fit."""
        assert frames_BFCSS.dtype == torch.uint8
        self.grid.latent_frames(frames_BFCSS.shape[1])
        return self.encode(frames_BFCSS)

    @abstractmethod
    def encode(self, frames_BFCSS: Tensor) -> Tensor:
        """Encode frames, of a number that fits, to latents; see `forward`."""

    @abstractmethod
    def fill(self) -> None:
        """Set the buffers that no file of weights holds, in place: an encoder that was built on the meta device has none."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the type in which it computes: that of its first weights."""
        return next(self.parameters()).dtype


def keep_on_host(*modules: nn.Module) -> None:
    """Have modules that an encoder has and never uses stay in the host's memory, in place, wherever their model goes."""
    for module in (module for module in modules if not isinstance(module, OnHost)):
        module.__class__ = type(type(module).__name__, (OnHost, type(module)), {})


def unit_range(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Map uint8 pixels 0..255 to -1..+1 in `dtype`, computed in float32."""
    return ((pixels.float() / 255 - 0.5) / 0.5).to(dtype)
