"""Whether shards are streamed, by the options of their entry in the `data:` section, and the reader of those that are."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from plait.data import addresses
from plait.data.formats import index
from plait.data.remote import RemoteFile
from plait.data.remote_files import one_at_a_time
from plait.data.streaming import counts
from plait.data.streaming.reader import StreamedShards
from plait.data.streaming.tar_shard import cached_index, open_remote, open_shard
from plait.errors import PlaitError
from plait.keys import key

log = logging.getLogger(__name__)

LARGE_BYTES = 10_000_000_000
"""Shards at an address that are larger than this together are streamed where `stream` is auto."""
_BLOCK = 2
_OPENERS = 8  # threads that look at shards at the start; what they wait for is the store


@dataclass(frozen=True)
class StreamOptions:
    """The options of a source of shards that say how it is streamed.

    `block`: shards whose samples are mixed (None: 2, of parquet as many as have enough rows); `machines`: how many share out the shards;
    `cache_gb`: 1e9 bytes of downloaded shards that are kept; `counts`: a list of their counts.
    """

    stream: bool | Literal["auto"] = "auto"
    block: int | None = None
    machines: int = 1
    cache_gb: float = 50.0
    counts: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "StreamOptions":
        """Return the options of an entry. Raises PlaitError for a wrong value."""
        if (wrong := check_options(options)) is not None:
            raise PlaitError(f"options.{wrong[0]} {wrong[1]}")
        return cls(**{name: options[name] for name in OPTIONS if options.get(name) is not None})


OPTIONS = ("stream", "block", "machines", "cache_gb", "counts")


def check_options(options: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (name, what is wrong) of the first invalid option of a source of shards; None if all are valid."""
    stream, block, machines, gigabytes, named = (options.get(name) for name in OPTIONS)
    if stream not in (None, True, False, "auto") or isinstance(stream, int) is not isinstance(stream, bool):
        return "stream", f"must be true, false or auto, got {stream!r}"
    if block is not None and (type(block) is not int or block < 1):
        return "block", f"is the number of shards whose samples are mixed, 1 or more, got {block!r}"
    if machines is not None and (type(machines) is not int or machines < 1):
        return "machines", f"is how many machines share out the shards, 1 or more, got {machines!r}"
    if gigabytes is not None and (type(gigabytes) not in (int, float) or not 0 < gigabytes < 1e9):
        return "cache_gb", f"is what downloaded shards may take on the disk, in 1e9 bytes, got {gigabytes!r}"
    if named is not None and (not isinstance(named, str) or not named):
        return "counts", f"names a file with the number of samples of each shard, got {named!r}"
    if stream is False and (unused := next((name for name in OPTIONS[1:] if options.get(name) is not None), None)):
        return unused, "is of shards that are streamed, and stream is false: leave one of them out"
    return None


def open_streamed(
    shards: Sequence[str], options: StreamOptions, cache: str | Path | None, columns: Mapping[str, str]
) -> StreamedShards | None:
    """Return a reader of shards that are streamed; None where `stream` is auto and they are not large.

    `cache`: folder of indices and downloaded shards (None: the user's); `columns`: new field name -> old. Raises PlaitError for a list of
    counts that does not fit, and for shards whose samples cannot be counted.
    """
    listed = counts.listed(shards, options.counts)
    if options.stream == "auto" and size_of(shards, listed) < LARGE_BYTES:
        return None
    lengths = [listed[path].samples for path in shards] if listed is not None else _counted(shards, cache)
    cache_bytes = int(options.cache_gb * 1e9)
    return StreamedShards(
        shards, lengths, block=options.block or _BLOCK, lanes=options.machines, columns=columns, cache=cache, cache_bytes=cache_bytes
    )


def size_of(shards: Sequence[str], listed: Mapping[str, counts.ShardCount] | None = None) -> int:
    """Return how many bytes the shards have together. Where that is not listed, all count as the first one."""
    sizes = [] if listed is None else [listed[path].size for path in shards]
    told = [size for size in sizes if size is not None]
    return sum(told) if told and len(told) == len(sizes) else RemoteFile(shards[0], None).size * len(shards)


def _counted(shards: Sequence[str], cache: str | Path | None) -> list[int]:
    """Return the number of samples of each shard, from its index. Shards without one are read through, once."""
    known = [_indexed(path, cache) for path in shards]
    if not any(addresses.is_remote(path) and length is None for path, length in zip(shards, known, strict=True)):
        return _completed(shards, known, cache)
    lock = index.cache_folder(cache) / "streamed" / f"counts-{key(*map(addresses.identity, shards)):016x}"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(lock, f"{addresses.shown(shards[0])}: another process is counting its samples, which is waited for"):
            return _completed(shards, [_indexed(path, cache) for path in shards], cache)
    except OSError as error:
        cure = "free space there, or set data.cache to a folder that can be written"
        raise PlaitError(f"cannot write {lock.parent}: {error.strerror}; {cure}") from error


def _completed(shards: Sequence[str], known: Sequence[int | None], cache: str | Path | None) -> list[int]:
    """Return the counts `known`, and for None that of the shard's index, which is made first."""
    lengths = list(known)
    unknown = [number for number, length in enumerate(lengths) if length is None]
    if unknown and any(addresses.is_remote(shards[number]) for number in unknown):
        log.info(
            f"{addresses.shown(shards[unknown[0]])}: {len(unknown)} of {len(shards)} shards are not counted yet: those without an .idx "
            "beside them are read through now, once; `plait data index FOLDER --counts` makes a list of counts to put beside them"
        )
    openers = ThreadPoolExecutor(_OPENERS)
    try:
        made = openers.map(partial(_count, cache=cache), [shards[number] for number in unknown])
        for number, length in zip(unknown, made, strict=True):
            lengths[number] = length
    finally:
        openers.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nobody waits for a server that is silent
    return [length for length in lengths if length is not None]


def _indexed(path: str, cache: str | Path | None) -> int | None:
    """Return the count in a remote shard's cached index, without asking its server; None where there is none.

    A shard that has changed since is noticed when it is downloaded.
    """
    head = index.read_head(cached_index(path, cache)) if addresses.is_remote(path) else None
    return None if head is None else int(head.facts["samples"])


def _count(path: str, cache: str | Path | None) -> int:
    if addresses.is_remote(path):
        return open_remote(RemoteFile(path, None), cache).samples
    return open_shard(path, cache).samples
