"""World tokens: the folded encoder against the stock one, the range and normalisation of what it sees, the cut into tokens."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from plait.errors import PlaitError
from plait.families.theworld.config import WorldEncoderConfig
from plait.families.theworld.pretrained import wan
from plait.families.theworld.pretrained.encoder import Grid
from plait.families.theworld.world import (
    WorldProjector,
    group_by_length,
    group_side,
    latents_to_tokens,
    tokens_per_frame,
)

SIZES = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
MEAN, STD = [0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 2.0, 1.5]


def stock_and_ours() -> tuple[AutoencoderKLWan, wan.Encoder]:
    """Two copies of one random VAE: one left alone, one folded."""
    torch.manual_seed(4)
    stock = AutoencoderKLWan(**SIZES, latents_mean=MEAN, latents_std=STD)
    copy = AutoencoderKLWan(**SIZES, latents_mean=MEAN, latents_std=STD)
    copy.load_state_dict(stock.state_dict())
    return stock, wan.Encoder(copy, SIZES, 32)


def grid(side: int, channels: int = 16) -> Grid:
    return wan.grid({"z_dim": channels}, side)


def noise(frames: int, rows: int = 2, side: int = 32) -> torch.Tensor:
    return torch.randint(256, (rows, frames, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_encoder_equals_stock_encoding_normalised(frames):
    stock, ours = stock_and_ours()
    pictures = noise(frames)
    with torch.no_grad():
        mode = stock.encode(pictures.transpose(1, 2).double().div(127.5).sub(1).float()).latent_dist.mode()
        got = ours(pictures)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (MEAN, STD))
    assert got.shape == (2, 4, (frames - 1) // 4 + 1, 4, 4)
    torch.testing.assert_close(got, (mode - mean) / std, atol=1e-5, rtol=1e-5)  # conv2d and conv3d add up in another order


def test_folding_keeps_parameter_names_and_gradients():
    stock, ours = stock_and_ours()
    pictures = noise(1)
    ours(pictures).square().sum().backward()
    std = torch.tensor(STD).view(1, -1, 1, 1, 1)
    mode = stock.encode(pictures.transpose(1, 2) / 127.5 - 1).latent_dist.mode()
    ((mode - torch.tensor(MEAN).view(1, -1, 1, 1, 1)) / std).square().sum().backward()
    assert [name for name, _ in ours.vae.named_parameters()] == [name for name, _ in stock.named_parameters()]
    for name in ("encoder.conv_in.weight", "quant_conv.weight", "encoder.down_blocks.2.conv1.weight"):
        torch.testing.assert_close(ours.vae.get_parameter(name).grad, stock.get_parameter(name).grad, atol=1e-3, rtol=1e-3)


def test_white_enters_as_one_and_black_as_minus_one():
    _, ours = stock_and_ours()
    seen = []
    ours.vae.encoder.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for level in (255, 0):
        ours(torch.full((1, 1, 3, 32, 32), level, dtype=torch.uint8))
    assert torch.equal(seen[0], torch.ones(1, 3, 1, 32, 32))
    assert torch.equal(seen[1], -torch.ones(1, 3, 1, 32, 32))


def test_encoder_refuses_frames_it_would_drop():
    line = "^2 frames: AutoencoderKLWan takes one picture, or 1 [+] 4 k frames, k from 1 on, and would drop what exceeds that$"
    with pytest.raises(PlaitError, match=line):
        stock_and_ours()[1](noise(2))


@pytest.mark.parametrize(
    ("side", "most", "group", "tokens"), [(512, 256, 4, 256), (224, 256, 2, 196), (448, 256, 4, 196), (896, 256, 7, 256), (512, 100, 8, 64)]
)
def test_pooled_tokens_are_few(side, most, group, tokens):
    world = WorldEncoderConfig(image_size=side, max_tokens=most)
    assert group_side(world, side // 8) == group
    assert tokens_per_frame(world, grid(side)) == tokens <= most


def test_spatial_and_channel_tokens_are_one_per_cell_and_per_channel():
    assert tokens_per_frame(WorldEncoderConfig(tokens="spatial", image_size=224), grid(224)) == 784
    assert tokens_per_frame(WorldEncoderConfig(tokens="channel", image_size=512), grid(512)) == 16


def test_cut_puts_each_cell_where_the_legend_says():
    latents = torch.arange(2 * 3 * 2 * 4 * 4, dtype=torch.float32).view(2, 3, 2, 4, 4)  # B C T h w
    tokens = {
        name: latents_to_tokens(latents, WorldEncoderConfig(tokens=name, image_size=32, max_tokens=4))
        for name in ("pooled", "patches", "spatial", "channel")
    }
    for b, t, y, x in [(0, 0, 0, 0), (1, 1, 1, 0), (0, 1, 0, 1)]:
        group = latents[b, :, t, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        assert torch.equal(tokens["pooled"][b, t, 2 * y + x], group.mean((1, 2)))
        assert torch.equal(tokens["patches"][b, t, 2 * y + x], group.flatten())
        assert torch.equal(tokens["spatial"][b, t, 4 * y + x], latents[b, :, t, y, x])
    assert torch.equal(tokens["channel"][1, 0, 2], latents[1, 2, 0].flatten())


def test_world_block_is_at_the_embeddings_scale_and_signed():
    projector = WorldProjector(WorldEncoderConfig(image_size=32), grid(32, 4), hidden=64)
    projector.match_embedding_scale(0.25)
    block = projector(torch.randn(3, 4, 1, 4, 4) * 30)
    assert block.shape == (3, 18, 64)
    torch.testing.assert_close(block[:, 1:-1].square().mean(-1).sqrt(), torch.full((3, 16), 0.25))
    torch.testing.assert_close(projector.brackets.square().mean().sqrt(), torch.tensor(0.25))
    assert (block < 0).float().mean() > 0.3


def test_world_magnitude_is_learned():
    projector = WorldProjector(WorldEncoderConfig(image_size=32), grid(32, 4), hidden=64)
    projector.match_embedding_scale(0.25)
    projector(torch.randn(1, 4, 1, 4, 4))[:, 1:-1].abs().sum().backward()
    along = (projector.brackets.grad * projector.brackets).sum()
    assert along > 0, "longer brackets, larger tokens"


def test_temporal_positions_tell_frames_apart():
    world = WorldEncoderConfig(image_size=32, steps=2, max_steps=3)
    projector = WorldProjector(world, grid(32, 4), hidden=8)
    projector.match_embedding_scale(1.0)
    latents = torch.randn(1, 4, 1, 4, 4).expand(1, 4, 3, 4, 4)
    frames = projector(latents)[0, 1:-1].view(3, 16, 8)
    assert torch.equal(frames[0], frames[1])
    torch.nn.init.normal_(projector.steps)
    frames = projector(latents)[0, 1:-1].view(3, 16, 8)
    torch.testing.assert_close(frames[1] - frames[0], (projector.steps[1] - projector.steps[0]).expand(16, 8))


def test_pictures_and_clips_may_share_a_batch():
    frames = noise(1, rows=7)[:, 0]
    groups = group_by_length(frames, [1, 5, 1])
    assert [(indices, tuple(stack.shape[:2])) for indices, stack in groups] == [([0, 2], (2, 1)), ([1], (1, 5))]
    assert torch.equal(groups[0][1][1, 0], frames[6])
    assert torch.equal(groups[1][1][0], frames[1:6])


@pytest.mark.parametrize(("available", "steps", "kept"), [(0, 2, 1), (1, 2, 1), (4, 2, 1), (5, 2, 5), (8, 2, 5), (30, 2, 9), (30, 0, 1)])
def test_frames_kept_are_one_and_fours(available, steps, kept):
    assert grid(32).kept(available, steps) == kept
