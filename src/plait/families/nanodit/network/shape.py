"""What the network's layers are made from, the part of the `model:` section that an export keeps. Imports neither torch nor plait."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Shape:
    """Sizes and kinds of the network's layers, with the names and meanings of the settings in config.py.

    `mlp`: width of the feed-forward layer. `prediction`: what the output is, which its caller needs to know.
    """

    depth: int
    hidden: int
    heads: int
    mlp: int
    patch: int
    channels: int
    text: Literal["states", "words"]
    text_dim: int
    words: int
    image_dim: int
    prediction: Literal["v", "x"]
    centre_positions: bool
