"""Encoders of diffusers and transformers from folders, small and random, against the libraries' own calls."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan

from plait.errors import PlaitError
from plait.nn.encoders import open_images, open_latents, open_texts, reopen
from tests.encoder_folders import write_dino, write_t5, write_vae

PICTURES = torch.randint(0, 256, (2, 3, 16, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def vae(tmp_path):
    return write_vae(tmp_path / "vae"), str(tmp_path / "vae")


@pytest.fixture
def t5(tmp_path):
    return write_t5(tmp_path / "t5"), str(tmp_path / "t5")


def test_vae_gives_the_mode_its_pin_and_its_published_scale(vae):
    model, folder = vae
    codec = open_latents(folder)
    expected = model.encode(PICTURES.float() / 127.5 - 1).latent_dist.mode().detach()
    assert (codec.channels, codec.downsample, tuple(expected.shape)) == (4, 2, (2, 4, 8, 16))
    torch.testing.assert_close(codec.encode(PICTURES), expected)
    assert codec.published == ([0.1] * 4, [2.0] * 4)
    assert codec.decode(codec.encode(PICTURES)).shape == PICTURES.shape
    assert codec.pin["name"] == folder
    assert len(codec.pin["xxh3"]) == 16
    assert reopen("latents", codec.pin).pin == codec.pin


def test_video_vae_takes_a_picture_as_a_clip_of_one_frame(tmp_path):
    torch.manual_seed(0)
    latents = {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}
    AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1, **latents).save_pretrained(tmp_path)
    codec = open_latents(str(tmp_path))
    assert codec.encode(PICTURES).shape == (2, 4, 2, 4)
    assert codec.decode(codec.encode(PICTURES)).shape == PICTURES.shape
    assert (codec.downsample, codec.published) == (8, ([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]))


def test_t5_keeps_the_valid_states_and_tells_what_it_cut(t5):
    model, folder = t5
    captions = ["a red dog left of a blue cat", "a cat"]
    (long, total), (short, tokens) = open_texts(folder, 6).encode(captions)
    assert (long.shape, total, short.shape, tokens) == ((6, 16), 9, (3, 16), 3)
    alone = model(input_ids=torch.tensor([[3, 9, 1]])).last_hidden_state[0].detach()
    np.testing.assert_allclose(short, alone.numpy(), atol=1e-5)  # padding beside a longer caption changes nothing


@pytest.mark.parametrize("registers", [0, 4])
def test_dino_gives_the_class_token_at_the_models_own_area(tmp_path, registers):
    model = write_dino(tmp_path, registers)
    grey = torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)
    pixels = (torch.full((1, 3, 32, 32), 128 / 255) - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(1, 3, 1, 1)
    expected = model(pixels).last_hidden_state[:, 0].detach()
    torch.testing.assert_close(open_images(str(tmp_path)).encode(grey), expected, atol=1e-5, rtol=1e-5)
    assert open_images(str(tmp_path)).encode(PICTURES).shape == (2, 32)


def test_an_encoder_that_is_nowhere_or_another_is_named(tmp_path, t5, vae):
    for opener, name, words in (
        (open_latents, "nobody/nothing@abc", "neither a folder nor a repository"),
        (open_latents, str(tmp_path), "needs config.json and"),
        (open_latents, t5[1], "known: AutoencoderKL, AutoencoderKLWan"),
        (open_texts, vae[1], "captions need a T5 encoder"),
        (open_images, t5[1], "need a DINOv3"),
    ):
        with pytest.raises(PlaitError, match=words):
            opener(name)


@pytest.mark.parametrize("file", ["weights", "config"])
def test_an_encoder_with_a_torn_file_is_one_line(tmp_path, t5, vae, file):
    for name, opened in ((t5[1], open_texts), (vae[1], open_latents)):
        torn = Path(shutil.copytree(name, tmp_path / "torn" / Path(name).name))
        path = next(torn.glob("*.safetensors")) if file == "weights" else torn / "config.json"
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(PlaitError, match=rf"^encoder '{torn}' cannot be read: "):
            opened(str(torn))


def test_other_weights_have_another_pin(vae):
    before = open_latents(vae[1]).pin
    changed = vae[0]
    changed.decoder.conv_out.bias.data += 1
    changed.save_pretrained(vae[1])
    with pytest.raises(PlaitError, match="but the set was made with"):
        reopen("latents", before)
    assert json.loads(json.dumps(before)) == before


def test_an_encoder_that_lies_elsewhere_is_found_by_its_weights(vae, tmp_path, monkeypatch):
    pin, moved = open_latents(vae[1]).pin, tmp_path / "models" / "some" / "vae"
    other = AutoencoderKL.from_config(vae[0].config)
    other.save_pretrained(tmp_path / "models" / "another")
    Path(vae[1]).rename(tmp_path / "gone")
    with pytest.raises(PlaitError, match=r"neither a folder nor a repository .* set PLAIT_ENCODERS to a folder above it"):
        reopen("latents", pin)
    monkeypatch.setenv("PLAIT_ENCODERS", f"{tmp_path / 'empty'}:{tmp_path / 'models'}")
    with pytest.raises(PlaitError, match="set PLAIT_ENCODERS"):
        reopen("latents", pin)
    moved.parent.mkdir()
    (tmp_path / "gone").rename(moved)
    assert reopen("latents", pin).pin == {**pin, "name": str(moved)}
    shutil.copytree(tmp_path / "models" / "another", vae[1])  # another encoder took its place
    assert reopen("latents", pin).pin == {**pin, "name": str(moved)}
    monkeypatch.delenv("PLAIT_ENCODERS")
    with pytest.raises(PlaitError, match=r"but the set was made with .*PLAIT_ENCODERS"):
        reopen("latents", pin)
