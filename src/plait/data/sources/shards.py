"""The kind `shards`: tar shards with an index of offsets. They are read in any order on disk, or by byte range when they are remote.

A sample is the members that share a stem (records.py has what each is for). Reading one takes one look-up and one copy, in any shard,
from any thread or process.
"""

import json
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait.config.schema import SourceEntry
from plait.data import addresses, paths
from plait.data.formats import index, tar
from plait.data.formats.open_file import OpenFile
from plait.data.records import IMAGE_KINDS, TEXT_FIELDS, UNREAD_KINDS, Record, from_members
from plait.data.remote import RemoteFile, Unavailable
from plait.data.sources.contract import Source
from plait.data.sources.conversations import open_conversations
from plait.data.sources.indexed import LAYOUTS, index_records
from plait.data.sources.kind import Opening, SourceKind, path_of
from plait.data.text import rename
from plait.errors import BadSample, PlaitError
from plait.files import write_whole

_OPEN_MAX = 128  # shards open at once, with their indices mapped
_OPENERS = 8  # threads that look at shards at the start; what they wait for is the store
_SCAN_BYTES = 4 << 20  # read at once when a remote shard is indexed
_GAP_BYTES = 4096  # members of one remote sample this close are fetched as one range


@dataclass(frozen=True)
class Shard:
    """One tar shard and the header of its index (`head`). `built`: whether the index was made just now, rather than found.

    `path`: a path on disk or an address; `remote`: reads a shard at an address; None for one on disk.
    """

    path: str
    head: index.IndexHead
    remote: RemoteFile | None
    built: bool

    @property
    def samples(self) -> int:
        """The number of samples in the shard."""
        return int(self.head.facts["samples"])


def open_shard(path: str, cache: str | Path | None, *, rebuild: bool = False, beside: bool = False) -> Shard:
    """Open one tar shard, and build its index if there is none (or if `rebuild`). Raises PlaitError if it is missing or damaged.

    `cache`: folder for the index; None: the user's. `beside`: keep the index of a shard on disk next to it instead.
    """
    if addresses.is_remote(path):
        return _open_remote(path, cache, rebuild)
    local = Path(path)
    if not local.is_file():
        raise PlaitError(f"{path} is not a regular file")

    def make() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        file = OpenFile(local)
        size = file.size
        if size == 0:
            raise PlaitError(f"{path} is empty (0 bytes)")
        return tar.index(tar.walk(file.read, size, path), path)

    head, built = index.obtain(local, cache, make, rebuild=rebuild, beside=beside, fits=lambda facts: "members" in facts)
    return Shard(path, head, None, built)


def cached_index(path: str, cache: str | Path | None) -> Path:
    """Return the path of a remote shard's index in the cache folder; it does not depend on the signature in the address."""
    return index.cached_path(addresses.shown(path), cache, addresses.identity(path))


def _open_remote(path: str, cache: str | Path | None, rebuild: bool) -> Shard:
    """Open a remote shard, with its index from the cache, else from `<address>.idx`, else from reading the shard through once."""
    remote = RemoteFile(path, cache)
    cached = cached_index(path, cache)
    head = None if rebuild else index.read_head(cached)
    if head is not None and head.stamp == remote.stamp:
        return Shard(path, head, remote, False)
    facts, arrays = _published_index(path, remote, cached) or _walk_remote(path, remote)
    write_whole(cached, index.pack(remote.stamp, facts, arrays))
    head = index.read_head(cached)
    if head is None:
        raise PlaitError(f"the index {cached} cannot be read, though it was written just now: mend the disk, or set data.cache to another")
    return Shard(path, head, remote, True)


def _published_index(path: str, remote: RemoteFile, cached: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Download the index that was uploaded beside the shard. None when there is none or it is for a file of another size."""
    if addresses.shown(address := addresses.spelled_out(path)) != address:
        return None  # a signature is for one file alone
    try:
        body = RemoteFile(path + ".idx", None).whole()
    except Unavailable:
        return None
    fetched = cached.with_suffix(".fetched")
    write_whole(fetched, body)
    head = index.read_head(fetched)
    fits = head is not None and head.stamp["size"] == remote.size
    contents = (head.facts, {name: array.copy() for name, array in index.map_arrays(head).items()}) if head is not None and fits else None
    fetched.unlink()
    return contents


def _walk_remote(path: str, remote: RemoteFile) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    window: tuple[int, bytes] = (0, b"")  # start and bytes of what was read last: headers lie close together

    def read(offset: int, length: int) -> bytes:
        nonlocal window
        if not window[0] <= offset <= offset + length <= window[0] + len(window[1]):
            window = (offset, remote.read(offset, min(max(length, _SCAN_BYTES), remote.size - offset)))
        return window[1][offset - window[0] :][:length]

    name = addresses.shown(path)
    if remote.size == 0:
        raise PlaitError(f"{name} is empty (0 bytes)")
    return tar.index(tar.walk(read, remote.size, name), name)


class _MappedShard:
    """An open shard: the memory-mapped arrays of its index, the extensions of its members, and a reader of their bytes."""

    def __init__(self, shard: Shard) -> None:
        arrays = index.map_arrays(shard.head)
        self.first, self.kind, self.offset, self.size = (arrays[name] for name in ("first", "kind", "offset", "size"))
        self.name_end, self.names = arrays["name_end"], arrays["names"]
        self.extensions = shard.head.facts["extensions"]
        self.read = _local_reader(shard) if shard.remote is None else partial(_read_ranges, shard.remote)

    def members(self, i: int) -> tuple[str, list[tuple[str, bytes]]]:
        """Return (stem, [(extension, bytes)]) of sample `i` of this shard."""
        first, last = self.first[i : i + 2].tolist()
        offsets, sizes = self.offset[first:last].tolist(), self.size[first:last].tolist()
        start, end = self.name_end[i : i + 2].tolist()
        bodies = self.read(offsets, sizes)
        return self.names[start:end].tobytes().decode("utf-8", "surrogateescape"), [
            (self.extensions[k], body) for k, body in zip(self.kind[first:last].tolist(), bodies, strict=True)
        ]


def _local_reader(shard: Shard) -> Callable[[list[int], list[int]], list[bytes]]:
    file = OpenFile(shard.path)
    if file.size != shard.head.stamp["size"]:
        raise PlaitError(f"{shard.path} changed while it was in use: {file.size} bytes, its index knows {shard.head.stamp['size']}")
    return partial(_read_ranges, file)


def _read_ranges(file: RemoteFile | OpenFile, offsets: list[int], sizes: list[int]) -> list[bytes]:
    """Read the members of a sample in one request when they are neighbours, as they nearly always are."""
    start, end = min(offsets), max(o + s for o, s in zip(offsets, sizes, strict=True))
    if end - start > sum(sizes) + _GAP_BYTES * len(sizes):
        return [file.read(o, s) for o, s in zip(offsets, sizes, strict=True)]
    body = file.read(start, end - start)
    return [body[o - start : o - start + s] for o, s in zip(offsets, sizes, strict=True)]


class Shards:
    """A reader of all samples of a list of shards, in order. `columns`: new field name -> old. `cache`: folder of indices.

    `shard_paths`: paths on disk or addresses. Raises PlaitError for a shard that is missing or damaged.
    """

    def __init__(self, shard_paths: list[str], cache: str | Path | None, columns: Mapping[str, str]) -> None:
        openers = ThreadPoolExecutor(_OPENERS)
        try:
            self.shards = list(openers.map(partial(open_shard, cache=cache), shard_paths))
        finally:
            openers.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nobody waits for a server that is silent
        self.ends = list(accumulate(shard.samples for shard in self.shards))
        names = [addresses.name_of(shard.path) if shard.remote else Path(shard.path).name for shard in self.shards]
        self.stems = [Path(name).stem for name in names]
        self.columns = dict(columns)
        self.left_out: Mapping[str, int] = _left_out(self.shards)
        content = [[name, s.head.stamp["size"], s.samples, s.head.xxh3] for name, s in zip(names, self.shards, strict=True)]
        self.digest = xxhash.xxh3_64(json.dumps(content).encode()).hexdigest()
        self._start_unmapped()

    def _start_unmapped(self) -> None:
        self._mapped: OrderedDict[int, _MappedShard] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_mapped", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_unmapped()

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, i: int) -> Record:
        """Return sample `i` as a record. Raises BadSample if one of its files cannot be parsed, PlaitError if its shard cannot be read."""
        name, members = self.members(i)
        try:
            record = from_members(name, members)
            return record._replace(fields=rename(record.fields, self.columns)) if self.columns else record
        except BadSample as error:
            error.sample = name
            raise

    def members(self, i: int) -> tuple[str, list[tuple[str, bytes]]]:
        """Return the raw files of sample `i`: ("shard/stem", [(extension, bytes)]). Raises PlaitError if the shard cannot be read."""
        number = bisect_right(self.ends, i)
        stem, members = self._map(number).members(i - (self.ends[number - 1] if number else 0))
        return f"{self.stems[number]}/{stem}", members

    def _map(self, number: int) -> _MappedShard:
        """Return a mapped shard, from the most recently used ones if it is among them."""
        with self._lock:
            mapped = self._mapped.get(number)
            if mapped is None:
                mapped = self._mapped[number] = _MappedShard(self.shards[number])
                if len(self._mapped) > _OPEN_MAX:
                    self._mapped.popitem(last=False)  # unmapped when the last thread that reads it is done
            else:
                self._mapped.move_to_end(number)
            return mapped


def _left_out(shards: Sequence[Shard]) -> dict[str, int]:
    """Return {description: count} of hidden members, images of unknown formats, and extensions that come of names with several dots."""
    hidden = sum(int(shard.head.facts["hidden"]) for shard in shards)
    extensions = {extension for shard in shards for extension in shard.head.facts["extensions"]}
    parts = {extension: extension.split(".")[:-1] for extension in extensions}
    dotted = sorted(e for e, p in parts.items() if any(" " in part for part in p) or (len(p) > 1 and any(part[:1].isdigit() for part in p)))
    texts = {e for e, p in parts.items() if p and e.rpartition(".")[2].lower() in TEXT_FIELDS}
    pictured = {".".join(p) for e, p in parts.items() if e.rpartition(".")[2].lower() in IMAGE_KINDS} | IMAGE_KINDS
    dotted = sorted({*dotted, *(e for e in texts if ".".join(parts[e]) in pictured)})  # a caption of cat.edited.jpg, or of a.png
    unread = sorted(e for e in extensions if e.rpartition(".")[2].lower() in UNREAD_KINDS)
    named = f"kinds of members such as {dotted[0]!r}: in a tar a name ends at its first dot, so captions may be lost" if dotted else ""
    pictures = f"kinds of pictures that are not read, such as {unread[0]!r}" if unread else ""
    counts = {"members whose names begin with a dot": hidden, named: len(dotted), pictures: len(unread)}
    return {reason: count for reason, count in counts.items() if count}


@dataclass(frozen=True)
class Indexed:
    """The report of `plait data index` on one file: its index, counts, the extensions (`kinds`) and the seconds it took.

    `members`: files in a tar; `hidden`: those left out because their names begin with a dot. `built`: False where a fresh index was found.
    A file of records (JSON, CSV) has one member per sample, and the kind "record".
    """

    path: str
    index: Path
    samples: int
    members: int
    hidden: int
    kinds: tuple[str, ...]
    built: bool
    time_s: float


def index_files(pattern: str, *, cache: str | Path | None = None, rebuild: bool = False, beside: bool = False) -> list[Indexed]:
    """Build the missing index of every shard or file of records that `pattern` names. Returns what is in each, of all splits.

    `cache`: folder for indices; None: the user's. `rebuild`: build all again. `beside`: keep the index of a file on disk next to it. Raises
    PlaitError if no file matches or one is damaged.
    """
    rows = []
    for path in paths.files(pattern, ".tar", split=None, default_split=""):
        start = time.perf_counter()
        layout = None if addresses.is_remote(path) else LAYOUTS.get(Path(path).suffix.lower())
        if layout is None:
            shard = open_shard(path, cache, rebuild=rebuild, beside=beside)
            head, built, facts = shard.head, shard.built, shard.head.facts
            counts = (facts["samples"], facts["members"], facts["hidden"], tuple(facts["extensions"]))
        else:
            head, built = index_records(Path(path), layout, cache, rebuild=rebuild, beside=beside)
            counts = (head.facts["samples"], head.facts["samples"], 0, ("record",))
        index.map_arrays(head)  # also checks that it is whole
        rows.append(Indexed(path, head.path, *counts, built, time.perf_counter() - start))
    return rows


def open_shards(entry: SourceEntry, opening: Opening) -> Shards:
    """Return a reader of the shards that an entry of `data:` names; `opening`: the run's settings. Raises PlaitError for bad shards."""
    files = paths.files(path_of(entry), ".tar", split=entry.split, default_split=opening.split)
    shards = Shards(files, opening.cache, entry.columns)
    shards.left_out = {**shards.left_out, **paths.left_out(path_of(entry), ".tar", files), **_under_way(files)}
    return shards


def _under_way(files: Sequence[str]) -> dict[str, int]:
    """Return {description: count} of the shards of a download that was stopped, beside shards on disk."""
    folders = {Path(file).parent for file in files if not addresses.is_remote(file)}
    count = sum(1 for folder in folders for _ in (folder / ".download").glob("*.journal"))
    return {"shards of a download that is not finished: the same `plait data download` goes on": count} if count else {}


def _open(entry: SourceEntry, opening: Opening) -> Source:
    return open_conversations(entry, open_shards(entry, opening))


KIND = SourceKind("shards", open=_open)
