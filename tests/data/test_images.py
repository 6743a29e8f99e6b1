"""Decoding and resizing, against Pillow, float64 references and closed forms."""

import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from plait.data import cropping, image_files, images, resizing
from plait.data.formats.pictures import plain_jpeg
from plait.errors import BadSample
from plait.families.nanodit.pictures import from_unit


def encoded(image, kind="PNG", **options):
    body = io.BytesIO()
    image.save(body, kind, **options)
    return body.getvalue()


def noise(height=24, width=40, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def test_decode_gives_the_pixels_of_a_lossless_file():
    assert np.array_equal(images.decode(encoded(noise())).permute(1, 2, 0).numpy(), np.array(noise()))


MODES = [
    ("1", 1, "PNG"), ("L", 255, "PNG"), ("P", None, "PNG"), ("RGB", (255,) * 3, "PNG"), ("RGBA", (255,) * 4, "PNG"),
    ("LA", (255, 255), "PNG"), ("CMYK", (0,) * 4, "TIFF"), ("CMYK", (0,) * 4, "JPEG"), ("YCbCr", (255, 128, 128), "TIFF"),
    ("LAB", (255, 128, 128), "TIFF"), ("I", 65535, "TIFF"), ("I;16", 65535, "PNG"), ("I;16", 65535, "TIFF"), ("I;16B", 65535, "TIFF"),
    ("F", 1.0, "TIFF"), ("PA", (0, 0), "TIFF"),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "white", "kind"), MODES)
def test_white_is_255_in_every_mode(mode, white, kind):
    image = Image.new(mode, (5, 3), white) if white is not None else Image.new("RGB", (5, 3), "white").quantize()
    pixels = images.decode(encoded(image, kind))
    assert pixels.shape == (3, 3, 5)
    assert pixels.dtype == torch.uint8
    assert pixels.min() >= (253 if mode == "LAB" else 255)  # LAB is converted through an 8-bit profile


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (128, 0), (129, 1), (32768, 128), (65535, 255)])
def test_sixteen_bit_greys_are_scaled_and_rounded(value, grey):
    image = Image.fromarray(np.full((2, 2), value, np.uint16))
    assert images.decode(encoded(image)).unique().tolist() == [grey]  # value * 255 / 65535, rounded


def test_transparent_pixels_lie_over_white():
    half = Image.new("RGBA", (1, 1), (0, 100, 200, 128))
    expected = [round(c * 128 / 255 + 255 * 127 / 255) for c in (0, 100, 200)]
    assert np.abs(images.decode(encoded(half)).flatten().numpy().astype(int) - expected).max() <= 1
    assert images.decode(encoded(Image.new("LA", (1, 1), (0, 0)))).unique().tolist() == [255]


def test_a_transparent_palette_entry_lies_over_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([9, 9, 9] * 256)
    assert images.decode(encoded(image, transparency=0)).unique().tolist() == [255]
    assert images.decode(encoded(image, "GIF", transparency=0)).unique().tolist() == [255]


JPEGS = [
    {"quality": quality, "subsampling": subsampling, "progressive": progressive, "restart_marker_blocks": restart}
    for quality in (30, 75, 100) for subsampling in (0, 1, 2) for progressive in (False, True) for restart in (0, 4)
]  # fmt: skip


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", JPEGS, ids=lambda options: "-".join(map(str, options.values())))
def test_the_short_way_through_a_jpeg_ends_at_pillows_pixels(mode, options):
    for height, width in ((1, 1), (8, 8), (33, 31), (130, 75)):
        data = encoded(noise(height, width).convert(mode), "JPEG", **options)
        assert plain_jpeg.decode(data, image_files.MAX_PIXELS, None) is not None
        assert np.array_equal(images.decode(data).permute(1, 2, 0).numpy(), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_jpeg_damaged_anywhere_is_what_pillow_says_it_is(monkeypatch):
    sound, draw = encoded(noise(48, 40), "JPEG"), np.random.default_rng(0)
    short = 0
    for _ in range(300):
        body = bytearray(sound)
        body[draw.integers(2, len(body))] = draw.integers(256)
        short += plain_jpeg.decode(bytes(body), image_files.MAX_PIXELS, None) is not None
        found = outcome(bytes(body))
        with monkeypatch.context() as patch:
            patch.setattr(plain_jpeg, "simplejpeg", None)
            assert found == outcome(bytes(body))
    assert 0 < short < 300  # some are pictures still, some are not


def outcome(data):
    try:
        return images.decode(data).numpy().tobytes()
    except BadSample as error:
        return str(error)


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_rotation_is_applied(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF"):
        data = encoded(noise(), kind, exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert np.array_equal(images.decode(data).permute(1, 2, 0).numpy(), np.array(expected.convert("RGB")))
        assert image_files.size(data) == expected.size


def test_metadata_that_pillow_refuses_costs_no_picture():
    body = encoded(noise())
    packed = zlib.compress(bytes(2 << 20))
    beside = {
        b"zTXt": b"note\0\0" + packed, b"iTXt": b"note\0\1\0\0\0" + packed, b"iCCP": b"profile\0\0" + packed, b"tEXt": b"\xff" * (2 << 20),
        b"eXIf": b"II*\0\xff\xff\xff\xff damaged",
    }  # fmt: skip
    everything = [*beside.items()] + [(b"zTXt", beside[b"zTXt"])] * 70
    for chunks in [[one] for one in beside.items()] + [everything]:
        made = body[:33] + b"".join(map(chunk, chunks)) + body[33:]
        assert np.array_equal(images.decode(made).permute(1, 2, 0).numpy(), np.array(noise()))
        assert image_files.size(made) == (40, 24)


def chunk(named):
    kind, body = named
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_a_damaged_exif_block_costs_no_picture(kind):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 5000
    body = encoded(noise(), kind, exif=exif)
    start = body.index(b"II*\0") if b"II*\0" in body else body.index(b"MM\0*")
    for width in (8, 12, 40):
        damaged = body[: start + 4] + b"\xfe" * width + body[start + 4 + width :]
        assert sorted(images.decode(damaged).shape) == [3, 24, 40]


@pytest.mark.parametrize("data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.4\n", b"8BPS\0\1" + bytes(40)])
def test_a_format_that_is_not_read_starts_no_program(data, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("no other program reads a picture"))
    with pytest.raises(BadSample, match=r"not a readable image .*: no format that is read"):
        images.decode(data)


LONG = """
import resource, sys, torch
from plait.data import cropping, images
from plait.families.molmo.config import Config
from plait.families.molmo.hf.tiling import tile
if sys.argv[1] == "tile": molmo = Config.model_validate({})
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
for turned in (False, True):
    line = torch.randint(256, (3, 2, 30000), dtype=torch.uint8)
    line = line.transpose(1, 2).contiguous() if turned else line
    warm = line[:, :64, :64].contiguous()
    images.resize(warm, 512, 512), cropping.cover(warm, 64, 64)
    before = used()
    ways = {"cover": lambda: cropping.cover(line, 512, 512), "resize": lambda: images.resize(line, 512, 512)}
    made = ways[sys.argv[1]]() if sys.argv[1] in ways else tile(line, molmo.tiling).crops
    print(made.numel(), max(0, used() - before))
"""


@pytest.mark.parametrize("way", ["cover", "resize", "tile"])
def test_a_long_line_takes_no_more_than_ten_times_the_memory_of_its_result(way):
    told = subprocess.run([sys.executable, "-c", LONG, way], capture_output=True, text=True, check=True).stdout
    for line in told.splitlines():
        result, taken = map(int, line.split())
        assert taken <= 10 * result + (4 << 20)  # the process takes memory in steps


@pytest.mark.parametrize("at", [(0.0, 0.0), (0.5, 0.5), (1.0, 0.75)])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_a_long_image_is_covered_by_the_part_that_stays_as_any_other(monkeypatch, at, mode):
    for shape in ((20, 400), (400, 20)):
        smooth = images.resize(torch.randint(256, (3, 5, 9), dtype=torch.uint8), *shape)
        part = cropping.cover(smooth, 32, 32, mode=mode, at=at)
        with monkeypatch.context() as patch:
            patch.setattr(resizing, "MOST_AREA", 1000)
            whole = cropping.cover(smooth, 32, 32, mode=mode, at=at)
        assert (part.int() - whole.int()).abs().max() <= 3


def test_a_high_line_is_squeezed_as_any_other(monkeypatch):
    line = images.resize(torch.randint(256, (3, 9, 5), dtype=torch.uint8), 400, 20)
    before = images.resize(line, 32, 32)
    monkeypatch.setattr(resizing, "MOST_AREA", 1000)
    assert (before.int() - images.resize(line, 32, 32).int()).abs().max() <= 2


def test_an_orientation_told_by_xmp_is_applied():
    turned = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert images.decode(encoded(noise(24, 40), "JPEG", xmp=turned)).shape == (3, 40, 24)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        pixels = images.decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert pixels[0].min() > 250
        assert pixels[2].max() < 5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.5, 0.9, 0.02])
def test_a_truncated_file_is_refused(kind, kept):
    data = encoded(noise(64, 64), kind)
    with pytest.raises(BadSample, match=r"not a readable image \(\d+ bytes"):
        images.decode(data[: int(len(data) * kept)])


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"\xff\xd8\xff", bytes(100)])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(BadSample, match="not a readable image"):
        images.decode(data)


def test_an_image_over_the_pixel_limit_is_refused_before_it_is_decoded():
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    with pytest.raises(BadSample, match="over the limit of 67108864"):
        images.decode(bomb)
    with pytest.raises(BadSample, match="image of 40 x 24 pixels is over the limit of 959"):
        images.decode(encoded(noise()), max_pixels=959)
    assert images.decode(encoded(noise()), max_pixels=960).shape == (3, 24, 40)


def test_greys_outside_their_range_are_refused():
    with pytest.raises(BadSample, match=r"grey values from 0\.0 to 7\.0 in an image of mode F"):
        images.decode(encoded(Image.fromarray(np.array([[0, 7]], np.float32)), "TIFF"))
    with pytest.raises(BadSample, match="mode F"):
        images.decode(encoded(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF"))


def test_pictures_squeezed_together_equal_those_squeezed_alone():
    pictures = [
        images.decode(encoded(noise(height, width, seed))) for seed, (height, width) in enumerate([(24, 40), (9, 9), (24, 40), (5, 7)])
    ]
    for chosen in (pictures, pictures[::2], pictures[1:2]):
        together = resizing.resize_all(chosen, 9, 9, mode="bilinear")
        assert together.is_contiguous()
        assert torch.equal(together, torch.stack([images.resize(picture, 9, 9, mode="bilinear") for picture in chosen]))


def test_a_large_jpeg_is_decoded_small_enough_to_be_fast_and_large_enough_to_be_sharp():
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 32, 3), np.uint8)).resize((1024, 640), Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG", quality=95)
    small = images.decode(data, at_least=(64, 64))
    assert small.shape == (3, 160, 256)  # the smallest of 1/1, 1/2, 1/4, 1/8 that is still twice as large
    straight = images.resize(images.decode(data), 64, 64).float()
    assert (images.resize(small, 64, 64).float() - straight).abs().mean() < 2  # of 255: what a viewer cannot tell


def test_draft_counts_the_sides_after_rotation():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(256, 1024), "JPEG", exif=exif)  # upright: 1024 high, 256 wide
    assert images.decode(data, at_least=(100, 25)).shape == (3, 256, 64)


@pytest.mark.parametrize(("mode", "kernel"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)])
@pytest.mark.parametrize("size", [(10, 10), (48, 80), (7, 31)])
def test_resize_is_pillows_antialiased_resize(mode, kernel, size):
    ours = images.resize(images.decode(encoded(noise())), *size, mode=mode)
    theirs = np.array(noise().resize(size[::-1], kernel))
    assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 2  # both use fixed-point weights of different width


def test_resize_of_a_stack_equals_each_alone():
    stack = torch.stack([images.decode(encoded(noise(seed=s))) for s in range(6)]).reshape(2, 3, 3, 24, 40)
    together = images.resize(stack, 8, 9)
    assert together.shape == (2, 3, 3, 8, 9)
    assert torch.equal(together[1, 2], images.resize(stack[1, 2], 8, 9))


@pytest.mark.parametrize("shape", [(10, 100), (100, 10), (33, 64), (64, 64)])
def test_cover_fills_the_window_and_keeps_the_aspect(shape):
    ramp = torch.linspace(0, 255, shape[1]).to(torch.uint8).expand(3, *shape)
    window = cropping.cover(ramp, 32, 32)
    assert window.shape == (3, 32, 32)
    middle = window[0].float().mean() - ramp[0].float().mean()
    assert abs(middle) < 3  # cut in the centre
    if shape[1] > shape[0]:
        assert cropping.cover(ramp, 32, 32, at=(0, 0)).float().mean() < cropping.cover(ramp, 32, 32, at=(1, 1)).float().mean() - 20


def test_unit_range_is_exact_at_the_ends_and_comes_back():
    greys = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    unit = images.to_unit(greys)
    assert (unit.min().item(), unit.max().item()) == (-1.0, 1.0)
    assert torch.equal(from_unit(unit), greys)
    assert from_unit(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", JPEGS[::3], ids=lambda options: "-".join(map(str, options.values())))
def test_the_short_way_to_a_draft_ends_at_pillows_pixels(mode, options, monkeypatch):
    shapes = set()
    for (height, width), side in (((333, 517), 80), ((512, 640), 32), ((500, 350), 20), ((40, 900), 4), ((257, 259), 64)):
        picture = noise(height // 8, width // 8).resize((width, height), Image.Resampling.BICUBIC)
        data = encoded(picture.convert(mode), "JPEG", **options)
        short = images.decode(data, at_least=(side, side))
        with monkeypatch.context() as patch:
            patch.setattr(plain_jpeg, "simplejpeg", None)
            assert torch.equal(short, images.decode(data, at_least=(side, side)))
        shapes.add(tuple(short.shape[1:]))
    assert shapes == {(167, 259), (64, 80), (63, 44), (10, 225), (129, 130)}


def test_a_batch_is_stacked_and_resized_in_a_few_calls_that_leave_pythons_lock_to_others(calls):
    pictures = [images.decode(encoded(noise(32, 32), "JPEG"))] * 64
    alone = images.resize(pictures[0], 64, 64, mode="bilinear")
    assert torch.equal(images.resize_all(pictures, 64, 64, mode="bilinear"), torch.stack([alone] * 64))
    assert calls(lambda: images.resize_all(pictures, 64, 64, mode="bilinear")) < 2 * 64 + 60  # two each to sort them by shape
