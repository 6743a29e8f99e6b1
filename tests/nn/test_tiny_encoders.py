"""The tiny encoders: exactness, mirrors, and that nothing of colour, position or order is lost."""

import numpy as np
import pytest
import torch

from plait.errors import PlaitError
from plait.nn.encoders import open_images, open_latents, open_texts, reopen
from plait.nn.tiny_encoders import TinyImages, TinyLatents, TinyTexts, dct


def noise(b=2, h=16, w=24):
    return torch.randint(0, 256, (b, 3, h, w), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def square(left, colour, side=32):
    picture = torch.full((1, 3, side, side), 250, dtype=torch.uint8)
    picture[0, :, 8:18, left : left + 10] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    return picture


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_dct_is_orthonormal(size):
    torch.testing.assert_close(dct(size) @ dct(size).T, torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("downsample", [1, 2, 4, 8])
def test_latents_with_all_channels_decode_to_the_very_picture(downsample):
    codec = TinyLatents(downsample, 3 * downsample**2)
    latents = codec.encode(noise())
    assert latents.shape == (2, codec.channels, 16 // downsample, 24 // downsample)
    assert torch.equal(codec.decode(latents), noise())
    energy = (noise().double() / 127.5 - 1).square().sum()
    assert latents.double().square().sum() == pytest.approx(float(energy), rel=1e-5)  # orthonormal: Parseval


def test_latents_with_few_channels_are_the_nearest_picture_of_low_frequencies():
    codec = TinyLatents(8, 16)
    flat = torch.full((1, 3, 8, 8), 40, dtype=torch.uint8)
    assert torch.equal(codec.decode(codec.encode(flat)), flat)
    latents = codec.encode(noise())
    assert latents.shape == (2, 16, 2, 3)
    shown = codec.decode(latents * 0.1)  # inside the range, where clamping does nothing: a projection is its own square
    torch.testing.assert_close(codec.decode(codec.encode(shown)).float(), shown.float(), atol=1.0, rtol=0)


@pytest.mark.parametrize(("downsample", "channels"), [(2, 12), (4, 48), (8, 16), (4, 5)])
def test_mirroring_latents_is_mirroring_the_picture(downsample, channels):
    codec = TinyLatents(downsample, channels)
    wide = noise(w=32)
    torch.testing.assert_close(codec.encode(wide.flip(-1)), codec.encode(wide).flip(-1), atol=1e-5, rtol=0)


def test_texts_tell_words_and_their_order_apart():
    texts = TinyTexts()
    (first, length), (second, _), (third, _) = texts.encode(["Red left, blue right", "blue left, red right", "red LEFT , blue right"])
    assert first.shape == (length, 64) == (6, 64)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, third)
    assert np.abs(first - second).max() > 0.5
    assert np.mean(np.square(texts.encode(["a few words of some length"])[0][0])) == pytest.approx(1, abs=0.2)


def test_texts_are_cut_with_their_end_kept_and_their_length_told():
    texts = TinyTexts(16, 4)
    (states, length), (short, tokens) = texts.encode(["one two three four five", ""])
    assert (states.shape, length) == ((4, 16), 6)
    assert (short.shape, tokens) == ((1, 16), 1)
    assert len(texts.encode(["猫在左边"])[0][0]) == 4
    assert TinyTexts().encode(["猫在左边"])[0][1] == 5


def test_image_vectors_know_the_colour_and_not_the_side():
    vector = TinyImages()
    red, moved, blue = (vector.encode(p) for p in (square(2, (220, 30, 30)), square(20, (220, 30, 30)), square(2, (30, 30, 220))))
    torch.testing.assert_close(red, moved, atol=1e-4, rtol=0)
    assert (red - blue).norm() > 3
    torch.testing.assert_close(vector.encode(noise().flip(-1)), vector.encode(noise()), atol=1e-4, rtol=0)
    assert red.shape == (1, 64)
    assert 0.3 < float(red.square().mean()) < 3


def test_image_vectors_of_a_blank_picture_are_finite():
    assert torch.isfinite(TinyImages().encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))).all()


def test_encoders_are_opened_by_name_and_again_by_pin():
    assert (open_latents("tiny").channels, open_latents("tiny").downsample) == (48, 4)
    assert open_latents("tiny:8x16").channels == 16
    assert (open_texts("tiny").width, open_texts("tiny:32", 7).max_tokens) == (64, 7)
    for kind, encoder in (("latents", open_latents("tiny:8x16")), ("texts", open_texts("tiny:32")), ("images", open_images("tiny"))):
        assert reopen(kind, encoder.pin).pin == encoder.pin
        with pytest.raises(PlaitError, match="but the set was made with 0123"):
            reopen(kind, encoder.pin | {"xxh3": "0123"})


@pytest.mark.parametrize(
    ("name", "words"),
    [("tiny:8", "write tiny, or tiny:4x48"), ("tiny:2x13", "1 to 12 channels"), ("tiny:64x1", r"patches of 64 \(1 to 32\) pixels")],
)
def test_impossible_tiny_latents_are_refused(name, words):
    with pytest.raises(PlaitError, match=words):
        open_latents(name)
