"""TFRecord files of tf.train.Example, without TensorFlow: framed records, and just enough of the protocol buffer wire format.

A record is a length (8 bytes), its checksum (4), the content and its checksum (4), all little-endian. Checksums are not read: a cut file is
found by its lengths. Format: tensorflow/core/lib/io/record_writer.h and tensorflow/core/example/example.proto.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from plait.errors import PlaitError

_GZIP = b"\x1f\x8b"
Value = list[bytes] | list[int]


def spans(path: Path) -> Iterator[tuple[int, int]]:
    """Where the content of each record begins and ends."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(2) == _GZIP:
            raise PlaitError(
                f"{path} is compressed, and records could only be read from the start: unpack it with `gzip -d -S '' {path.name}`"
            )
        place = 0
        while place < size:
            file.seek(place)
            head = file.read(12)
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
            if place + 12 + length + 4 > size:
                raise PlaitError(f"{path} is cut short, or no TFRecord file: record at byte {place} runs past its end")
            yield place + 12, place + 12 + length
            place += 12 + length + 4


def read(file: BinaryIO, start: int, end: int) -> dict[str, Value]:
    """The features of the example at bytes `start` to `end`: lists of bytes or of whole numbers (floats are left out)."""
    file.seek(start)
    body = file.read(end - start)
    found: dict[str, Value] = {}
    for _, features in _fields(body):
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            for kind, values in _fields(parts.get(2, b"")):
                name = parts[1].decode()
                if kind == 1:
                    found[name] = [value for _, value in _fields(values)]
                elif kind == 3:
                    found[name] = [_signed(number) for _, packed in _fields(values) for number in _numbers(packed)]
    return found


def _fields(body: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of each field of a message; a number that is not packed comes as its own bytes."""
    place = 0
    while place < len(body):
        tag, place = _varint(body, place)
        kind = tag & 7
        if kind == 2:
            length, place = _varint(body, place)
            yield tag >> 3, body[place : place + length]
            place += length
        elif kind == 0:
            start = place
            _, place = _varint(body, place)
            yield tag >> 3, body[start:place]
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise PlaitError(f"no tf.train.Example: field of wire type {kind}")


def _varint(body: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = body[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


def _numbers(packed: bytes) -> Iterator[int]:
    place = 0
    while place < len(packed):
        value, place = _varint(packed, place)
        yield value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
