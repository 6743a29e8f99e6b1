"""Read the rows of parquet files in the order of their stream, a row group at a time.

Each row group is copied to this machine, read, and deleted. It is to parquet what a shard is to tars. How many rows each has is told by the
footers, so that nothing is read through before the first step, and a run that continues copies the row groups of its own steps alone.
"""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import xxhash

from plait.data import addresses
from plait.data.formats import index, tables
from plait.data.formats.open_file import OpenFile
from plait.data.parquet.arrow_file import ArrowRows, convert
from plait.data.parquet.footer import Footer, cached_footer, read_footer
from plait.data.parquet.rows import RowRecords
from plait.data.records import Record
from plait.data.remote import RemoteFile
from plait.data.remote_files import one_at_a_time
from plait.data.streaming.block_shuffle import Stream
from plait.data.streaming.failures import RecentFailures, WrongCount
from plait.data.streaming.opening import StreamOptions
from plait.data.streaming.reader import AHEAD
from plait.data.streaming.shard_cache import ShardCache
from plait.errors import PlaitError
from plait.files import write_whole
from plait.keys import key

log = logging.getLogger(__name__)

_OPENERS = 16  # threads that read footers; what they wait for is the store
_OPENINGS = 5  # attempts at a row group that is deleted to make room between its copy and its opening
_HEAD_ROWS = 32  # of the first row group
_FILES_MAX = 128  # files whose size and version are remembered
_MIXED_ROWS, _BLOCK_MIN, _BLOCK_MAX = 2000, 2, 16  # a block without `block`: so many row groups as have these rows
_OF_PROCESS = ("_open", "_files", "_failures", "_lock")


@dataclass(frozen=True)
class _Part:
    """The bytes of one row group, as the cache of shards copies them. `read_whole`: reads the file that they are in."""

    address: str
    stamp: dict[str, Any]
    size: int
    start: int
    read_whole: Callable[[int, int], bytes]

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` of the row group on. Raises PlaitError if they cannot be had."""
        return self.read_whole(self.start + offset, length)


class RowGroups:
    """The records of parquet files. `footers`: theirs; `options`: how they are streamed; `cache`: folder of copies (None: the user's).

    `records` makes the records, with what each file tells of its columns. Raises PlaitError where the files have no rows.
    """

    left_out: Mapping[str, int] = {}

    def __init__(self, footers: Sequence[Footer], records: RowRecords, options: StreamOptions, cache: str | Path | None) -> None:
        self.footers, self.lanes = list(footers), options.machines
        self.records = [
            replace(records, pictures=footer.pictures, labels={**footer.labels, **records.labels}, short=footer.short) for footer in footers
        ]
        self.remote = any(addresses.is_remote(footer.path) for footer in footers)
        every = [(file, number, group) for file, footer in enumerate(footers) for number, group in enumerate(footer.groups)]
        self.groups = [(file, number, group) for file, number, group in every if group.rows]
        if not self.groups:
            raise PlaitError(f"{addresses.shown(footers[0].path)} holds no rows; its columns are {', '.join(footers[0].columns) or 'none'}")
        self.lengths = [group.rows for _, _, group in self.groups]
        self.ends = np.cumsum(self.lengths)
        mixed = -(-_MIXED_ROWS * len(self.lengths) // int(self.ends[-1]))
        self.block = options.block or min(_BLOCK_MAX, max(_BLOCK_MIN, mixed))
        names = [addresses.name_of(footer.path) if addresses.is_remote(footer.path) else Path(footer.path).name for footer in footers]
        rows = [(names[file], number, group.rows) for file, number, group in self.groups]
        content = ["row groups", self.block, self.lanes, rows, sorted(footers[0].columns), self.records[0].labels]
        self.digest = xxhash.xxh3_64(json.dumps(content).encode()).hexdigest()
        self._at_once = AHEAD * self.block * self.lanes
        self.store = ShardCache(cache, int(options.cache_gb * 1e9), self._at_once, ".arrow")
        self._start_closed()

    def _start_closed(self) -> None:
        self._open: OrderedDict[int, ArrowRows] = OrderedDict()
        self._files: OrderedDict[int, RemoteFile] = OrderedDict()
        self._failures, self._lock = RecentFailures(), threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_closed()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def stream(self, samples: int) -> Stream:
        """Return how the first `samples` rows are read in training."""
        ends = np.minimum([0, *self.ends], samples)
        return Stream(np.diff(ends).tolist(), self.block, self.fetch, lanes=self.lanes, unit="row group")

    def read(self, i: int) -> Record:
        """Return row `i` as a record, from its row group, which is copied first. Raises BadSample for a row that cannot be used.

        Raises PlaitError if the row group cannot be had.
        """
        number = int(np.searchsorted(self.ends, i, side="right"))
        head = i < min(_HEAD_ROWS, self.lengths[0]) and 0 not in self._open
        rows = self._failures.tried(number, self._head if head else lambda: self._rows(number))
        return self.records[self.groups[number][0]].record(rows.row(i - (int(self.ends[number - 1]) if number else 0)), i)

    def fetch(self, number: int, abandoned: Callable[[], bool] = lambda: False) -> None:
        """Copy row group `number` to this machine if it is not here. `abandoned()`: True once nobody waits for it any more.

        Raises PlaitError if it cannot be read or written.
        """
        self._failures.tried(number, lambda: self._copy(number, abandoned))

    def _rows(self, number: int) -> ArrowRows:
        """Return an open row group. One that another process deletes between its copy and its opening is copied again."""
        with self._lock:
            if (known := self._open.get(number)) is not None:
                self._open.move_to_end(number)
                return known
        for attempt in range(1, _OPENINGS + 1):
            try:
                rows = ArrowRows(self._copy(number, lambda: False))
                break
            except FileNotFoundError:
                if attempt == _OPENINGS:
                    raise
        with self._lock:
            self._open[number] = rows
            if len(self._open) > self._at_once:
                self._open.popitem(last=False)  # closed when the last thread that reads it is done
        return rows

    def _head(self) -> ArrowRows:
        """Return the first rows, which each start looks at. They are kept apart, so that a later start copies nothing for them."""
        footer = self.footers[self.groups[0][0]]
        name = f"{Path(addresses.name_of(footer.path)).name}-{key(str(footer.head.path), str(footer.head.stamp)):016x}.head"
        path = footer.head.path.with_name(name)
        if not path.is_file():
            write_whole(path, self._rows(0).first(_HEAD_ROWS))
        return ArrowRows(path)

    def _copy(self, number: int, abandoned: Callable[[], bool]) -> Path:
        file, inside, group = self.groups[number]
        footer = self.footers[file]
        address, stamp, read = self._file(file)
        if stamp != footer.head.stamp:
            footer.head.path.unlink(missing_ok=True)
            raise WrongCount(
                f"{addresses.shown(footer.path)} has changed since its rows were counted, and every later sample would be another: "
                "start again, and they are counted anew"
            )
        version = stamp["version"] if "version" in stamp else stamp["mtime_ns"]
        part = _Part(address, {"version": f"{version} {inside}"}, group.end - group.start, group.start, read)
        return self.store.obtain(part, lambda path: convert(path, footer, inside), abandoned)

    def _file(self, number: int) -> tuple[str, dict[str, Any], Callable[[int, int], bytes]]:
        """Return (address, stamp, reader) of a file. Those of one at an address are asked for once in a while."""
        path = self.footers[number].path
        if not addresses.is_remote(path):
            return quote(str(Path(path).absolute())), index.stamp_of(Path(path)), OpenFile(path).read
        with self._lock:
            remote = self._files.get(number)
        if remote is None:
            remote = RemoteFile(path, None)
            with self._lock:
                self._files[number] = remote
                if len(self._files) > _FILES_MAX:
                    self._files.popitem(last=False)
        return path, remote.stamp, remote.read


def footers_of(files: Sequence[str], cache: str | Path | None) -> list[Footer]:
    """Return the footers of parquet files, paths or addresses, read by one process at a time unless `cache` has them.

    Raises PlaitError for what is no parquet file, and for files of different columns.
    """
    known = [cached_footer(file, cache) for file in files]
    if None in known and any(map(addresses.is_remote, files)):
        lock = index.cache_folder(cache) / "index" / f"footers-{key(*map(str, files)):016x}"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(lock, f"{addresses.shown(files[0])}: another process is reading its footers, which is waited for"):
                footers = _read(files, [cached_footer(file, cache) for file in files], cache)
        except OSError as error:
            cure = "free space there, or set data.cache to a folder that can be written"
            raise PlaitError(f"cannot write {lock.parent}: {error.strerror}; {cure}") from error
    else:
        footers = _read(files, known, cache)
    tables.same_columns({addresses.shown(footer.path): list(footer.columns) for footer in footers})
    return footers


def _read(files: Sequence[str], known: Sequence[Footer | None], cache: str | Path | None) -> list[Footer]:
    """Return the footers `known`, and for None that of the file, which is read first."""
    openers = ThreadPoolExecutor(_OPENERS)
    try:
        missing = [file for file, footer in zip(files, known, strict=True) if footer is None]
        made = openers.map(partial(read_footer, cache=cache), missing)
        return [next(made) if footer is None else footer for footer in known]
    finally:
        openers.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nobody waits for a server that is silent
