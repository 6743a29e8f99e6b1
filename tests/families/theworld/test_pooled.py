"""The tiny world encoder `wan-pooled` keeps places and motion."""

import pytest
import torch

from plait.families.theworld import towers
from plait.families.theworld.config import Config
from plait.families.theworld.pretrained.encoder import WorldEncoder


@pytest.fixture(scope="module")
def encoder() -> WorldEncoder:
    world = {"source": "tiny:wan-pooled", "image_size": 32, "steps": 1}
    config = Config.model_validate({"base": "tiny", "tiny": {"world_channels": 16}, "world": world})
    assert config.world is not None
    return towers.load_encoder(config, config.world, 0).requires_grad_(False)


def clips() -> torch.Tensor:
    """Four clips of a square that moves right by 3 px a frame."""
    frames = torch.full((4, 5, 3, 32, 32), 255, dtype=torch.uint8)
    for i in range(4):
        for k in range(5):
            frames[i, k, :, 8 + i : 14 + i, 2 + 3 * k : 8 + 3 * k] = torch.tensor([200, 40, 10 * i], dtype=torch.uint8)[:, None, None]
    return frames


def test_a_cell_of_pooled_latents_is_that_of_its_mean_colour(encoder):
    frames = torch.randint(256, (3, 5, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    cells = frames.double().unflatten(-1, (4, 8)).unflatten(-3, (4, 8)).mean((-3, -1))
    rounded = cells.round().to(torch.uint8).repeat_interleave(8, -1).repeat_interleave(8, -2)
    got, want = encoder(frames), encoder(rounded)
    shifted = (want - encoder(rounded + 1)).abs().max()  # what a step of one grey level makes
    assert float((got - want).abs().max()) < float(shifted)  # means are rounded to grey levels, by half of one at most
    assert float((got - want.flip(-1)).abs().max()) > 5 * float(shifted)


def test_a_clip_that_stands_still_has_the_latents_of_its_picture_twice(encoder):
    still = clips()[:, :1].expand(-1, 5, -1, -1, -1)
    latents = encoder(still)
    picture = encoder(still[:, :1])
    torch.testing.assert_close(latents, picture.expand_as(latents), atol=1e-4, rtol=0)  # frames are folded in another order


def test_a_clip_and_the_same_played_backwards_are_told_apart(encoder):
    latents, backwards = encoder(clips())[:, :, 1], encoder(clips().flip(1))[:, :, 1]
    assert float((latents - backwards).square().mean().sqrt()) > 0.3  # of latents of unit scale
