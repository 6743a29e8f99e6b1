"""Find the rows of a CSV file and parse one. Every cell is the text that it holds (NA, null, 007), an empty one is None.

A header names the columns, and its delimiter (, ; tab or |) is that of all rows. Cells may be between quotes, and then hold line breaks.
Lone quotes join rows. So a row of several lines is refused when each of its lines could be a row by itself (see `_joined`), and where
tabs are the delimiter, a cell that holds both a tab and a line break.
A row that is broken, is not UTF-8 or has another number of cells than the header is found like any other, and refused when it is read.
"""

import csv
import mmap
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.formats.encodings import not_utf8
from plait.data.formats.spans import Facts, check_bytes, pack
from plait.errors import BadSample, PlaitError

DELIMITERS = ",;\t|"
"""Of these the one that a header has most often is the file's delimiter."""
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_LINE_BREAK = re.compile(r"[\r\n]")
_FILE_NAME = re.compile(r".*\.[A-Za-z]\w{1,4}", re.DOTALL)
_LONGEST_HEADER = 1 << 16  # characters
_LONGEST_CELL = 1 << 24  # characters


def scan(path: Path) -> tuple[Facts, dict[str, np.ndarray]]:
    """Find the rows; return (facts, arrays): {`format`, `samples`, `lines`, `columns`, `delimiter`} and {`start`, `end`, `line`}.

    `start`, `end`: each row's byte offsets; `line`: that on which it begins, from 1, left out (`lines` False) where rows share lines.
    Raises PlaitError for a file without rows, a header that names a column twice, and a quote that is not closed (which of the lines after
    it are rows cannot be known).
    """
    check_bytes(path, "CSV")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        header = _QUOTED.sub("", _header(_Lines(mapped)))
        delimiter = max(DELIMITERS, key=header.count)
        rows = _rows(path, _Lines(mapped), delimiter)
        _, _, _, names = next(rows, (0, 0, 0, []))
        columns = _columns(path, names)
        spans = [(start, end, line) for start, end, line, _ in rows]
    return pack(path, "csv", spans, columns=columns, delimiter=delimiter)


def fields(body: bytes, where: str, facts: Facts) -> dict[str, Any]:
    """Return the cells of a row, whose bytes are `body`, by column; None for an empty one. `facts`: what `scan` returned of the file.

    Raises BadSample, naming the row `where`, if it is broken, is not UTF-8 or has another number of cells than the header.
    """
    columns, delimiter = facts["columns"], facts["delimiter"]
    try:
        cells = next(_reader([body.decode()], delimiter))
    except UnicodeDecodeError as error:
        raise BadSample(f"{where} {not_utf8(error)}") from error
    except csv.Error as error:
        lines = len(body.splitlines())
        raise BadSample(f"{where}{f' ({lines} lines, by a quote)' if lines > 1 else ''} is no row of CSV: {error}") from error
    if len(cells) != len(columns):
        cure = f"quote cells that hold {delimiter!r}" if len(cells) > len(columns) else "give it the others, empty ones if need be"
        raise BadSample(f"{where} has {len(cells)} cells, and the header {len(columns)}: {cure}")
    if delimiter == "\t" and any("\t" in cell and _LINE_BREAK.search(cell) for cell in cells):
        raise BadSample(f"{where} has a cell with a tab and a line break between quotes: lone quotes may join rows; double them")
    if _joined(body.decode(), cells, columns, delimiter):
        what = f"{where} has {len(body.splitlines())} lines, each of them a row but for its quotes"
        raise BadSample(f"{what}: lone quotes may join rows; double them, or write the file as JSON if this is one row")
    return {name: cell or None for name, cell in zip(columns, cells, strict=True)}


def _joined(text: str, cells: list[str], columns: list[str], delimiter: str) -> bool:
    """Return whether a row of several lines looks like several rows that lone quotes join, as `a.png,"x` and `b.png,y"` do.

    Then each line, with its quotes taken as letters, has as many cells as the header, and a file name wherever this row has one. Rows
    without file names must also be without the space that follows a comma in prose.
    """
    lines = [line.split(delimiter) for line in _LINE_BREAK.split(text) if line.strip()]
    if len(lines) < 2 or len(columns) < 2 or any(len(line) != len(columns) for line in lines):
        return False
    named = [i for i, cell in enumerate(cells) if _FILE_NAME.fullmatch(cell)]
    if named:
        return all(_FILE_NAME.fullmatch(line[i].strip('" ')) for line in lines for i in named)
    return not any(cell[:1].isspace() for line in lines for cell in line[1:])


class _Lines(Iterator[str]):
    """The lines of a mapped file, each byte as one character (Latin-1); `position` is the offset after the line read last."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self.mapped, self.number = mapped, 0
        self.position = 3 if mapped[:3] == b"\xef\xbb\xbf" else 0
        self.newline = b"\n" if mapped.find(b"\n") >= 0 else b"\r"

    def __next__(self) -> str:
        if self.position >= len(self.mapped):
            raise StopIteration
        end = self.mapped.find(self.newline, self.position) + 1 or len(self.mapped)
        line, self.position, self.number = self.mapped[self.position : end], end, self.number + 1
        return line.decode("latin-1")


def _header(lines: _Lines) -> str:
    """Return the first row as text: its line, and those after it as long as a quote is open."""
    header = next(lines, "")
    while header.count('"') % 2 and len(header) < _LONGEST_HEADER and (line := next(lines, "")):
        header += line
    return header


def _rows(path: Path, lines: _Lines, delimiter: str) -> Iterator[tuple[int, int, int, list[str]]]:
    """Yield (start, end, first line, cells) of each row that is not blank; a broken row has no cells.

    Raises PlaitError for a quote that is not closed.
    """
    reader = _reader(lines, delimiter)
    while True:
        start, number = lines.position, lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if lines.number > number and ("end of data" in str(error) or "limit" in str(error)):
                raise PlaitError(f"{path}: the quote that opens a cell in line {number} is not closed: close it, or double it") from error
            yield start, lines.position, number, []
            continue
        if cells:
            yield start, lines.position, number, cells


def _columns(path: Path, names: list[str]) -> list[str]:
    """Return the columns that the header names. Raises PlaitError for a broken header, and for a name given twice."""
    try:
        columns = [name.encode("latin-1").decode() for name in names]
    except UnicodeDecodeError as error:
        raise PlaitError(f"the header of {path} is not UTF-8: iconv -f LATIN1 -t UTF-8 {path.name} > new{path.suffix}") from error
    if not columns:
        raise PlaitError(f"the header of {path} is no row of CSV: mend its quotes")
    if re.fullmatch(r"(?i)sep=.?", columns[0]) and not any(columns[1:]):
        raise PlaitError(f"the first line of {path} is a spreadsheet's `sep=`, and no header: sed 1d {path.name} > new{path.suffix}")
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise PlaitError(f"the header of {path} names {twice!r} twice: rename one, as only one of them can be read")
    return columns


def _reader(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Return the csv module's reader, which refuses what it would otherwise guess at, for cells of any sensible length."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))  # a setting of the whole process
    return csv.reader(lines, delimiter=delimiter, strict=True)
