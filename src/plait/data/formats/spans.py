"""Shared by the scans of text files with records (json_spans.py, csv_spans.py): the index that they return, and the first checks.

The index has arrays `start` and `end`, each record's offsets in the file, and `line`, the number of the line on which it begins, from 1;
no `line` where records share lines. `facts` has the number of `samples`, the `format` and whether there are `lines`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.formats.encodings import compression, wide_encoding
from plait.errors import PlaitError

_LOOKED_AT = 4096  # bytes at a file's start
_PACKED = (".gz", ".bz2", ".xz", ".zst")

Facts = dict[str, Any]
"""What a scan records of a file besides offsets, by name, as JSON values."""

Span = tuple[int, int, int]
"""Where a record lies: the offsets of its start and end in the file, and the line on which it begins, from 1."""


@dataclass(frozen=True)
class RecordLayout:
    """A text format of records. `scan` returns a file's facts (samples, ...) and arrays by name: where each record starts and ends.

    `fields` returns the fields of a record by name, given its bytes, its name for errors, and the file's facts.
    """

    format: str
    scan: Callable[[Path], tuple[Facts, dict[str, np.ndarray]]]
    fields: Callable[[bytes, str, Facts], dict[str, Any]]
    """Raises BadSample for a record that is broken."""


def check_file(path: Path) -> None:
    """Raise PlaitError if `path` is no regular file (a FIFO, a device, a folder), or is empty."""
    if not path.is_file():
        raise PlaitError(f"{path} is not a regular file" if path.exists() else f"there is no file {path}")
    if path.stat().st_size == 0:
        raise PlaitError(f"{path} is empty (0 bytes)")


def check_bytes(path: Path, format_name: str) -> None:
    """Raise PlaitError if a file is none, empty, zeros, compressed, or in UTF-16 or UTF-32. `format_name`, as "CSV": for the message."""
    check_file(path)
    with path.open("rb") as file:
        start = file.read(_LOOKED_AT)
    if not start.strip(b"\0"):
        zeros = f"its first {len(start):,} bytes are" if path.stat().st_size > len(start) else "all of it is"
        raise PlaitError(f"{path} was not written whole: {zeros} zero, as after a full disk or a power cut; copy or download it again")
    encoding, packed = wide_encoding(start), compression(start)
    if packed is not None:
        plain = path.name.removesuffix(path.suffix) if path.suffix in _PACKED else f"plain-{path.name}"
        raise PlaitError(
            f"{path} is compressed ({packed}), so its records cannot be read at random; unpack it: {packed} -dc {path.name} > {plain}"
        )
    if encoding is not None:
        raise PlaitError(f"{path} is {encoding}; {format_name} is UTF-8: iconv -f {encoding} -t UTF-8 {path.name} > new{path.suffix}")


def pack(path: Path, format_name: str, spans: Sequence[Span], **facts: object) -> tuple[Facts, dict[str, np.ndarray]]:
    """Return the facts and arrays of the index of file `path`. `spans`: (start, end, line) per record, in their order.

    The arrays are `start`, `end` and `line`, without `line` where records share lines. `format_name`, such as "json", and any further
    `facts` are recorded. Raises PlaitError if there are no records.
    """
    if not spans:
        raise PlaitError(f"{path} holds no records")
    table = np.array(spans, np.int64)
    arrays = {name: np.ascontiguousarray(table[:, column]) for column, name in enumerate(("start", "end", "line"))}
    lines = bool((np.diff(arrays["line"]) > 0).all())
    if not lines:
        del arrays["line"]
    return {"format": format_name, "samples": len(spans), "lines": lines, **facts}, arrays
