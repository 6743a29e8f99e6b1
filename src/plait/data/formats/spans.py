"""Shared by the scans of text files with records (json_spans.py, csv_spans.py): the index that they return, and the first checks.

The index has arrays `start` and `end`, each record's offsets in the file. `facts` has the number of `samples` and the `format`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.formats.encodings import wide_encoding
from plait.errors import PlaitError

Facts = dict[str, Any]
"""What a scan records of a file besides offsets, by name, as JSON values."""


@dataclass(frozen=True)
class Layout:
    """A text format of records. `scan` returns a file's facts and index; `fields` parses a record, given its bytes, name and the facts."""

    format: str
    scan: Callable[[Path], tuple[Facts, dict[str, np.ndarray]]]
    fields: Callable[[bytes, str, Facts], dict[str, Any]]
    """Raises BadSample for a record that is broken."""


def check_bytes(path: Path, format_name: str) -> None:
    """Raise PlaitError if a file is empty or in UTF-16 or UTF-32. `format_name`, such as "CSV", is for the message."""
    if path.stat().st_size == 0:
        raise PlaitError(f"{path} is empty (0 bytes)")
    with path.open("rb") as file:
        encoding = wide_encoding(file.read(4))
    if encoding is not None:
        raise PlaitError(f"{path} is {encoding}; {format_name} is UTF-8: iconv -f {encoding} -t UTF-8 {path.name} > new{path.suffix}")


def pack(path: Path, format_name: str, spans: Sequence[tuple[int, int]], **facts: object) -> tuple[Facts, dict[str, np.ndarray]]:
    """Return the facts and arrays of an index. `spans`: (start, end) per record. Raises PlaitError if there are none."""
    if not spans:
        raise PlaitError(f"{path} holds no records")
    table = np.array(spans, np.int64)
    arrays = {"start": np.ascontiguousarray(table[:, 0]), "end": np.ascontiguousarray(table[:, 1])}
    return {"format": format_name, "samples": len(spans), **facts}, arrays
