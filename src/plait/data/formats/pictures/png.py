"""Read the chunks of PNG files: whether those that decide the pixels are intact, and a file without its animation.

A PNG is a list of chunks, each with a checksum (PNG, third edition, chapter 5).
"""

import zlib
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
PIXELS = frozenset([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])
_CHECKED = PIXELS - {b"IEND"}
PALETTED, MAY_HAVE_PALETTE = 3, (2, 6)  # colour types; the others must have none
_ANIMATION = frozenset([b"acTL", b"fcTL", b"fdAT"])


def still(data: bytes) -> bytes:
    """Return a PNG file without its animation chunks, and any other data as it is.

    A decoder would crop the first picture to the window in a damaged animation chunk.
    """
    if not data.startswith(PNG) or not any(kind in data for kind in _ANIMATION):
        return data
    return PNG + b"".join(chunk for kind, chunk in chunks(data) if kind not in _ANIMATION)


def damage(data: bytes) -> str:
    """Return what is wrong with the chunks of a PNG that decide its pixels; "" where nothing is, and for other formats.

    Decoders do not compare the checksums of pixels, and metadata whose type or length is damaged may hide chunks that decide pixels.
    """
    at = len(PNG)
    for kind, chunk in chunks(data) if data.startswith(PNG) else ():
        if kind == b"IEND":
            break
        if not sound(kind, chunk):
            hurt = next((each for each in _CHECKED if each in chunk or sound(each, chunk)), None)
            if hurt is not None:
                return f"its chunk {hurt.decode()} at byte {at} does not match its checksum: the file is damaged or truncated"
        at += len(chunk)
    return ""


def one_row_more(data: bytes) -> bytes:
    """Return a PNG whose header declares one row more: decoding it shows whether there are pixels beyond those declared.

    b"" for a PNG with interlaced rows, a header that is not first, or a palette that does not fit its colour type (PNG 11.2.2).
    """
    at = data.find(b"IDAT")
    colour, interlaced = (data[25], data[28]) if data.startswith(PNG + b"\0\0\0\x0dIHDR") and at > 28 else (0, 1)
    if interlaced or (colour not in MAY_HAVE_PALETTE and (b"PLTE" in data[:at]) != (colour == PALETTED)):
        return b""
    header = data[12:20] + (int.from_bytes(data[20:24], "big") + 1).to_bytes(5, "big")[1:] + data[24:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, bytes) of each chunk of a PNG; the bytes are its length, type, body and checksum. The last one may be cut short."""
    start = len(PNG)
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        yield data[start + 4 : start + 8], data[start:end]
        start = end


def sound(kind: bytes, chunk: bytes) -> bool:
    """Return whether a chunk of a PNG, taken for one of type `kind`, matches its checksum."""
    return zlib.crc32(memoryview(chunk)[8:-4], zlib.crc32(kind)) == int.from_bytes(chunk[-4:], "big")
