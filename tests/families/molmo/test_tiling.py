"""Tiling: the worked examples of the facts, and token places against a picture whose colours say where each pixel came from."""

import numpy as np
import pytest
import torch

from plait.families.molmo.config import Config
from plait.families.molmo.hf import tiling
from plait.families.molmo.hf.sizes import COLUMN, END, PATCH, START
from plait.families.molmo.hf.tiling import crop_grid, crop_grid_of_image, tile

OPENAI = Config().tiling
PUBLISHED = Config(preprocessing="published").tiling


@pytest.mark.parametrize(
    ("width", "height", "rows", "columns", "tokens"),
    [(640, 480, 2, 3, 740), (480, 640, 3, 2, 748), (336, 336, 1, 1, 316), (1920, 1080, 3, 4, 1196)],
)
def test_tiling_of_the_worked_examples(width, height, rows, columns, tokens):
    assert crop_grid_of_image(OPENAI, height, width) == (rows, columns)
    assert len(tile(torch.zeros(3, height, width, dtype=torch.uint8), OPENAI).tokens) == tokens


@pytest.mark.parametrize(("width", "height", "expected"), [(300, 1200, (5, 1)), (2000, 400, (1, 7)), (1, 1, (1, 1)), (8, 3000, (12, 1))])
def test_tiling_of_thin_and_small_images(width, height, expected):
    assert crop_grid_of_image(OPENAI, height, width) == expected


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1000, 100, (1, 1)),
        (100, 1000, (1, 1)),
        (112, 3000, (12, 1)),
        (111, 3000, (1, 1)),
        (300, 1200, (5, 1)),
        (2000, 400, (1, 7)),
        (1, 1, (1, 1)),
    ],
)
def test_published_tiling_gives_a_thin_picture_one_crop(width, height, expected):
    assert crop_grid_of_image(PUBLISHED, height, width) == expected
    assert published_grid(height - 112, width - 112) == expected


def published_grid(height, width):
    """The reference's arithmetic in float32, where sides may be 0 or less."""
    known = sorted([(i, j) for i in range(1, 13) for j in range(1, 13) if i * j <= 12], key=lambda x: (x[0] * x[1], x[0]))
    with np.errstate(divide="ignore"):
        scale = (np.array(known, np.float32) * 224 / np.array([[height, width]], np.float32)).min(1)
    return known[scale.argmax()] if (scale < 1).all() else known[np.where(scale < 1, 1e10, scale).argmin()]


def test_published_marks_are_those_of_the_next_crop():
    picture = torch.zeros(3, 400, 900, dtype=torch.uint8)
    ours, published = tile(picture, OPENAI), tile(picture, PUBLISHED)
    assert torch.equal(ours.crops, published.crops) and torch.equal(ours.pools, published.pools)
    assert len({tuple(crop.tolist()) for crop in ours.real}) > 2  # crops differ in what is padded
    assert torch.equal(published.real[:-1], ours.real[1:])
    assert (published.real[-1] == -1).all()


def test_tiling_of_640x480_makes_seven_crops_with_the_global_one_first():
    picture = torch.zeros(3, 480, 640, dtype=torch.uint8)
    picture[:, :, 320:] = 255
    tiled = tile(picture, OPENAI)
    assert tiled.crops.shape == (7, 3, 336, 336)
    assert len(tiled.tokens) == 740
    assert 100 < tiled.crops[0, 0, 168].float().mean() < 155  # the global crop alone shows both halves evenly


def reference_grid(height, width, window, max_crops):
    """The published rule, with arrays: candidates by (area, rows), least enlargement, or least reduction when all reduce."""
    known = sorted(
        [(i, j) for i in range(1, max_crops + 1) for j in range(1, max_crops + 1) if i * j <= max_crops], key=lambda x: (x[0] * x[1], x[0])
    )
    scale = (np.array(known) * window / np.array([[height, width]])).min(1)
    return known[scale.argmax()] if (scale < 1).all() else known[np.where(scale < 1, 1e10, scale).argmin()]


def test_grid_agrees_with_the_published_rule_on_many_sizes():
    random = np.random.default_rng(0)
    for _ in range(300):
        height, width, most = (int(random.integers(1, 4000)), int(random.integers(1, 4000)), int(random.integers(1, 37)))
        assert crop_grid(height, width, 224, most) == reference_grid(height, width, 224, most)


def positions_of(config, high, wide):
    """A picture as large as its grid, whose red and green say the row and column of each patch."""
    patch = config.tower.patch
    rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    colours = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
    return colours.repeat_interleave(patch, 1).repeat_interleave(patch, 2)


@pytest.mark.parametrize("backbone", ["openai", "siglip", "dino"])
def test_tokens_run_in_raster_order_over_the_whole_image(backbone):
    config = Config(vision_backbone=backbone, max_crops=6).tiling
    side, window = config.tower.side, config.window
    high, wide = 2 * window + 8, 3 * window + 8  # exactly 2 x 3 crops, so nothing is resized
    tiled = tile(positions_of(config, high, wide), config)
    patch = config.tower.patch
    seen = tiled.crops[:, :2, ::patch, ::patch].flatten(2).permute(0, 2, 1).flatten(0, 1)  # (crop patches, 2): row and column
    first = ((side + 1) // 2) ** 2  # tokens of the global crop
    expected = [
        [(r, c) for r in (y, y + 1) for c in (x, x + 1) if r < high and c < wide] for y in range(0, high, 2) for x in range(0, wide, 2)
    ]
    patches_of_tokens = [[tuple(seen[p].tolist()) for p in pool if p >= 0] for pool in tiled.pools[first:].tolist()]
    assert patches_of_tokens == expected


def test_pools_stay_within_a_crop_where_windows_are_even():
    pools = tile(torch.zeros(3, 480, 640, dtype=torch.uint8), OPENAI).pools
    assert (pools // 576 == pools[:, :1] // 576).all()
    assert pools.min() >= 0
    assert len(pools.flatten().unique()) == pools.numel(), "a patch is in two pools"


def test_layout_writes_marks_and_column_ends():
    assert tiling.image_token_kinds(2, 3) == [START, PATCH, PATCH, PATCH, COLUMN, PATCH, PATCH, PATCH, COLUMN, END]


def test_letterbox_keeps_the_shape_and_says_what_is_image():
    tiled = tile(torch.full((3, 100, 400), 255, dtype=torch.uint8), Config(max_crops=1).tiling)
    white = (tiled.crops[0, 0] == 255).float()
    assert white.sum(0).unique().tolist() == [84.0]  # 336 * 100 / 400 rows, centred
    assert white[126:210].all()
    shares = tiled.real[0].view(24, 24)[:, 0]
    assert shares.sum().item() == pytest.approx(84 / 14)
    assert shares[:9].tolist() == [0.0] * 9


def test_squeezing_towers_see_no_padding():
    assert (tile(torch.zeros(3, 50, 400, dtype=torch.uint8), Config(vision_backbone="dino").tiling).real == 1).all()


def test_tiling_partly_padded_patches_have_a_share_between():
    tiled = tile(torch.full((3, 100, 300), 255, dtype=torch.uint8), Config(max_crops=1).tiling)  # 112 rows: 8 patches, centred evenly
    assert set(tiled.real[0].unique().tolist()) == {0.0, 1.0}
    uneven = tile(torch.full((3, 105, 300), 255, dtype=torch.uint8), Config(max_crops=1).tiling)
    assert any(0 < share < 1 for share in uneven.real[0].tolist())


@pytest.mark.parametrize(
    ("size", "target", "fitted"),  # (width, height) of pictures, (height, width) of crops; values of the reference's float32
    [
        ((640, 480), (336, 336), (251, 336)),
        ((480, 640), (336, 336), (336, 251)),
        ((1920, 1080), (784, 1008), (567, 1007)),
        ((1280, 720), (336, 336), (188, 336)),
        ((1200, 800), (560, 784), (522, 783)),
        ((960, 720), (784, 1008), (755, 1007)),
        ((500, 375), (336, 336), (252, 336)),
        ((4000, 2), (336, 336), (1, 336)),
    ],
)
def test_letterbox_is_cut_to_pixels_as_where_published_weights_were_trained(size, target, fitted):
    assert tiling.letterbox(size[1], size[0], *target) == fitted
