"""Images to crops ("overlap and resize") and to a grid of image tokens, each the pool of four patches wherever they lie.

The high-resolution image is cut into crops whose windows tile it; each crop sees `overlap` patches beyond its window, which are dropped.
Tokens run in raster order over the whole image, not crop by crop. Pools are laid on the whole grid of patches, so that towers with an
odd number of patches per side work too; where windows are even they are exactly the pools inside each crop.
Legend: n crops, p patches of a crop's side, H x W patches of the whole grid, T tokens. Pixels are uint8.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait.data import images
from plait.families.molmo.config import POOL, Config, Tower

START, END, PATCH, COLUMN, MARK = range(5)  # image tokens, counted from the first extra row (config.IMAGE_TOKENS)


@dataclass(frozen=True)
class Tiled:
    """One image as the model takes it."""

    crops: Tensor  # (n, 3, S, S) uint8; the low-resolution global crop first
    real: Tensor  # (n, p * p) float32: share of each patch that is image rather than letterbox
    pools: Tensor  # (T, 4) int64: patches of each `<im_patch>`, as crop * p * p + row * p + column; -1 for none
    tokens: Tensor  # (L,) int64 of START, END, PATCH, COLUMN


def grid(height: int, width: int, window: int, max_crops: int) -> tuple[int, int]:
    """(rows, columns) of crops, with `height` and `width` the image's less its margins, in pixels; sides below 1 count as 1.

    Among grids of at most `max_crops`, sorted by (area, rows): the one that enlarges least, or, if all shrink, the one that shrinks least.
    """
    height, width = max(height, 1), max(width, 1)
    sides = range(1, max_crops + 1)
    known = sorted(((r, c) for r in sides for c in sides if r * c <= max_crops), key=lambda rc: (rc[0] * rc[1], rc[0]))
    scales = [min(r * window / height, c * window / width) for r, c in known]
    if max(scales) < 1:
        return known[scales.index(max(scales))]
    return known[scales.index(min(scale for scale in scales if scale >= 1))]


def grid_of(config: Config, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of crops for an image of these pixels."""
    margins, window = 2 * config.overlap * config.tower.patch, config.window * config.tower.patch
    return grid(height - margins, width - margins, window, config.max_crops)


def token_count(config: Config, height: int, width: int) -> int:
    """How many tokens an image of these pixels becomes, marks and column ends included."""
    rows, columns = grid_of(config, height, width)
    high, wide = (_pooled(count * config.window + 2 * config.overlap) for count in (rows, columns))
    side = _pooled(config.tower.side)
    return side * (side + 1) + 2 + high * (wide + 1) + 2


def tile(image: Tensor, config: Config) -> Tiled:
    """A decoded image (3, h, w) as crops and tokens."""
    tower, side = config.tower, config.tower.side
    rows, columns = grid_of(config, *image.shape[-2:])
    high, wide = rows * config.window + 2 * config.overlap, columns * config.window + 2 * config.overlap
    whole, whole_real = _fit(image, tower, side, side)
    large, large_real = _fit(image, tower, high, wide)
    corners = [(r * config.window, c * config.window) for r in range(rows) for c in range(columns)]
    patch = tower.patch
    crops = [images.crop(large, y * patch, x * patch, tower.image, tower.image) for y, x in corners]
    real = [large_real[y : y + side, x : x + side] for y, x in corners]
    pools = np.concatenate([_pools(_own(side)), _pools(_owners(rows, columns, config), first=side * side)])
    return Tiled(
        torch.stack([whole, *crops]).contiguous(),
        torch.from_numpy(np.stack([whole_real, *real]).reshape(len(crops) + 1, -1)),
        torch.from_numpy(pools),
        torch.tensor(layout(_pooled(side), _pooled(side)) + layout(_pooled(high), _pooled(wide))),
    )


def layout(rows: int, columns: int) -> list[int]:
    """`<im_start>`, then each row of `<im_patch>` and its `<im_col>`, then `<im_end>`."""
    return [START, *([PATCH] * columns + [COLUMN]) * rows, END]


def _pooled(patches: int) -> int:
    return -(-patches // POOL)


def _own(side: int) -> np.ndarray:
    return np.arange(side * side).reshape(side, side)


def _owners(rows: int, columns: int, config: Config) -> np.ndarray:
    """(H, W): the crop patch that shows each patch of the whole grid. A crop gives its window, and its margins at the image's edges."""
    side, window, margin = config.tower.side, config.window, config.overlap

    def axis(count: int) -> tuple[np.ndarray, np.ndarray]:
        place = np.arange(count * window + 2 * margin)
        crop = np.clip((place - margin) // window, 0, count - 1)
        return crop, place - crop * window

    (row, y), (column, x) = axis(rows), axis(columns)
    crop = row[:, None] * columns + column[None, :]
    return crop * side * side + y[:, None] * side + x[None, :]


def _pools(owners: np.ndarray, first: int = 0) -> np.ndarray:
    """Groups of 2 x 2 patches in raster order, (T, 4); beyond an odd edge -1. `first` patches come before these."""
    high, wide = owners.shape
    padded = np.full((_pooled(high) * POOL, _pooled(wide) * POOL), -1, dtype=np.int64)
    padded[:high, :wide] = owners + first
    return padded.reshape(_pooled(high), POOL, _pooled(wide), POOL).transpose(0, 2, 1, 3).reshape(-1, POOL * POOL)


def _fit(image: Tensor, tower: Tower, high: int, wide: int) -> tuple[Tensor, np.ndarray]:
    """The image resized to high x wide patches, and the share of each patch (high, wide) that is image."""
    height, width = high * tower.patch, wide * tower.patch
    mode = "bicubic" if tower.kind == "dino" else "bilinear"
    if not tower.letterbox:
        return images.resize(image, height, width, mode=mode), np.ones((high, wide), dtype=np.float32)
    h, w = image.shape[-2:]
    tall = height * w <= width * h  # the height is what limits the scale
    inner_h, inner_w = (height, max(1, w * height // h)) if tall else (max(1, h * width // w), width)
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    canvas = torch.zeros(3, height, width, dtype=torch.uint8)
    canvas[:, top : top + inner_h, left : left + inner_w] = images.resize(image, inner_h, inner_w, mode=mode)
    share_h, share_w = _covered(high, tower.patch, top, inner_h), _covered(wide, tower.patch, left, inner_w)
    return canvas, (share_h[:, None] * share_w[None, :]).astype(np.float32)


def _covered(patches: int, patch: int, start: int, length: int) -> np.ndarray:
    """Share of each patch along one axis that lies within [start, start + length)."""
    edges = np.arange(patches + 1) * patch
    return (np.minimum(edges[1:], start + length) - np.maximum(edges[:-1], start)).clip(0) / patch
