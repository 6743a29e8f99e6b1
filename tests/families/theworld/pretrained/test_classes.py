"""Each class of world encoder against its library's own call: range and order of the pixels, frames, normalisation, what is refused."""

import pytest
import torch
from transformers.models.dinov3_vit import modeling_dinov3_vit

from plait.errors import PlaitError
from plait.families.theworld import family, towers
from plait.families.theworld.config import Config
from plait.families.theworld.pretrained import classes
from plait.families.theworld.world import tokens_per_frame
from tests.families.theworld.pretrained.conftest import COLOURS, MEAN, STD


def section(source: str, *, size: int = 32, **world) -> Config:
    return Config(base="tiny", world={"source": source, "image_size": size, **world})


def opened(source: str, **world):
    config = section(source, **world)
    return towers.load_encoder(config, config.world, seed=0).eval()


def noise(frames: int, side: int = 32, rows: int = 2) -> torch.Tensor:
    return torch.randint(256, (rows, frames, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(frames))


def coloured(frames: torch.Tensor) -> torch.Tensor:
    """What the published preprocessing makes of pixels 0..255, red first."""
    mean, std = (torch.tensor(COLOURS[f"image_{name}"]).double().view(3, 1, 1) for name in ("mean", "std"))
    return ((frames.double() / 255 - mean) / std).float()


@torch.no_grad()
def of_wan(model, frames):
    mode = model.encode((frames.double() / 127.5 - 1).float().transpose(1, 2)).latent_dist.mode()
    mean, std = (torch.tensor(values).view(1, 4, 1, 1, 1) for values in (MEAN, STD))
    return (mode - mean) / std


@torch.no_grad()
def of_cosmos(model, frames):
    latents = model.encode((frames.double() / 127.5 - 1).float().transpose(1, 2)).latent_dist.sample()
    for channel in range(4):  # statistics of each channel in each of 3 latent frames, the frames of a channel one after the other
        for frame in range(latents.shape[2]):
            mean, std = (model.config[f"latents_{name}"][3 * channel + frame] for name in ("mean", "std"))
            latents[:, channel, frame] = (latents[:, channel, frame] - mean) / std
    return latents


@torch.no_grad()
def of_pictures(model, frames, before):
    states = [model(pixel_values=coloured(frames[:, i])).last_hidden_state[:, before:] for i in range(frames.shape[1])]
    return torch.stack([state.transpose(1, 2).unflatten(2, (4, 4)) for state in states], 2)


@torch.no_grad()
def of_tubelets(model, frames):
    frames = frames.repeat(1, 2, 1, 1, 1) if frames.shape[1] == 1 else frames  # a picture fills one tubelet
    states = model(pixel_values_videos=coloured(frames), skip_predictor=True).last_hidden_state
    return states.unflatten(1, (-1, 4, 4)).permute(0, 4, 1, 2, 3)


CASES = [
    ("wan21", 1, (4, 1, 4, 4), of_wan),
    ("wan21", 9, (4, 3, 4, 4), of_wan),
    ("wan22", 1, (4, 1, 2, 2), of_wan),
    ("wan22", 5, (4, 2, 2, 2), of_wan),
    ("wan22", 9, (4, 3, 2, 2), of_wan),
    ("cosmos1", 1, (4, 1, 4, 4), of_cosmos),
    ("cosmos1", 17, (4, 3, 4, 4), of_cosmos),
    ("dinov3", 1, (48, 1, 4, 4), lambda model, frames: of_pictures(model, frames, 1 + 3)),  # class token, registers
    ("dinov3", 3, (48, 3, 4, 4), lambda model, frames: of_pictures(model, frames, 1 + 3)),
    ("convnext", 2, (24, 2, 4, 4), lambda model, frames: of_pictures(model, frames, 1)),
    ("vjepa2", 1, (48, 1, 4, 4), of_tubelets),
    ("vjepa2", 6, (48, 3, 4, 4), of_tubelets),
]


@pytest.mark.parametrize(("name", "frames", "shape", "oracle"), CASES, ids=[f"{name}-{frames}" for name, frames, *_ in CASES])
def test_an_encoder_equals_its_librarys_call_normalised(stored, name, frames, shape, oracle):
    model, source = stored(name)
    with torch.no_grad():
        latents = opened(source)(noise(frames))
    assert tuple(latents.shape) == (2, *shape)
    torch.testing.assert_close(latents, oracle(model, noise(frames)), atol=2e-5, rtol=2e-5)  # 2-D for 3-D convolutions; other batches


@pytest.mark.parametrize("name", ["dinov3", "convnext", "vjepa2"])
def test_a_missing_preprocessor_is_told_and_is_imagenets(stored, tmp_path, caplog, name):
    _, source = stored(name)
    (tmp_path / name / ("video_preprocessor_config.json" if name == "vjepa2" else "preprocessor_config.json")).unlink()
    encoder = opened(source)
    assert f"{source} has no preprocessor_config.json: pixels are normalised with ImageNet's mean and standard deviation" in caplog.text
    assert encoder.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert encoder.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_positions_of_dinov3_are_not_drawn_while_it_trains(stored, monkeypatch):
    _, source = stored("dinov3")
    encoder = opened(source)
    monkeypatch.setattr(modeling_dinov3_vit, "augment_patches_center_coordinates", None)  # what training mode would call
    assert torch.equal(encoder.train()(noise(1)), encoder.eval()(noise(1)))


def test_positions_of_vjepa2_count_the_cells_of_the_picture_as_it_is(stored):
    _, source = stored("vjepa2")  # trained at 32 px
    encoder = opened(source, size=64)
    assert encoder.grid.side == 8
    attention = encoder.model.encoder.layer[0].attention
    frame, row, column = attention.get_position_ids(torch.empty(1, 2 * 64, 48))
    assert (frame.tolist(), row.max().item(), column.tolist()[:9]) == ([0] * 64 + [1] * 64, 7, [*range(8), 0])


@pytest.mark.parametrize(
    ("name", "frames", "line"),
    [
        ("wan22", 4, "4 frames: AutoencoderKLWan takes one picture, or 1 + 4 k frames, k from 1 on, and would drop what exceeds that"),
        ("cosmos1", 5, "5 frames: AutoencoderKLCosmos takes one picture, or 1 + 8 k frames, k from 1 on, and would drop what exceeds that"),
        ("vjepa2", 5, "5 frames: VJEPA2Model takes one picture, or 2 + 2 k frames, k from 1 on, and would drop what exceeds that"),
    ],
)
def test_frames_that_do_not_fit_are_one_line(stored, name, frames, line):
    with pytest.raises(PlaitError) as caught:
        opened(stored(name)[1])(noise(frames))
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("name", "world", "line"),
    [
        ("wan22", {"size": 24}, "model.world.image_size is 24 px, and AutoencoderKLWan has cells of 16 px: set it to 16 or 32"),
        ("wan22", {"size": 8}, "model.world.image_size is 8 px, and AutoencoderKLWan has cells of 16 px: set it to 16"),
        ("cosmos1", {"steps": 3}, "model.world.steps is 3, and AutoencoderKLCosmos has statistics of 3 latent frames: set it to at most 2"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(stored, name, world, line):
    with pytest.raises(PlaitError) as caught:
        opened(stored(name)[1], **world)
    assert str(caught.value) == line


def test_sizes_are_held_to_the_encoder_before_gemma_is_read(tmp_path):
    config = Config(base=str(tmp_path), world={"source": "tiny:wan2.2", "image_size": 24})  # there is no Gemma either
    for asked in (lambda: family.limits(config), lambda: family.build(config, tmp_path, seed=0)):
        with pytest.raises(
            PlaitError, match=r"^model\.world\.image_size is 24 px, and AutoencoderKLWan has cells of 16 px: set it to 16 or"
        ):
            asked()


def test_a_model_that_is_no_encoder_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    known = "AutoencoderKLWan, AutoencoderKLCosmos, DINOv3ViTModel, DINOv3ConvNextModel, VJEPA2Model"
    with pytest.raises(PlaitError, match=f"^model.world.source: {tmp_path} holds a AutoencoderKL, which is no .* here; known: {known}$"):
        opened(str(tmp_path))


def test_a_wan_vae_that_diffusers_would_encode_wrongly_is_refused():
    settings = {"_class_name": "AutoencoderKLWan", "temperal_downsample": [False, False, True]}
    with pytest.raises(PlaitError, match="an AutoencoderKLWan with 2 frames to a latent frame, and diffusers encodes 4 at a time"):
        classes.grid(settings, 32, 0)


@pytest.mark.parametrize(
    ("source", "side", "channels", "tokens"),
    [
        ("nvidia/Cosmos-Predict2-2B-Video2World", 64, 16, 256),
        ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", 32, 48, 256),
        ("nvidia/Cosmos-1.0-Diffusion-7B-Video2World", 64, 16, 256),
        ("facebook/dinov3-vitl16-pretrain-lvd1689m", 32, 1024, 256),
        ("facebook/dinov3-convnext-base-pretrain-lvd1689m", 16, 1024, 256),
        ("facebook/vjepa2-vitl-fpc64-256", 32, 1024, 256),
    ],
)
def test_published_encoders_give_as_many_tokens_at_512_px(source, side, channels, tokens):
    config = section(source, size=512)
    grid = towers.encoder_grid(config, config.world)
    assert (grid.side, grid.channels, tokens_per_frame(config.world, grid)) == (side, channels, tokens)
