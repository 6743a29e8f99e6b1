"""Read the samples of many shards in the order of their stream.

Each shard at an address is downloaded whole, read, and deleted. What is read apart from that order (a look at the data, the probe loss,
held-out samples) is read by range, and downloads no shard.
"""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait.data import addresses
from plait.data.records import Record
from plait.data.remote import RemoteFile
from plait.data.streaming.block_shuffle import Stream
from plait.data.streaming.failures import RecentFailures, WrongCount
from plait.data.streaming.head import first_samples
from plait.data.streaming.shard_cache import ShardCache
from plait.data.streaming.tar_shard import MappedShard, Shard, open_remote, open_shard, record_of
from plait.errors import BadSample

log = logging.getLogger(__name__)

_OPEN_MAX = 128  # shards open at once on a disk, with their indices mapped
_OPENINGS = 5  # attempts at a shard that is deleted to make room between its download and its opening
_HEAD_SAMPLES = 32  # of the first shard, that may be read from its beginning
_OF_PROCESS = ("_mapped", "_remotes", "_failures", "_head", "_lock")
AHEAD = 3
"""Blocks whose shards are wanted at a time: that of the step that is read, that of the steps prepared ahead, and the next."""


class StreamedShards:
    """The records of a list of shards. `shard_paths`: paths or addresses; `lengths`: samples of each; `block`: shards that are mixed.

    `lanes`: parts of the sequence that are read side by side. `columns`: new field name -> old. `cache`: folder of indices and downloaded
    shards (None: the user's), `cache_bytes`: what those may take together.
    """

    def __init__(
        self,
        shard_paths: Sequence[str],
        lengths: Sequence[int],
        *,
        block: int,
        lanes: int,
        columns: Mapping[str, str],
        cache: str | Path | None,
        cache_bytes: int,
    ) -> None:
        self.paths, self.lengths, self.block, self.lanes = list(shard_paths), list(lengths), block, lanes
        self.columns, self.cache = dict(columns), cache
        self.ends = np.cumsum(self.lengths)
        self.remote = any(map(addresses.is_remote, self.paths))
        self.names = [addresses.name_of(path) if addresses.is_remote(path) else Path(path).name for path in self.paths]
        self.left_out: Mapping[str, int] = {}
        content = ["stream", block, *([lanes] if lanes > 1 else []), list(zip(self.names, self.lengths, strict=True))]
        self.digest = xxhash.xxh3_64(json.dumps(content).encode()).hexdigest()
        self._open_max = min(_OPEN_MAX, AHEAD * block * lanes) if self.remote else _OPEN_MAX
        """Shards open at once: one that is deleted takes its place on the disk until it is closed."""
        self.store = ShardCache(cache, cache_bytes, AHEAD * block * lanes)
        self._start_unmapped()

    def _start_unmapped(self) -> None:
        self._mapped: OrderedDict[tuple[int, bool], MappedShard] = OrderedDict()
        self._remotes: OrderedDict[int, RemoteFile] = OrderedDict()
        self._failures = RecentFailures()
        self._head: list[Record | BadSample] = []
        self._lock, self._told = threading.Lock(), False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_unmapped()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def stream(self, samples: int) -> Stream:
        """Return how the first `samples` samples are read in training."""
        ends = np.minimum([0, *self.ends], samples)
        return Stream(np.diff(ends).tolist(), self.block, self.fetch if self.remote else None, lanes=self.lanes)

    def read(self, i: int) -> Record:
        """Return sample `i` as a record, by range where its shard is not on this machine.

        Raises BadSample if one of its files cannot be parsed, PlaitError if its shard cannot be read.
        """
        number, inside = self._place(i)
        if self.remote and i < min(_HEAD_SAMPLES, self.lengths[0]) and (0, True) not in self._mapped:
            return self._from_head(i)
        return self._record(number, inside, whole=False)

    def read_in_order(self, i: int) -> Record:
        """Return sample `i` as a record, from its whole shard, which is downloaded first. Raises as `read` does."""
        return self._record(*self._place(i), whole=True)

    def members(self, i: int) -> tuple[str, list[tuple[str, bytes]]]:
        """Return the raw files of sample `i` from its whole shard, which is downloaded first: ("shard/stem", [(extension, bytes)]).

        Raises PlaitError if the shard cannot be read.
        """
        number, inside = self._place(i)
        stem, members = self._failures.tried(number, lambda: self._map(number, whole=True)).members(inside)
        return f"{Path(self.names[number]).stem}/{stem}", members

    def fetch(self, number: int, abandoned: Callable[[], bool] = lambda: False) -> None:
        """Download shard `number` if it is at an address and not here. `abandoned()`: True once nobody waits for it any more.

        Raises PlaitError if it cannot be read or written.
        """
        if addresses.is_remote(self.paths[number]):
            self._failures.tried(number, lambda: self._copy(number, abandoned))

    def _place(self, i: int) -> tuple[int, int]:
        """Return (shard, place in it) of sample `i`."""
        number = int(np.searchsorted(self.ends, i, side="right"))
        return number, i - (int(self.ends[number - 1]) if number else 0)

    def _record(self, number: int, inside: int, *, whole: bool) -> Record:
        stem, members = self._failures.tried(number, lambda: self._map(number, whole=whole)).members(inside)
        return record_of(f"{Path(self.names[number]).stem}/{stem}", members, self.columns)

    def _from_head(self, i: int) -> Record:
        """Return one of the first samples of the first shard, from its beginning."""
        head = self._remote(0)
        with self._lock:
            if not self._head:
                for stem, members in islice(first_samples(head), _HEAD_SAMPLES):
                    try:
                        self._head.append(record_of(f"{Path(self.names[0]).stem}/{stem}", members, self.columns))
                    except BadSample as error:
                        self._head.append(error)
            if i >= len(self._head):
                raise WrongCount(f"{self.names[0]} has {len(self._head)} samples, and {self.lengths[0]} are listed: {_CURE}")
            record = self._head[i]
        if isinstance(record, BadSample):
            raise record
        return record

    def _map(self, number: int, *, whole: bool) -> MappedShard:
        """Return an open shard: one on this machine, or, unless `whole`, one that is read by range."""
        with self._lock:
            for name in ((number, True), *(() if whole else ((number, False),))):
                if (mapped := self._mapped.get(name)) is not None:
                    self._mapped.move_to_end(name)
                    return mapped
        mapped, local = self._opened(number, whole=whole)
        with self._lock:
            self._mapped[number, local] = mapped
            if len(self._mapped) > self._open_max:
                self._mapped.popitem(last=False)  # closed when the last thread that reads it is done
        return mapped

    def _opened(self, number: int, *, whole: bool) -> tuple[MappedShard, bool]:
        """Return a newly opened shard, and whether it is on this machine. One that another process deletes meanwhile is opened again."""
        for attempt in range(1, _OPENINGS + 1):
            try:
                shard = self._open(number, whole=whole)
                if shard.samples != self.lengths[number]:
                    raise WrongCount(f"{self.names[number]} has {shard.samples} samples, and {self.lengths[number]} are listed: {_CURE}")
                return MappedShard(shard), shard.remote is None
            except FileNotFoundError:
                if attempt == _OPENINGS or not addresses.is_remote(self.paths[number]):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _open(self, number: int, *, whole: bool) -> Shard:
        path = self.paths[number]
        if not addresses.is_remote(path):
            return open_shard(path, self.cache)
        if whole:
            return self._copy(number, lambda: False)
        remote = self._remote(number)
        shard = open_remote(remote, self.cache, copy=self.store.find(remote))
        if shard.built and shard.remote is not None and not self._told:
            self._told = True
            log.info(
                f"{addresses.shown(path)}: samples out of the stream's order, as held-out ones, are read by range, with an index that was "
                "made or fetched just now, once for each of their shards; an .idx beside a shard saves reading it through"
            )
        return shard

    def _copy(self, number: int, abandoned: Callable[[], bool]) -> Shard:
        """Return a remote shard as a whole file on this machine."""
        remote = self._remote(number)

        def indexed(copy: Path) -> Shard:
            return open_remote(remote, self.cache, copy=copy)

        return indexed(self.store.obtain(remote, indexed, abandoned))

    def _remote(self, number: int) -> RemoteFile:
        """Return a shard at its address, whose size and version are asked for once in a while."""
        with self._lock:
            if (remote := self._remotes.get(number)) is not None:
                return remote
        remote = RemoteFile(self.paths[number], None)
        with self._lock:
            self._remotes[number] = remote
            if len(self._remotes) > _OPEN_MAX:
                self._remotes.popitem(last=False)
        return remote


_CURE = "make the list of counts again with `plait data index FOLDER --counts`, or remove it"
