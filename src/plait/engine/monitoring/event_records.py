"""Read and write the records of TensorBoard's event files. Its own writer takes a thread, and Python for each byte of a checksum.

A file is a sequence of records: length (uint64), its checksum (uint32), an Event, the Event's checksum (uint32); little-endian.
"""

import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import google_crc32c
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

PREFIX = "events.out.tfevents."
"""How the names of event files begin; the second follows in which the file was made."""

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
    crc: int = google_crc32c.value(data)
    return (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF
