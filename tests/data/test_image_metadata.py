"""Pictures with damaged metadata: every block in turn, and every way to damage it, gives the clean picture's pixels."""

import io
import itertools
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from plait.data import image_files
from plait.data.formats.pictures import image_metadata, plain_jpeg, png
from plait.errors import BadSample

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
TURNED = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def encoded(kind, **options):
    body = io.BytesIO()
    options.pop("image", NOISE).save(body, kind, **options)
    return body.getvalue()


def damages(body):
    """Yield versions of a block's body: cut at some places, and with some bytes other than they were."""
    for kept in sorted({0, 1, 2, 4, 5, 7, 8, 13, len(body) // 2, len(body) - 1}):
        yield body[:kept]
    draw = np.random.default_rng(len(body))
    for count in (1, 1, 1, 1, 4, 4, 40, 40):
        changed = np.frombuffer(body, np.uint8).copy()
        changed[draw.integers(0, len(body), count)] = draw.integers(0, 256, count)
        yield changed.tobytes()
    yield b"\xff" * len(body)
    yield bytes(len(body))


def same_as(clean, data):
    return np.array_equal(image_files.decode_rgb(data), clean) and image_files.size(data) == clean.shape[1::-1]


def chunk(kind, body, *, sound=True):
    checksum = zlib.crc32(kind + body) ^ (0 if sound else 1)
    return len(body).to_bytes(4, "big") + kind + body + checksum.to_bytes(4, "big")


CHUNKS = {
    b"iCCP": b"sRGB\0\0" + zlib.compress(PROFILE), b"gAMA": b"\0\0\xb1\x8f", b"cHRM": bytes(range(32)), b"sRGB": b"\1",
    b"pHYs": b"\0\0\x0b\x13\0\0\x0b\x13\1", b"tIME": b"\x07\xe8\1\2\3\4\5", b"sBIT": b"\x08\x08\x08", b"cICP": b"\1\1\0\1",
    b"bKGD": b"\0\1\0\1\0\1",
    b"tEXt": b"note\0words", b"zTXt": b"note\0\0" + zlib.compress(b"words" * 9), b"iTXt": b"note\0\0\0\0\0words", b"prVt": b"private words",
    b"eXIf": b"II*\0\x08\0\0\0\1\0\x0e\x01\2\0\4\0\0\0abc\0\0\0\0\0", b"acTL": b"\0\0\0\2\0\0\0\0", b"caBX": b"content credentials",
    b"fcTL": b"\0\0\0\0\0\0\0\x28\0\0\0\x18" + bytes(8) + b"\0\1\0\1\0\0",
}  # fmt: skip


@pytest.mark.parametrize("kind", CHUNKS)
@pytest.mark.parametrize("place", ["before the pixels", "after them"])
def test_a_png_with_any_chunk_of_metadata_damaged_has_its_pixels(kind, place):
    clean, body = np.array(NOISE), encoded("PNG")
    at = 33 if place == "before the pixels" else len(body) - 12
    rest = b"".join(itertools.starmap(chunk, [item for item in CHUNKS.items() if item[0] != kind]))
    for damaged in (chunk(kind, CHUNKS[kind], sound=False), *(chunk(kind, other) for other in damages(CHUNKS[kind]))):
        assert same_as(clean, body[:at] + damaged + body[at:])
        assert same_as(clean, body[:33] + (damaged + rest if at == 33 else rest) + body[33:at] + (damaged if at > 33 else b"") + body[at:])


@pytest.mark.parametrize("told_by", ["eXIf", "xmp", "raw profile"])
@pytest.mark.parametrize("damaged", [chunk(b"pHYs", b"\0"), chunk(b"zTXt", b"k\0\1"), chunk(b"gAMA", b"\0\0\0\1", sound=False)])
def test_a_turned_png_stays_turned_where_another_chunk_is_damaged(told_by, damaged):
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = b"\nexif\n%8d\n" % len(exif.tobytes()) + exif.tobytes().hex().encode()
    beside = {
        "eXIf": chunk(b"eXIf", exif.tobytes()[6:]),
        "xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + TURNED),
        "raw profile": chunk(b"tEXt", b"Raw profile type exif\0" + raw),
    }[told_by]
    body = encoded("PNG")
    turned = np.array(NOISE.transpose(Image.Transpose.ROTATE_270))
    assert same_as(turned, body[:33] + beside + body[33:])
    assert same_as(turned, body[:33] + damaged + beside + body[33:])


def test_a_damaged_transparency_is_not_dropped():
    grey = encoded("PNG", image=Image.new("L", (4, 4), 0), transparency=0)
    start = grey.index(b"tRNS")
    cut = grey[: start - 4] + chunk(b"tRNS", b"") + grey[start + 4 + 2 + 4 :]
    assert image_files.decode_rgb(grey).min() == 255
    with pytest.raises(BadSample, match="Truncated tRNS chunk"):
        image_files.decode_rgb(cut)


def flipped(data, bits):
    """Yield versions of a file with one of these bits other than it was."""
    for bit in bits:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def many_chunks():
    """Return a PNG with a palette, transparency, several IDAT chunks and metadata on all sides, and (type, start, end) of its chunks."""
    paletted = encoded("PNG", image=NOISE.quantize(64), transparency=bytes(range(0, 256, 16)))
    found = dict(split(paletted))
    pixels = found[b"IDAT"]
    parts = [
        (b"IHDR", found[b"IHDR"]), (b"gAMA", CHUNKS[b"gAMA"]), (b"PLTE", found[b"PLTE"]), (b"pHYs", CHUNKS[b"pHYs"]),
        (b"tRNS", found[b"tRNS"]), (b"tEXt", CHUNKS[b"tEXt"]), (b"IDAT", pixels[:300]), (b"IDAT", pixels[300:600]),
        (b"IDAT", pixels[600:]), (b"tIME", CHUNKS[b"tIME"]), (b"IEND", b""),
    ]  # fmt: skip
    data, places = png.PNG, []
    for kind, body in parts:
        places.append((kind, len(data), len(data) + 12 + len(body)))
        data += chunk(kind, body)
    return data, places


def split(png):
    start = 8
    while start < len(png):
        length = int.from_bytes(png[start : start + 4], "big")
        yield png[start + 4 : start + 8], png[start + 8 : start + 8 + length]
        start += 12 + length


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_any_bit_flipped_in_what_decides_the_pixels_of_a_png_makes_a_bad_sample(kind):
    data, places = many_chunks()
    assert image_files.decode_rgb(data).shape == (24, 40, 3)
    for found, start, end in places:
        step = 7 if kind == b"IDAT" else 1
        for damaged in flipped(data, range(start * 8, end * 8, step)) if found == kind else ():
            with pytest.raises(BadSample, match="not a readable image"):
                image_files.decode_rgb(damaged)


def test_any_bit_flipped_in_the_metadata_of_a_png_leaves_its_pixels_or_is_refused():
    data, places = many_chunks()
    clean = image_files.decode_rgb(data)
    for kind, start, end in places:
        if kind in (b"gAMA", b"pHYs", b"tEXt", b"tIME"):
            assert all(same_as(clean, damaged) for damaged in flipped(data, range(start * 8 + 32, end * 8)))
            for damaged in flipped(data, range(start * 8, start * 8 + 32)):  # a length: the chunks that follow cannot be told apart
                try:
                    assert same_as(clean, damaged)
                except BadSample:
                    assert kind != b"tIME"  # nothing that matters follows


def test_a_png_with_one_byte_of_its_pixels_changed_is_refused_by_its_checksum():
    body = encoded("PNG")
    assert [kind for kind, _ in split(body)] == [b"IHDR", b"IDAT", b"IEND"]
    damaged = body[:60] + bytes([body[60] ^ 4]) + body[61:]
    with pytest.raises(BadSample, match=r"\(\d+ bytes\): its chunk IDAT at byte 33 does not match its checksum: the file is damaged"):
        image_files.decode_rgb(damaged)


def test_a_png_whose_pixels_are_wrong_under_a_right_checksum_is_refused():
    parts = dict(split(encoded("PNG")))
    wrong = parts[b"IDAT"][:-1] + bytes([parts[b"IDAT"][-1] ^ 1])  # zlib's own checksum
    with pytest.raises(BadSample, match="not a readable image"):
        image_files.decode_rgb(png.PNG + b"".join(chunk(k, wrong if k == b"IDAT" else b) for k, b in parts.items()))


def with_header(body, **changes):
    """A PNG with other fields in its header, and the right checksum for them."""
    parts = list(split(body))
    names = ("width", "height", "depth", "colour", "compression", "filter", "interlaced")
    fields = dict(zip(names, struct.unpack(">IIBBBBB", parts[0][1]), strict=True)) | changes
    header = struct.pack(">IIBBBBB", *(fields[name] for name in names))
    return png.PNG + b"".join(chunk(kind, header if kind == b"IHDR" else part) for kind, part in parts)


@pytest.mark.parametrize(
    "changes",
    [
        *({"height": n} for n in (1, 12, 23, 25, 200)), *({"width": n} for n in (1, 20, 39, 41, 80)), {"width": 24, "height": 40},
        {"depth": 16}, *({"colour": n} for n in (0, 2, 3, 4, 6, 7)), {"interlaced": 1}, {"depth": 4}, {"depth": 3}, {"width": 0},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_a_png_whose_header_does_not_fit_its_pixels_is_refused(mode, changes):
    body = encoded("PNG", image=NOISE.convert(mode))
    if with_header(body) == with_header(body, **changes) or (mode == "1" and changes == {"width": 39}):  # 39 bits are the bytes of 40
        return
    with pytest.raises(BadSample, match=r"not a readable image|over the limit"):
        image_files.decode_rgb(with_header(body, **changes))


def test_a_png_of_many_rows_with_damage_under_a_right_checksum_is_refused():
    parts = dict(split(encoded("PNG", image=NOISE.resize((400, 300)))))
    for at in range(2, len(parts[b"IDAT"]), 9973):
        hurt = bytearray(parts[b"IDAT"])
        hurt[at] ^= 1
        with pytest.raises(BadSample, match="not a readable image"):
            image_files.decode_rgb(png.PNG + b"".join(chunk(k, bytes(hurt) if k == b"IDAT" else b) for k, b in parts.items()))


def interlaced(pixels):
    """A PNG of RGB pixels in the seven passes of Adam7."""
    rows = b""
    for x, y, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[y::dy, x::dx] if row.size)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    return png.PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_an_interlaced_png_of_any_size_is_read_and_refused_under_another_header():
    for high, wide in itertools.product((1, 2, 3, 5, 8, 9, 17), repeat=2):
        pixels = np.asarray(NOISE)[:high, :wide]
        body = interlaced(pixels)
        assert np.array_equal(image_files.decode_rgb(body), pixels)
        with pytest.raises(BadSample, match="bytes of pixels, and its header declares"):
            image_files.decode_rgb(with_header(body, height=high + 1))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_a_png_whose_last_rows_are_black_is_read_and_refused_where_rows_are_missing(mode):
    image = NOISE.convert("RGB")
    image.paste((0, 0, 0), (0, 12, image.width, image.height))
    body = encoded("PNG", image=image.convert(mode))
    pixels = image_files.decode_rgb(body)
    assert pixels.shape == (image.height, image.width, 3) and not pixels[12:].any() and pixels.flags.writeable
    for height in (image.height - 1, image.height + 1):
        with pytest.raises(BadSample, match=r"its header declares [0-9,]+: one of the two is damaged"):
            image_files.decode_rgb(with_header(body, height=height))


def test_a_png_that_unpacks_to_far_more_than_its_header_says_takes_no_memory():
    packer, bomb = zlib.compressobj(), b""
    for _ in range(300):
        bomb += packer.compress(bytes(1 << 20))
    bomb += packer.flush()
    parts = dict(split(encoded("PNG"))) | {b"IDAT": bomb}
    tracemalloc.start()
    with pytest.raises(
        BadSample, match="it holds more than 2,904 bytes of pixels, and its header declares 2,904: one of the two is damaged"
    ):
        image_files.decode_rgb(png.PNG + b"".join(chunk(kind, body) for kind, body in parts.items()))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def segment(marker, body):
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


SEGMENTS = {
    "JFIF": (0xE0, b"JFIF\0\1\2\1\0\x48\0\x48\0\0"), "JFXX": (0xE0, b"JFXX\0\x13\1\1abc"),
    "MPF": (0xE2, b"MPF\0II*\0\x08\0\0\0" + bytes(40)),
    "ICC": (0xE2, b"ICC_PROFILE\0\1\1" + PROFILE), "Photoshop": (0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10" + bytes(16)),
    "Exif": (0xE1, b"Exif\0\0II*\0\x08\0\0\0\1\0\x0e\x01\2\0\4\0\0\0abc\0\0\0\0\0"), "FlashPix": (0xE2, b"FPXR\0\0" + bytes(9)),
    "XMP": (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"), "comment": (0xFE, b"words"), "Adobe": (0xEE, b"Adobe\0\x64\0\0\0\0\1"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SEGMENTS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_with_any_segment_of_metadata_damaged_has_its_pixels(kind, mode):
    body = encoded("JPEG", image=NOISE.convert(mode))
    clean = np.array(Image.open(io.BytesIO(body)).convert("RGB"))
    marker, sound = SEGMENTS[kind]
    rest = b"".join(itertools.starmap(segment, [SEGMENTS[other] for other in SEGMENTS if other != kind]))
    for other in damages(sound):
        damaged = segment(marker, other)
        assert same_as(clean, body[:20] + damaged + body[20:])  # after its own JFIF segment, of 18 bytes
        assert same_as(clean, body[:20] + damaged + rest + body[20:])
        if kind == "JFIF":
            assert same_as(clean, body[:2] + damaged + body[20:])


def test_a_turned_jpeg_stays_turned_where_another_segment_is_damaged():
    exif = Image.Exif()
    exif[0x0112] = 6
    for told in ({"exif": exif}, {"xmp": TURNED}):
        body = encoded("JPEG", **told)
        clean = image_files.decode_rgb(body)
        assert clean.shape == (40, 24, 3)
        for damaged in (segment(0xE2, b"ICC_PROFILE\0"), segment(0xEE, b"Adobe"), segment(0xE0, b"JFIF")):
            assert same_as(clean, body[:2] + damaged + body[2:])


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("kept", [5, 8, 11])
def test_a_jpeg_whose_only_word_on_its_colours_is_damaged_is_refused(mode, kept):
    body = encoded("JPEG", image=NOISE.convert(mode), **({"keep_rgb": True} if mode == "RGB" else {}))
    start = body.index(b"\xff\xee\0\x0eAdobe")
    assert image_files.decode_rgb(body).shape == (24, 40, 3)
    cut = body[:start] + segment(0xEE, body[start + 4 : start + 4 + kept]) + body[start + 16 :]
    with pytest.raises(BadSample, match="the Adobe segment, which alone says how the colours of this JPEG are stored, is damaged"):
        image_files.decode_rgb(cut)


def test_a_damaged_segment_beside_adobes_changes_no_colour():
    body = encoded("JPEG", keep_rgb=True)
    assert b"JFIF" not in body
    assert same_as(image_files.decode_rgb(body), body[:2] + segment(0xE2, b"ICC_PROFILE\0") + body[2:])


@pytest.mark.parametrize("kind", [b"ICCP", b"EXIF", b"XMP "])
@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_with_any_chunk_of_metadata_damaged_has_its_pixels(kind, lossless):
    exif = Image.Exif()
    exif[0x010E] = "words"
    body = encoded("WEBP", lossless=lossless, exif=exif, icc_profile=PROFILE, xmp=b"<x:xmpmeta/>")
    clean, start = image_files.decode_rgb(body), body.index(kind)
    length = int.from_bytes(body[start + 4 : start + 8], "little")
    after = body[start + 8 + length + length % 2 :]
    for other in damages(body[start + 8 : start + 8 + length]):
        made = body[12:start] + kind + len(other).to_bytes(4, "little") + other + bytes(len(other) % 2) + after
        assert same_as(clean, b"RIFF" + (len(made) + 4).to_bytes(4, "little") + b"WEBP" + made)


def test_a_file_whose_blocks_cannot_be_told_apart_is_still_refused():
    for data in (png.PNG + b"\xff" * 40, image_metadata.JPEG + b"\xe1\0\0" * 9, image_metadata.JPEG + b"\xff" * 90):
        with pytest.raises(BadSample, match="not a readable image"):
            image_files.decode_rgb(data)


LINES = """
import io, resource, sys, pathlib
from PIL import Image
from plait.data import cropping, images, resizing, resizing
from plait.errors import BadSample
Image.MAX_IMAGE_PIXELS = None
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
def prepare(body):
    line = images.decode(body)
    cropping.cover(line, 512, 512), resizing.resize_all([line], 512, 512)
warm = io.BytesIO()
Image.new("1", (512, 64)).save(warm, "PNG")
prepare(warm.getvalue())
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    before = used()
    try:
        prepare(path.read_bytes())
        outcome = "read"
    except BadSample as error:
        outcome = error
    print(used() - before, outcome)
"""


def test_a_line_of_any_length_takes_little_memory(tmp_path):
    sizes = [(65_535, 1), (1, 65_535), (65_535, 16), (8, 65_536), (60_000_000, 1)]
    for i, size in enumerate(sizes):
        (tmp_path / f"{i}.png").write_bytes(encoded("PNG", image=Image.new("1", size)))
    told = subprocess.run([sys.executable, "-c", LINES, str(tmp_path)], capture_output=True, check=True).stdout.decode()
    for size, line in zip(sizes, told.splitlines(), strict=True):
        taken, outcome = line.split(" ", 1)
        limit = f"image of {size[0]} x {size[1]} pixels has a side over the limit of 65535: cut it into several"
        assert outcome == (limit if max(size) > 65_535 else "read")
        assert int(taken) < 64  # MB; 512 x 512 pixels take 0.8, a line of 60,000,000 took 1700


def test_only_segments_before_the_pixels_turn_a_jpeg_and_words_in_others_cost_it_no_time():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = encoded("JPEG", exif=exif), encoded("JPEG")
    pixels = np.array(Image.open(io.BytesIO(plain)))
    words = segment(0xFE, b"Exif\0\0 http://ns.adobe.com/xap/1.0/\0 Adobe \xff\xda")
    assert image_files.decode_rgb(turned[:2] + words + turned[2:]).shape == (40, 24, 3)
    for body in (plain[:20] + words + plain[20:], plain + turned):
        assert np.array_equal(plain_jpeg.decode(body, 1 << 20, None), pixels)
        assert same_as(pixels, body)
