"""Tile an image into crops ("overlap and resize") and a grid of image tokens, each pooled from 2 x 2 patches.

The high-resolution image is cut into crops whose windows tile it; each crop has `overlap` patches beyond its window, which are dropped.
Tokens are in raster order over the whole image, not crop by crop. Pools are formed on the whole grid of patches, so that towers with an
odd number of patches per side work too; where windows are even they are exactly the pools inside each crop.
Legend: n crops, p patches of a crop's side, H x W patches of the whole grid, T tokens. Pixels are uint8.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait.data.resizing import resize
from plait.families.molmo.hf.sizes import COLUMN, END, PATCH, POOL, START, Tiling, Tower


@dataclass(frozen=True)
class TiledImage:
    """One image as the model's inputs. `crops` (n, 3, S, S) uint8, the whole image first; `tokens` (L,): START, END, PATCH, COLUMN.

    `real` (n, p * p): share of each patch that is image, or -1: partly padded. `pools` (T, 4): per PATCH, indices into `real` or -1.
    """

    crops: Tensor
    real: Tensor  # float32
    pools: Tensor  # int64: crop * p * p + row * p + column
    tokens: Tensor  # int64


def crop_grid(height: int, width: int, window: int, max_crops: int) -> tuple[int, int]:
    """Return the grid (rows, columns) of crops for `height` x `width` pixels, the image's size without its margins.

    `window`: pixels from one crop to the next. Of grids of at most `max_crops` crops it enlarges the image least, or else shrinks it least.
    """
    height, width = max(height, 1), max(width, 1)
    sides = range(1, max_crops + 1)
    grids = sorted(((r, c) for r in sides for c in sides if r * c <= max_crops), key=lambda rc: (rc[0] * rc[1], rc[0]))
    scales = [min(r * window / height, c * window / width) for r, c in grids]
    if max(scales) < 1:
        return grids[scales.index(max(scales))]
    return grids[scales.index(min(scale for scale in scales if scale >= 1))]


def crop_grid_of_image(tiling: Tiling, height: int, width: int) -> tuple[int, int]:
    """Return how many high-resolution crops an image of `height` x `width` pixels is cut into, as (rows, columns)."""
    margins, window = 2 * tiling.overlap * tiling.tower.patch, tiling.window * tiling.tower.patch
    if tiling.preprocessing == "published" and min(height, width) < margins:
        return 1, 1  # a side of less than nothing: the reference's scales are negative, and the smallest grid has the largest
    return crop_grid(height - margins, width - margins, window, tiling.max_crops)


def tile(image: Tensor, tiling: Tiling) -> TiledImage:
    """Tile an image (3, h, w) uint8 into crops and their image tokens. First is the whole image at low resolution, then the grid."""
    tower, side = tiling.tower, tiling.tower.side
    rows, columns = crop_grid_of_image(tiling, *image.shape[-2:])
    high, wide = rows * tiling.window + 2 * tiling.overlap, columns * tiling.window + 2 * tiling.overlap
    low, low_real = _resize_to_patches(image, tower, side, side)
    high_resolution, high_resolution_real = _resize_to_patches(image, tower, high, wide)
    corners = [(r * tiling.window, c * tiling.window) for r in range(rows) for c in range(columns)]
    patch = tower.patch
    crops = [high_resolution[:, y * patch : y * patch + tower.image, x * patch : x * patch + tower.image] for y, x in corners]
    real = [high_resolution_real[y : y + side, x : x + side] for y, x in corners]
    marks = [low_real, *real] if tiling.preprocessing == "corrected" else [*real, np.full_like(low_real, -1)]
    low_patches = np.arange(side * side).reshape(side, side)
    pools = np.concatenate([_pools(low_patches), _pools(_crop_patches(rows, columns, tiling), first=side * side)])
    return TiledImage(
        torch.stack([low, *crops]).contiguous(),
        torch.from_numpy(np.stack(marks).reshape(len(marks), -1)),
        torch.from_numpy(pools),
        torch.tensor(image_token_kinds(_pools_along(side), _pools_along(side)) + image_token_kinds(_pools_along(high), _pools_along(wide))),
    )


def image_token_kinds(rows: int, columns: int) -> list[int]:
    """Return the kinds of the image tokens of one grid: START, then per row `columns` times PATCH and a COLUMN, then END."""
    return [START, *([PATCH] * columns + [COLUMN]) * rows, END]


def _pools_along(patches: int) -> int:
    return -(-patches // POOL)


def _crop_patches(rows: int, columns: int, tiling: Tiling) -> np.ndarray:
    """Return (H, W): for each patch of the whole grid, the number of the crop patch that shows it. Margins only at the image's edges."""
    side, window, margin = tiling.tower.side, tiling.window, tiling.overlap

    def axis(count: int) -> tuple[np.ndarray, np.ndarray]:
        patch = np.arange(count * window + 2 * margin)
        crop = np.clip((patch - margin) // window, 0, count - 1)
        return crop, patch - crop * window

    (row, y), (column, x) = axis(rows), axis(columns)
    crop = row[:, None] * columns + column[None, :]
    patches: np.ndarray = crop * side * side + y[:, None] * side + x[None, :]
    return patches


def _pools(crop_patches: np.ndarray, first: int = 0) -> np.ndarray:
    """Group patches 2 x 2 in raster order, (T, 4); -1 beyond an odd edge. `first` is the number of the first patch."""
    high, wide = crop_patches.shape
    padded = np.full((_pools_along(high) * POOL, _pools_along(wide) * POOL), -1, dtype=np.int64)
    padded[:high, :wide] = crop_patches + first
    return padded.reshape(_pools_along(high), POOL, _pools_along(wide), POOL).transpose(0, 2, 1, 3).reshape(-1, POOL * POOL)


def _resize_to_patches(image: Tensor, tower: Tower, high: int, wide: int) -> tuple[Tensor, np.ndarray]:
    """Resize an image to high x wide patches; also return the fraction of each patch (high, wide) that is image."""
    height, width = high * tower.patch, wide * tower.patch
    mode = "bicubic" if tower.kind == "dino" else "bilinear"
    if not tower.letterbox:
        return resize(image, height, width, mode=mode), np.ones((high, wide), dtype=np.float32)
    inner_h, inner_w = letterbox(image.shape[-2], image.shape[-1], height, width)
    top, left = (height - inner_h) // 2, (width - inner_w) // 2
    canvas = torch.zeros(3, height, width, dtype=torch.uint8)
    canvas[:, top : top + inner_h, left : left + inner_w] = resize(image, inner_h, inner_w, mode=mode)
    fraction_h, fraction_w = _image_fraction(high, tower.patch, top, inner_h), _image_fraction(wide, tower.patch, left, inner_w)
    return canvas, (fraction_h[:, None] * fraction_w[None, :]).astype(np.float32)


def letterbox(h: int, w: int, height: int, width: int) -> tuple[int, int]:
    """Return (height, width) of an image of `h` x `w` pixels resized to fit into `height` x `width`. Each is at least 1.

    Computed in float32 and rounded down, as for the published models: a side may be a pixel less than in exact arithmetic.
    """
    scale = min(np.float32(width) / np.float32(w), np.float32(height) / np.float32(h))
    return max(1, int(np.float32(h) * scale)), max(1, int(np.float32(w) * scale))


def _image_fraction(patches: int, patch: int, start: int, length: int) -> np.ndarray:
    """Return the fraction of each patch along one axis that lies within [start, start + length)."""
    edges = np.arange(patches + 1) * patch
    return (np.minimum(edges[1:], start + length) - np.maximum(edges[:-1], start)).clip(0) / patch
