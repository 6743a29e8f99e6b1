"""Find out how many samples each of many shards has, without reading them.

The order of a streamed source is made of these counts. They come from a list, `index.json` beside the shards or the file that
`options.counts` names, in the format of webdataset's wids (`{"shardlist": [{"url": "a.tar", "nsamples": 1000, "filesize": 123}, ...]}`),
which `plait data index --counts` writes; else from the index of each shard: one that the cache has, or `a.tar.idx` beside it, or one that
is made by reading the shard through once.
"""

import json
import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from plait.data import addresses
from plait.data.paths import local
from plait.data.remote import RemoteFile, Unavailable
from plait.errors import PlaitError
from plait.files import write_json

log = logging.getLogger(__name__)

NAME = "index.json"
"""The file of counts that is looked for beside the shards."""


class ShardCount(NamedTuple):
    """How many samples a shard has, and its size in bytes (None: not told)."""

    samples: int
    size: int | None


def write(path: Path, rows: Iterable[tuple[str, int, int]]) -> None:
    """Write a list of counts of (name, samples, bytes) per shard. Readers see the old file or the new one whole."""
    shards = [{"url": name, "nsamples": samples, "filesize": size} for name, samples, size in rows]
    write_json(path, {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards})


def listed(shards: Sequence[str], named: str | None) -> dict[str, ShardCount] | None:
    """Return {path or address: count} of shards from a list of counts. `named`: where it is; None: beside the shards.

    Returns None where none is named and none of the format lies beside them. Raises PlaitError for one that is wrong or lacks a shard.
    """
    where = named or _beside(shards[0])
    try:
        body = None if where is None else _body(where)
    except (Unavailable, FileNotFoundError) as error:
        if named:
            raise PlaitError(f"options.counts: there is no file {addresses.shown(named)}") from error
        body = None
    if where is None or body is None:
        return None
    counts = _parsed(body, addresses.shown(where), strict=named is not None)
    if counts is None:
        return None
    urls = {path: _url_of(path, counts) for path in shards}
    if lacking := [path for path, url in urls.items() if url is None]:
        cure = "make it again with `plait data index FOLDER --counts`, or remove it"
        name = addresses.name_of(lacking[0])
        raise PlaitError(f"{addresses.shown(where)} lists {len(counts)} shards, and not {name} ({len(lacking)} are not in it): {cure}")
    if len(set(urls.values())) < len(urls):
        raise PlaitError(f"{addresses.shown(where)} names shards of several folders alike: list them with their folders, as a/000.tar")
    return {path: counts[url] for path, url in urls.items() if url is not None}


def _url_of(path: str, counts: Collection[str]) -> str | None:
    """Return which of the listed urls is that of a shard: all of its address, or as much of its end as is listed."""
    parts = (addresses.spelled_out(path) if addresses.is_remote(path) else path).partition("?")[0].split("/")
    return next((url for first in range(len(parts)) if (url := "/".join(parts[first:])) in counts), None)


def _beside(shard: str) -> str | None:
    """Return where the list of counts beside a shard would be; None for an address with a signature, or a variable, which may be one."""
    if not addresses.is_remote(shard):
        return str(Path(shard).with_name(NAME))
    return None if addresses.shown(addresses.spelled_out(shard)) != shard else f"{shard.rpartition('/')[0]}/{NAME}"


def _body(where: str) -> bytes:
    return RemoteFile(where, None).whole() if addresses.is_remote(where) else local(where).read_bytes()


def _parsed(body: bytes, where: str, *, strict: bool) -> dict[str, ShardCount] | None:
    """Return {name of a shard: count} of a list. A file of another format is none; if `strict`, PlaitError, as for wrong counts."""
    try:
        value: Any = json.loads(body)
    except ValueError:
        value = None
    rows = value.get("shardlist") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and isinstance(row.get("url"), str) for row in rows):
        if strict:
            raise PlaitError(f'options.counts: {where} is no list of counts, {{"shardlist": [{{"url": "a.tar", "nsamples": 1000}}]}}')
        why = "not JSON" if value is None else "of another format"
        log.warning(f"{where} is no list of counts ({why}), and is passed over: `plait data index FOLDER --counts` writes one")
        return None
    counts = {}
    for row in rows:
        samples, size, name = row.get("nsamples"), row.get("filesize"), row["url"].removeprefix("./")
        if type(samples) is not int or samples < 1 or not (size is None or (type(size) is int and size > 0)):
            raise PlaitError(f"{where}: {name} has nsamples {samples!r} and filesize {size!r}: they are whole numbers from 1 on")
        if name in counts:
            raise PlaitError(f"{where} lists {name} twice")
        counts[name] = ShardCount(samples, size)
    return counts
