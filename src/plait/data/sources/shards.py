"""The kind `shards`: tar shards with an index of offsets.

They are read in any order on disk or, by byte range, at an address; or as a stream.
A sample is the members that share a stem (records.py has what each is for). Reading one takes one look-up and one copy, in any shard,
from any thread or process.
"""

import json
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import xxhash

from plait.config.schema import SourceEntry
from plait.data import addresses, paths
from plait.data.formats import index
from plait.data.formats.clips import VIDEO_KINDS
from plait.data.records import IMAGE_KINDS, TEXT_FIELDS, UNREAD_KINDS, Record
from plait.data.sources.contract import Sample, Source
from plait.data.sources.conversations import Conversations, open_conversations
from plait.data.sources.indexed import LAYOUTS, index_records
from plait.data.sources.kind import Opening, SourceKind, path_of
from plait.data.streaming.opening import OPTIONS, StreamOptions, check_options, open_streamed
from plait.data.streaming.reader import StreamedShards
from plait.data.streaming.tar_shard import MappedShard, Shard, open_shard, record_of

_OPEN_MAX = 128  # shards open at once, with their indices mapped
_OPENERS = 8  # threads that look at shards at the start; what they wait for is the store


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
        self._mapped: OrderedDict[int, MappedShard] = OrderedDict()
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
        return record_of(*self.members(i), self.columns)

    def read_text(self, i: int) -> Record:
        """Return sample `i` with empty bytes in place of its images, which are not read. Raises as `read` does."""
        number = bisect_right(self.ends, i)
        stem, members = self._map(number).texts(i - (self.ends[number - 1] if number else 0))
        return record_of(f"{self.stems[number]}/{stem}", members, self.columns)

    def members(self, i: int) -> tuple[str, list[tuple[str, bytes]]]:
        """Return the raw files of sample `i`: ("shard/stem", [(extension, bytes)]). Raises PlaitError if the shard cannot be read."""
        number = bisect_right(self.ends, i)
        stem, members = self._map(number).members(i - (self.ends[number - 1] if number else 0))
        return f"{self.stems[number]}/{stem}", members

    def _map(self, number: int) -> MappedShard:
        """Return a mapped shard, from the most recently used ones if it is among them."""
        with self._lock:
            mapped = self._mapped.get(number)
            if mapped is None:
                mapped = self._mapped[number] = MappedShard(self.shards[number])
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
    videos = sorted(e for e in extensions if e.rpartition(".")[2].lower() in VIDEO_KINDS) if extensions & IMAGE_KINDS else []
    passed = f"kinds of videos, such as {videos[0]!r}, which are read only where a sample has no picture" if videos else ""
    counts = {"members whose names begin with a dot": hidden, named: len(dotted), pictures: len(unread), passed: len(videos)}
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
    """Return {description: count} of what was stopped, beside shards on disk: of a download its shards, and sets being packed."""
    folders = {Path(file).parent for file in files if not addresses.is_remote(file)}
    count = sum(1 for folder in folders for _ in (folder / ".download").glob("*.journal"))
    packing = sum((folder / ".packing").is_dir() for folder in folders)
    found = {
        "shards of a download that is not finished: the same `plait data download` goes on": count,
        "sets that are not packed to their end: the same `plait data shard` goes on": packing,
    }
    return {reason: number for reason, number in found.items() if number}


class StreamedSamples(Conversations):
    """Records of shards that are read one after the other in training, and one by one for everything else."""

    def __init__(self, entry: SourceEntry, reader: StreamedShards) -> None:
        super().__init__(entry, reader)
        self.shards, self.stream = reader, reader.stream(len(self))
        self.stored = False

    def draw(self, index: int, sample_key: int) -> Sample:
        """Return sample `index` for training, from its whole shard, downloaded first. `sample_key`: draws captions and templates."""
        return self.sample(self.shards.read_in_order(index), sample_key)

    def peek(self, index: int) -> Sample:
        """Return sample `index` for what is measured of it, from its whole shard: all samples are, in turn."""
        return self.peeked(self.shards.read_in_order(index))

    def peek_text(self, index: int) -> Sample:
        """Return what `peek` does: the shard is downloaded whole in any case."""
        return self.peek(index)


def _open(entry: SourceEntry, opening: Opening) -> Source:
    options, training = StreamOptions.of(entry.options), opening.split == "train"
    if options.stream is False or (options.stream == "auto" and not (training and addresses.is_remote(path_of(entry)))):
        return open_conversations(entry, open_shards(entry, opening))
    files = paths.files(path_of(entry), ".tar", split=entry.split, default_split=opening.split)
    reader = open_streamed(files, options, opening.cache, entry.columns)
    if reader is None:
        return open_conversations(entry, open_shards(entry, opening))
    reader.left_out = {**paths.left_out(path_of(entry), ".tar", files), **_under_way(files)}
    return open_conversations(entry, reader, (lambda row, _: StreamedSamples(row, reader)) if training else Conversations)


KIND = SourceKind("shards", options=OPTIONS, paths=("counts",), check=check_options, open=_open)
