"""Read TFRecord files of tf.train.Example without TensorFlow: framed records, and as much of protocol buffers as they need.

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
"""The values of one feature of a tf.train.Example."""


def spans(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each record's content, in bytes of the file. Raises PlaitError for a compressed or truncated file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(2) == _GZIP:
            raise PlaitError(
                f"{path} is compressed, and records could only be read from the start: unpack it with `gzip -d -S '' {path.name}`"
            )
        offset = 0
        while offset < size:
            file.seek(offset)
            head = file.read(12)
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
            if offset + 12 + length + 4 > size:
                raise PlaitError(f"{path} is cut short, or no TFRecord file: record at byte {offset} runs past its end")
            yield offset + 12, offset + 12 + length
            offset += 12 + length + 4


def read(file: BinaryIO, start: int, end: int) -> dict[str, Value]:
    """Return the features by name of the tf.train.Example at bytes `start` to `end`: lists of bytes or integers (floats are left out).

    Raises PlaitError for a field of a kind that no tf.train.Example has.
    """
    file.seek(start)
    body = file.read(end - start)
    values_by_name: dict[str, Value] = {}
    for _, features in _fields(body):
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            for kind, values in _fields(parts.get(2, b"")):
                name = parts[1].decode()
                if kind == 1:
                    values_by_name[name] = [value for _, value in _fields(values)]
                elif kind == 3:
                    values_by_name[name] = [_signed(number) for _, packed in _fields(values) for number in _numbers(packed)]
    return values_by_name


def _fields(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (number, content) of each field of a message; a number that is not packed comes as its own bytes.

    Raises PlaitError for a wire type that no tf.train.Example has.
    """
    offset = 0
    while offset < len(body):
        tag, offset = _varint(body, offset)
        kind = tag & 7
        if kind == 2:
            length, offset = _varint(body, offset)
            yield tag >> 3, body[offset : offset + length]
            offset += length
        elif kind == 0:
            start = offset
            _, offset = _varint(body, offset)
            yield tag >> 3, body[start:offset]
        elif kind in (1, 5):
            offset += 8 if kind == 1 else 4
        else:
            raise PlaitError(f"no tf.train.Example: field of wire type {kind}")


def _varint(body: bytes, offset: int) -> tuple[int, int]:
    """Return (value, offset after it) of a base-128 number, least significant group first."""
    value, shift = 0, 0
    while True:
        byte = body[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
        shift += 7


def _numbers(packed: bytes) -> Iterator[int]:
    offset = 0
    while offset < len(packed):
        value, offset = _varint(packed, offset)
        yield value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
