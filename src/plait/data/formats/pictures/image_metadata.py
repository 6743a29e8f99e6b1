"""Strip metadata from PNG and JPEG files, so that a picture can be decoded although its metadata is damaged.

A PNG is a list of chunks (png.py), a JPEG one of segments (ITU T.81, annex B). What decides pixels is always kept:
size, palette, transparency, tables, and how a JPEG stores its colours. Not here: decoding, and what an orientation means (image_files.py).
"""

from collections.abc import Iterator

from plait.data.formats.pictures.png import PIXELS, PNG, chunks, sound
from plait.errors import BadSample

JPEG = b"\xff\xd8\xff"
COLOURS_UNKNOWN = "the Adobe segment, which alone says how the colours of this JPEG are stored, is damaged: write the picture anew"

_TEXTS = frozenset([b"tEXt", b"zTXt", b"iTXt"])
_ORIENTING = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"exif\0")
"""The keywords of the texts in which a PNG may state its orientation, besides its eXIf chunk."""
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
"""A JFIF segment without resolution and thumbnail: it says that a picture is grey or YCbCr, and nothing else."""
_JFIF_MARKER, _ADOBE_MARKER, _EXIF_MARKER = 0xE0, 0xEE, 0xE1
_METADATA = frozenset([*range(0xE0, 0xF0), 0xFE])  # the applications' segments, and the comment
_FRAMES = frozenset([*range(0xC0, 0xD0)]) - {0xC4, 0xC8, 0xCC}  # sizes and components
_ENDS = frozenset([0xD8, 0xD9, 0xDA])  # after these come pixels, or nothing


def reduced(data: bytes) -> Iterator[bytes]:
    """Yield two versions of a PNG or JPEG file: with no metadata except its orientation, then with none at all. Other formats: nothing.

    Both show the same pixels: a decoder that fails at damaged metadata may read one of them.
    Raises BadSample for a JPEG of which only a damaged segment says how its colours are stored.
    """
    for oriented in (True, False):
        if data.startswith(PNG):
            yield PNG + b"".join(chunk for kind, chunk in chunks(data) if kind in PIXELS or (oriented and _orients(kind, chunk)))
        elif data.startswith(JPEG):
            yield b"\xff\xd8" + b"".join(_pixel_segments(data, oriented=oriented))


def colours_known(components: int, transform: int | None, *, jfif: bool) -> bool:
    """Return whether a JPEG says how its colours are stored (RGB, YCbCr, CMYK or YCCK), so that it can be decoded.

    It is for a JPEG with an Adobe segment; one without is decoded, and not asked about. `components`: its number of channels; `transform`:
    the value in that segment, 0, 1 or 2 if sound (None: the segment is too short to have one); `jfif`: whether it has a JFIF segment, with
    which three channels are YCbCr.
    """
    return components not in (3, 4) or (components == 3 and jfif) or transform in (0, 1, 2)


def _orients(kind: bytes, chunk: bytes) -> bool:
    """Return whether a chunk of a PNG is sound and may state the picture's orientation."""
    return (kind == b"eXIf" or (kind in _TEXTS and chunk[8:].startswith(_ORIENTING))) and sound(kind, chunk)


def _segments(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield marker, body and whole of each segment of a JPEG before its pixels. The last is all the rest, as marker 0."""
    start = 2
    while start + 4 <= len(data) and data[start] == 0xFF and data[start + 1] not in _ENDS:
        end = start + 1 if data[start + 1] == 0xFF else start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        yield data[start + 1], data[start + 4 : end], data[start:end]
        start = end
    yield 0, b"", data[start:]


def _pixel_segments(data: bytes, *, oriented: bool) -> list[bytes]:
    """Return the segments of a JPEG that decide its pixels. If it says that it is JFIF, a sound segment that says so is with them."""
    segments = list(_segments(data))
    components = next((body[5] for marker, body, _ in segments if marker in _FRAMES and len(body) > 5), 0)
    jfif = any(marker == _JFIF_MARKER and body.startswith(b"JFIF") for marker, body, _ in segments)
    kept = [_JFIF] if jfif else []
    for marker, body, segment in segments:
        adobe = marker == _ADOBE_MARKER and body.startswith(b"Adobe")
        whole = len(body) > 11
        if adobe and not colours_known(components, body[11] if whole else None, jfif=jfif):
            raise BadSample(COLOURS_UNKNOWN)
        orients = oriented and marker == _EXIF_MARKER and body.startswith((_EXIF, _XMP))
        if marker not in _METADATA or (adobe and whole) or orients:
            kept.append(segment)
    return kept
