"""Deterministic mutations of encoded bytes: flips, cuts, inserted, swapped and repeated chunks, extreme numbers, pieces of another file."""

from collections.abc import Callable

import numpy as np

Mutation = Callable[[np.random.Generator, bytes, bytes], bytes]
"""(draw, body, another body) -> mutated body."""


def _at(draw: np.random.Generator, body: bytes) -> int:
    """Return a position, every second time among the first 256 bytes, where headers are."""
    end = min(len(body), 256) if draw.integers(2) else len(body)
    return int(draw.integers(max(1, end)))


def flips(draw: np.random.Generator, body: bytes, other: bytes) -> bytes:
    """Flip 1 to 16 bits."""
    out = bytearray(body)
    for _ in range(int(draw.integers(1, 17))):
        out[_at(draw, body)] ^= 1 << int(draw.integers(8))
    return bytes(out)


def cut(draw: np.random.Generator, body: bytes, other: bytes) -> bytes:
    """Leave only the bytes before a position."""
    return body[: _at(draw, body)]


def removed(draw: np.random.Generator, body: bytes, other: bytes) -> bytes:
    """Remove up to 64 bytes from the middle."""
    start = _at(draw, body)
    return body[:start] + body[start + int(draw.integers(1, 65)) :]


def inserted(draw: np.random.Generator, body: bytes, other: bytes) -> bytes:
    """Insert up to 64 random bytes."""
    start = _at(draw, body)
    return body[:start] + draw.bytes(int(draw.integers(1, 65))) + body[start:]


def swapped(draw: np.random.Generator, body: bytes, other: bytes) -> bytes:
    """Swap two neighbouring chunks: those of a PNG, or stretches of any lengths."""
    edges = png_edges(body) if body.startswith(b"\x89PNG") else []
    if len(edges) >= 3:
        first = int(draw.integers(len(edges) - 2))
        a, b, c = edges[first : first + 3]
    else:
        a, b, c = sorted(_at(draw, body) for _ in range(3))
    return body[:a] + body[b:c] + body[a:b] + body[c:]


def repeated(draw: np.random.Generator, body: bytes, other: bytes) -> bytes:
    """Repeat a stretch of bytes up to 32 times."""
    a, b = sorted(_at(draw, body) for _ in range(2))
    return body[:b] + body[a:b] * int(draw.integers(1, 33)) + body[b:]


def extreme(draw: np.random.Generator, body: bytes, other: bytes) -> bytes:
    """Put an extreme number of 2 or 4 bytes somewhere, in either order of bytes."""
    number = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\0\0\x1f\xff", b"\xff\x1f\0\0", b"\xff\xff"]
    start, value = _at(draw, body), number[int(draw.integers(len(number)))]
    return body[:start] + value + body[start + len(value) :]


def spliced(draw: np.random.Generator, body: bytes, other: bytes) -> bytes:
    """Go over into another file from a position on."""
    return body[: _at(draw, body)] + other[_at(draw, other) :]


def png_edges(body: bytes) -> list[int]:
    """Return where the chunks of a PNG begin, and where the last one ends."""
    edges, start = [], 8
    while start + 12 <= len(body):
        edges.append(start)
        start += 12 + int.from_bytes(body[start : start + 4], "big")
    return [*edges, min(start, len(body))]


ALL: tuple[Mutation, ...] = (flips, cut, removed, inserted, swapped, repeated, extreme, spliced)
