"""Read and write the records of TensorBoard's event files. Its own writer takes a thread, and a byte at a time for checksums.

A file is a sequence of records: length (uint64), its checksum (uint32), an Event, the Event's checksum (uint32); little-endian.
"""

import functools
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

PREFIX = "events.out.tfevents."
"""How the names of event files begin; the second follows in which the file was made."""

_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), as RFC 3720 has it, the first bit of a byte being its lowest
_ONES = 0xFFFFFFFF
_CHUNK = 2048  # bytes whose bits are added up at once
_numbers = itertools.count()


class EventFile:
    """A new event file in `folder`, which is made if it is missing. Viewers drop what older files there have from `step` on.

    Raises OSError where the disk fails.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{PREFIX}{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._descriptor = os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.write(Event(file_version="brain.Event:2"))
        self.write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, event: Event) -> None:
        """Append an event of the present time. Raises OSError where the disk fails, which may leave a part of a record."""
        event.wall_time = time.time()
        body = event.SerializeToString()
        head = struct.pack("<Q", len(body))
        record = b"".join([head, struct.pack("<I", masked_crc(head)), body, struct.pack("<I", masked_crc(body))])
        while record:
            record = record[os.write(self._descriptor, record) :]

    def close(self) -> None:
        """Close the file, for the first time and only then."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def events(file: IO[bytes]) -> Iterator[tuple[Event, int]]:
    """Yield (event, offset of its end) of an event file. It ends at the file's end or the first record that is cut short or damaged."""
    while len(head := file.read(12)) == 12:
        (length,), (check,) = struct.unpack("<Q", head[:8]), struct.unpack("<I", head[8:])
        if check != masked_crc(head[:8]):
            return
        body = file.read(length + 4)
        if len(body) < length + 4:
            return
        try:
            event = Event.FromString(body[:-4])
        except DecodeError:
            return
        yield event, file.tell()


def masked_crc(data: bytes) -> int:
    """Return the checksum of a record's part: its CRC-32C, turned by 15 bits, plus a constant (TensorFlow, `crc32c.h`)."""
    crc = crc32c(data)
    return (crc >> 15 | crc << 17) + 0xA282EAD8 & _ONES


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of at least 4 bytes.

    A CRC is linear over bits: it is the XOR of what each bit that is set contributes by its distance from the end. What the bytes before
    gave (ones, before the first) is added to the first four bytes.
    """
    start, register = 0, _ONES
    while start < len(data):
        end = start + _CHUNK if len(data) - start >= _CHUNK + 4 else len(data)
        bits = np.unpackbits(np.frombuffer(data, np.uint8, end - start, start), bitorder="little")
        bits[:32] ^= np.unpackbits(np.frombuffer(register.to_bytes(4, "little"), np.uint8), bitorder="little")
        register = int(np.bitwise_xor.reduce(_contributions()[-len(bits) :] * bits))
        start = end
    return register ^ _ONES


@functools.cache
def _contributions() -> NDArray[np.uint32]:
    """Return what a set bit contributes to the CRC, for the bits of as many bytes as are added up at once; the last is the last bit."""
    register, contributions = 1, []
    for _ in range(8 * (_CHUNK + 3)):
        register = register >> 1 ^ (_POLYNOMIAL if register & 1 else 0)
        contributions.append(register)
    return np.array(contributions[::-1], np.uint32)
