"""Read a list of links by row number, from parquet, CSV, TSV or JSONL files, also remote ones.

Files at an address are copied into the cache: text before all, parquet when a row of it is read. Text files have an index of their records
(formats/index.py); parquet is read in order, batch by batch, so that a list may be larger than memory.
"""

import base64
import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import xxhash

from plait.data import addresses, paths
from plait.data.download import hashes
from plait.data.formats import plain_lines, tables
from plait.data.link_lists.columns import Columns, find_columns
from plait.data.parquet.footer import read_footer
from plait.data.remote_files import fetched
from plait.data.sources.indexed import LAYOUTS, IndexedRecords
from plait.errors import BadSample, PlaitError

_ENDINGS = (*LAYOUTS, ".parquet")
_BATCH = 4096  # rows of parquet that are read at once
_TRIED = 20  # records that are looked at for the names of columns
_SHORT = {"float": np.float32, "halffloat": np.float16}


@dataclass(frozen=True)
class Link:
    """A row of a list. `row`: its number from 0; `url` and `hash`: None without one; `fields`: all columns but that of the addresses
    and one called caption that is the caption. `odd_caption`: the type of a caption that is no text, "" for any other.

    `fault`: why the row cannot be read, "" for one that can.
    """

    row: int
    url: str | None
    caption: str | None
    hash: str | None
    fields: Mapping[str, Any]
    fault: str = ""
    odd_caption: str = ""


class _File(Protocol):
    """One file of a list. `digest`: a hash of what identifies it; `columns`: names, None where records may differ."""

    digest: str
    columns: list[str]

    def __len__(self) -> int: ...
    def read(self, start: int, stop: int) -> Iterator[dict[str, Any] | str]:
        """Yield the fields of rows [start, stop), or the reason of a broken row."""

    def column(self, name: str) -> Iterator[Any]:
        """Yield one cell of every row; None of a broken one."""


class _Text:
    """A file of JSON or CSV records, read by number."""

    def __init__(self, path: Path, cache: str | None) -> None:
        layout = plain_lines.LINES if plain_lines.columns_of(path) else LAYOUTS[path.suffix.lower()]
        self.records = IndexedRecords(path, layout, cache, {}, images=None)
        self.digest = self.records.digest
        self.columns = list(dict.fromkeys(name for row in self.read(0, min(_TRIED, len(self))) if isinstance(row, dict) for name in row))

    def __len__(self) -> int:
        return len(self.records)

    def read(self, start: int, stop: int) -> Iterator[dict[str, Any] | str]:
        for number in range(start, stop):
            try:
                yield self.records.fields(number)
            except BadSample as error:
                yield str(error)

    def column(self, name: str) -> Iterator[Any]:
        for row in self.read(0, len(self)):
            yield None if isinstance(row, str) else row.get(name)


class _Parquet:
    """A parquet file, read from where the last read ended, or from the beginning of a row group.

    Of one at an address only the footer is read before a row is asked for; then the file is copied into the cache.
    """

    def __init__(self, name: str, cache: str | None) -> None:
        pyarrow, self._parquet = _pyarrow()
        self.name, self.cache, self._broken = name, cache, pyarrow.ArrowException
        shown = addresses.shown(name)
        if addresses.is_remote(name):
            footer = read_footer(name, cache)
            meta, size, own_name = footer.metadata(), footer.head.stamp["size"], addresses.name_of(name)
            schema = meta.schema.to_arrow_schema()
        else:
            try:
                meta, schema = self._parquet.read_metadata(name), self._parquet.read_schema(name)
            except (OSError, pyarrow.ArrowException) as error:
                raise PlaitError(tables.fault([name]) or f"{name} cannot be read: {error}") from error
            size, own_name = Path(name).stat().st_size, Path(name).name
        self.columns = list(schema.names)
        if (twice := next((name for name in self.columns if self.columns.count(name) > 1), None)) is not None:
            raise PlaitError(f"{shown} has several columns {twice!r}: give each a name of its own")
        self._kinds = {name: _SHORT[str(kind)] for name, kind in zip(schema.names, schema.types, strict=True) if str(kind) in _SHORT}
        self._ends = list(accumulate(meta.row_group(number).num_rows for number in range(meta.num_row_groups)))
        content = [own_name, size, len(self), str(schema)]
        self.digest = xxhash.xxh3_64(json.dumps(content).encode()).hexdigest()
        self._at = -1  # nothing is read yet
        self._rows: Iterator[dict[str, Any] | str] = iter(())

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int) -> Iterator[dict[str, Any] | str]:
        group = bisect_right(self._ends, start)
        first = self._ends[group - 1] if group else 0
        if not first <= self._at <= start:
            self._at, self._rows = first, self._from(group)
        while self._at < stop:
            row = next(self._rows)
            self._at += 1
            if self._at > start:
                yield row

    def column(self, name: str) -> Iterator[Any]:
        for batch in self._batches(columns=[name]):
            yield from batch.column(0).to_pylist()

    def _from(self, group: int) -> Iterator[dict[str, Any] | str]:
        for batch in self._batches(batch_size=_BATCH, row_groups=list(range(group, len(self._ends)))):
            for row in self._plain_rows(batch):
                if isinstance(row, str):
                    yield row
                else:
                    yield {name: _decimal(value, self._kinds[name]) if name in self._kinds else value for name, value in row.items()}

    def _plain_rows(self, batch: Any) -> list[Any]:
        """Return the fields of each row, or why it cannot be read; a date that Python does not know is its text."""
        try:
            return list(batch.to_pylist())
        except (ValueError, OverflowError, self._broken):
            return [self._plain_row(batch, number) for number in range(batch.num_rows)]

    def _plain_row(self, batch: Any, number: int) -> dict[str, Any] | str:
        row: dict[str, Any] = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            cell = column[number]
            try:
                row[name] = cell.as_py()
            except (ValueError, OverflowError, self._broken):
                try:
                    row[name] = str(cell.cast("string").as_py())
                except (ValueError, OverflowError, NotImplementedError, self._broken):
                    return f"the {cell.type} in column {name!r} cannot be read"
        return row

    def _batches(self, **chosen: Any) -> Iterator[Any]:
        """Yield batches of the file. Raises PlaitError where it is damaged, or another than before."""
        path = _local(self.name, self.cache)
        try:
            with self._parquet.ParquetFile(path) as file:
                yield from file.iter_batches(**chosen)
        except (OSError, self._broken) as error:
            raise PlaitError(tables.fault([str(path)]) or f"{path} cannot be read any more: {error}") from error


class Listing:
    """A list of links by row number. `title`: its name for messages; `digest`: a hash that changes with its files.

    `path`: a file, folder, pattern or address, as for any source; `hf://datasets/OWNER/NAME` means all parquet files of a dataset of the
    Hub. `given`: names of columns by role (columns.py); `limit`: rows, None: all. Raises PlaitError for a list that cannot be read.
    """

    def __init__(self, path: str, given: Mapping[str, str], *, limit: int | None = None, cache: str | None = None) -> None:
        self.title = addresses.shown(path)
        names = paths.files(_with_files(path), _ENDINGS, split="", default_split="")
        self.files: list[_File] = [_opened(name, cache) for name in names]
        self._ends = list(accumulate(map(len, self.files)))
        self.rows = self._ends[-1] if limit is None else min(limit, self._ends[-1])
        if not self.rows:
            raise PlaitError(f"{self.title} holds no rows")
        self.columns: Columns = find_columns(self.files[0].columns, given, self.title)
        odd = next((number for number, file in enumerate(self.files) if self.columns.url not in file.columns), None)
        if odd is not None:
            shown = addresses.shown(names[odd])
            raise PlaitError(f"{shown} has no column {self.columns.url!r}, unlike {addresses.shown(names[0])}: give each its own command")
        self.digest = xxhash.xxh3_64("".join(file.digest for file in self.files).encode()).hexdigest()

    def links(self, start: int, stop: int) -> list[Link]:
        """Return the rows [start, stop). A broken one has a `fault`. Raises PlaitError if a file cannot be read any more."""
        return [self._link(number, row) for number, row in enumerate(self._read(start, min(stop, self.rows)), start)]

    def urls(self) -> Iterator[str | None]:
        """Yield the address of every row, None without one; of parquet nothing else is read."""
        cells = (value for file in self.files for value in file.column(self.columns.url))
        yield from map(_text, islice(cells, self.rows))

    def _read(self, start: int, stop: int) -> Iterator[dict[str, Any] | str]:
        while start < stop:
            number = bisect_right(self._ends, start)
            first = self._ends[number - 1] if number else 0
            end = min(stop, self._ends[number])
            yield from self.files[number].read(start - first, end - first)
            start = end

    def _link(self, number: int, row: dict[str, Any] | str) -> Link:
        if isinstance(row, str):
            return Link(number, None, None, None, {}, row)
        columns = self.columns
        cell = row.get(columns.caption) if columns.caption else None
        caption = _caption(cell)
        left_out = {columns.url, *(["caption"] if columns.caption == "caption" and isinstance(cell, str) else [])}
        others = {name: plain(value) for name, value in row.items() if name not in left_out}
        odd = "" if caption is not None or plain(cell) in (None, [], "") or isinstance(cell, str) else type(cell).__name__
        digest = hashes.announced(row.get(columns.hash)) if columns.hash else None
        return Link(number, _text(row.get(columns.url)), caption, digest, others, odd_caption=odd)

    def check_hashes(self, start: int) -> None:
        """Look at the hashes of a few rows from `start` on. Raises PlaitError if the column holds none there."""
        read = self._read(start, min(start + _TRIED, self.rows)) if self.columns.hash else ()
        rows = [row for row in read if isinstance(row, dict)]
        cells = [cell for row in rows if (cell := hashes.announced(row.get(str(self.columns.hash)))) is not None]
        if cells and not any(map(hashes.parsed, cells)):
            what = f"column {self.columns.hash!r} holds no SHA-256, SHA-1 or MD5 hashes (the first is {cells[0][:80]!r})"
            raise PlaitError(f"{self.title}: {what}; name another with --hash-column, or give --ignore-hashes")


def plain(value: Any) -> Any:
    """Return a cell as a JSON value. Bytes become base64, NaN null, and what JSON does not know, as a date, its text."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    return value.strip() or None if isinstance(value, str) else None


def _caption(value: Any) -> str | None:
    """Return the text of a caption: of a list of texts the first, a number as CSV holds it; None for an empty one, and what is no text."""
    if isinstance(value, list | tuple):
        texts = [_text(text) for text in value if isinstance(text, str | bytes)]
        return next(filter(None, texts), None)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else _text(value)


def _decimal(value: Any, kind: type[Any]) -> Any:
    """Return the shortest decimal that a number of 16 or 32 bits stands for: 0.1 for 0.10000000149011612."""
    return value if value is None or not math.isfinite(value) else float(str(kind(value)))


def _with_files(path: str) -> str:
    """Return `path`, for a dataset of the Hub the pattern of its parquet files."""
    whole = path.startswith("hf://datasets/") and not path.lower().endswith(_ENDINGS) and not any(mark in path for mark in "*?[{")
    return f"{path.rstrip('/')}/**/*.parquet" if whole else path


def _opened(name: str, cache: str | None) -> _File:
    """Return a file of a list, copied from its address. Raises PlaitError for a format that is no list, and one that cannot be read."""
    ending = PurePosixPath(addresses.name_of(name) if addresses.is_remote(name) else name).suffix.lower()
    if ending == ".parquet":
        return _Parquet(name, cache)
    path = _local(name, cache)
    if not path.name.lower().endswith(_ENDINGS):
        raise PlaitError(f"{addresses.shown(name)} is no list of links: it ends in none of {', '.join(_ENDINGS)}")
    return _Parquet(str(path), cache) if path.suffix.lower() == ".parquet" else _Text(path, cache)


def _local(name: str, cache: str | None) -> Path:
    """Return the path of a file of a list, copied from its address into the cache unless it is there."""
    return fetched(name, cache) if addresses.is_remote(name) else Path(name)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise PlaitError("parquet files need pyarrow: pip install 'plait[download]'") from None
    return pyarrow, pyarrow.parquet
