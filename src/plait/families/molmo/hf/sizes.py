"""Sizes of a vision tower, and how pictures become tokens: what model, pictures and processor share. Does not import torch.

All files of this folder stand alone: an export holds copies of them, by which transformers loads it without plait.
"""

from dataclasses import dataclass
from typing import Literal

POOL = 2  # patches of a side that become one token
EXTRA_ROWS = 128  # embedding rows after the language model's own, without a row in the output head
IMAGE_PROMPT = "<|image|>"
IMAGE_TOKENS = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", IMAGE_PROMPT)  # the first of the extra rows, in this order
START, END, PATCH, COLUMN, MARK = range(5)  # the image tokens, counted from the first extra row


@dataclass(frozen=True)
class Tower:
    """A vision tower (image encoder) and how images are prepared for it.

    `source`: Hub name of its weights. `image`, `patch`: pixels of a side. `features`: the two layers, from the end of the `layers` built,
    whose outputs are concatenated. `positions`: patches of a side that position embeddings are for. `letterbox`: pad, do not squeeze.
    """

    kind: Literal["clip", "siglip", "dino"]
    source: str
    hidden: int
    layers: int  # built; the last of CLIP's 24 is never used
    heads: int
    mlp: int
    image: int  # pixels of a crop's side
    patch: int  # pixels of a side
    features: tuple[int, int]
    positions: int
    letterbox: bool  # keep the aspect ratio and pad with black; otherwise squeeze
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    act: str = "gelu"
    eps: float = 1e-6

    @property
    def side(self) -> int:
        """Return the number of patches along one side of a crop."""
        return self.image // self.patch


@dataclass(frozen=True)
class Tiling:
    """How images are cut into crops for `tower`: at most `max_crops` of high resolution, with `overlap` patches of margin on each side.

    `preprocessing`: how padding is marked, and thin images are cut; `published`: as for published weights.
    """

    tower: Tower
    max_crops: int
    overlap: int
    preprocessing: Literal["corrected", "published"] = "corrected"

    @property
    def window(self) -> int:
        """Return the number of patches from one crop to the next: a crop's side without its margins."""
        return self.tower.side - 2 * self.overlap
