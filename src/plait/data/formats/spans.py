"""What the scans of text files with records (json_spans.py, csv_spans.py) share: the index that they give, and what is refused at once.

The index has a row per record: `start` and `end`, offsets in the file. `facts` has the number of `samples` and the `format`.
"""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.errors import PlaitError

Facts = dict[str, Any]
"""What a scan learns of a file besides offsets, as JSON values."""


@dataclass(frozen=True)
class Layout:
    """How a text file holds records. `scan` finds them; `fields` parses one: called with its bytes, its name, and the scan's facts."""

    format: str
    scan: Callable[[Path], tuple[Facts, dict[str, np.ndarray]]]
    fields: Callable[[bytes, str, Facts], dict[str, Any]]
    """Raises BadSample for a record that is broken."""


def check_bytes(path: Path, format_name: str) -> None:
    """Raise PlaitError for an empty file, and for one in UTF-16."""
    if path.stat().st_size == 0:
        raise PlaitError(f"{path} is empty (0 bytes)")
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise PlaitError(f"{path} is UTF-16; {format_name} is UTF-8: iconv -f UTF-16 -t UTF-8 {path.name} > new{path.suffix}")


def pack(path: Path, format_name: str, spans: Sequence[tuple[int, int]], **facts: object) -> tuple[Facts, dict[str, np.ndarray]]:
    """Return the facts and arrays of an index. Raises PlaitError for a file without records."""
    if not spans:
        raise PlaitError(f"{path} holds no records")
    table = np.array(spans, np.int64)
    arrays = {"start": np.ascontiguousarray(table[:, 0]), "end": np.ascontiguousarray(table[:, 1])}
    return {"format": format_name, "samples": len(spans), **facts}, arrays
