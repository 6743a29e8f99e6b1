"""Find and parse the lines of a .tsv file without a header, as CC12M and CC3M are published. Quotes are letters.

Such a file is told by its first line, which holds an address (http...). Its columns are `url`, the first cell that is one there, and
`caption`, the next other one; further cells are `column_3` and so on.
"""

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.formats.encodings import not_utf8
from plait.data.formats.spans import Facts, RecordLayout, check_bytes
from plait.errors import BadSample, PlaitError


def columns_of(path: Path) -> list[str] | None:
    """Return the columns of a .tsv file without a header; None for any other file."""
    if path.suffix.lower() != ".tsv":
        return None
    with path.open("rb") as file:
        cells = file.readline(1 << 16).decode(errors="replace").rstrip("\r\n").split("\t")
    is_url = [cell.startswith(("http://", "https://")) for cell in cells]
    if not any(is_url):
        return None
    url = is_url.index(True)
    caption = next((number for number in range(len(cells)) if number != url), None)
    names = {url: "url", caption: "caption"}
    return [names.get(number, f"column_{number + 1}") for number in range(len(cells))]


def scan(path: Path) -> tuple[Facts, dict[str, np.ndarray]]:
    """Find the lines of a file and return (facts, arrays) as the other scans do. Raises PlaitError for a file without lines."""
    check_bytes(path, "TSV")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        breaks = np.flatnonzero(np.frombuffer(mapped, np.uint8) == ord("\n"))
        size = len(mapped)
    ends = np.append(breaks, size).astype(np.int64)
    starts = np.append(0, breaks + 1).astype(np.int64)
    kept = np.flatnonzero(ends > starts)
    if not len(kept):
        raise PlaitError(f"{path} holds no records")
    facts = {"format": "lines", "samples": len(kept), "lines": True, "columns": columns_of(path)}
    return facts, {"start": starts[kept], "end": ends[kept], "line": kept.astype(np.int64) + 1}


def fields(body: bytes, where: str, facts: Facts) -> dict[str, Any]:
    """Return the cells of a line by column; None for an empty one. Raises BadSample for one that is not UTF-8, or of another length."""
    try:
        cells = body.decode().rstrip("\r").split("\t")
    except UnicodeDecodeError as error:
        raise BadSample(f"{where} {not_utf8(error)}") from error
    if len(cells) != len(facts["columns"]):
        raise BadSample(f"{where} has {len(cells)} cells, and the first line {len(facts['columns'])}")
    return {name: cell or None for name, cell in zip(facts["columns"], cells, strict=True)}


LINES = RecordLayout("lines", scan, fields)
"""The layout of such a file."""
