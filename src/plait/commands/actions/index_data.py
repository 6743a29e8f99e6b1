"""What `plait data index` does: build indexes for random access to tar shards and files of records, and list them.

For a configuration it does so for all of its data, and measures what the filters of its sources need.
"""

import logging
import os
from pathlib import Path

from plait.assembly.data import open_training, open_validation
from plait.config.resolved import Resolved
from plait.data import addresses, paths
from plait.data.formats import index as indexes
from plait.data.sources.filtered import filtered_text
from plait.data.sources.shards import Indexed, index_files
from plait.data.streaming import counts as stream_counts
from plait.data.streaming.tar_shard import cached_index
from plait.errors import PlaitError

log = logging.getLogger(__name__)


def index(path: str, *, beside: bool = False, counts: bool = False) -> None:
    """Build the index of every tar shard or file of records that `path` names, and print a line for each.

    `path`: a file, a folder of shards, a glob pattern or a URL. `beside`: write an index next to its file, so that both can be shared; else
    into the user's cache. `counts`: also write index.json in the shards' folder, with the number of samples of each.
    Raises PlaitError if there is no file, for one that cannot be read, and for a URL with `beside` or `counts`.
    """
    shards = paths.files(path, ".tar", split=None, default_split="")
    if (beside or counts) and (remote := next(filter(addresses.is_remote, shards), None)):
        option, made = ("--beside", "its index") if beside else ("--counts", "index.json")
        raise PlaitError(f"{addresses.shown(remote)} is remote: index a copy on disk with {option}, and upload {made} with it")
    if counts and (other := next((shard for shard in shards if not shard.lower().endswith(".tar")), None)):
        raise PlaitError(f"--counts lists tar shards, and {other} is none: leave it out")
    existed = {shard: any(candidate.exists() for candidate in _index_candidates(shard)) for shard in shards}
    indexed = index_files(path, beside=beside)
    rows = [("file", "samples", "members", "size", "index"), *(_row(shard, existed[shard.path]) for shard in indexed)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for name, samples, members, size, state in rows:
        log.info(f"{name:<{widths[0]}}  {samples:>{widths[1]}}  {members:<{widths[2]}}  {size:>{widths[3]}}  {state}")
    total = sum(shard.samples for shard in indexed)
    built = sum(shard.built for shard in indexed)
    size = byte_text(sum(map(_data_bytes, indexed)))
    name = "files" if any(shard.kinds == ("record",) for shard in indexed) else "shards"
    log.info(f"{len(indexed)} {name}, {total:,} samples, {size}; {built} indexes built, {len(indexed) - built} unchanged")
    if counts:
        folder = Path(os.path.commonpath([Path(shard).absolute().parent for shard in shards]))
        rows_of = [(Path(one.path).absolute().relative_to(folder).as_posix(), one.samples, _data_bytes(one)) for one in indexed]
        stream_counts.write(folder / stream_counts.NAME, rows_of)
        log.info(f"the counts are in {folder / stream_counts.NAME}: put it beside the shards wherever they are streamed from")
    for reason, count in paths.left_out(path, ".tar", shards).items():
        log.info(f"left out: {count} of {reason}")


def index_configuration(resolved: Resolved) -> None:
    """Open all data of a configuration, which makes the indices and what its filters measure, and print a line for each source.

    Raises PlaitError for data that cannot be opened.
    """
    seen: dict[str, None] = {}
    for view in resolved.stages:
        opened = [*open_training(view.config).sources, *open_validation(view.config)]
        for source in opened:
            if source.fingerprint not in seen:
                seen[source.fingerprint] = None
                filtered = f"; {filtered_text(source)}" if source.filtered else ""
                log.info(f"{source.name}: {len(source):,} samples{filtered}")


def _row(shard: Indexed, existed: bool) -> tuple[str, str, str, str, str]:
    """Return the columns of one shard in the listing; `existed`: it had an index before."""
    state = "unchanged" if not shard.built else "stale, rebuilt" if existed else "built"
    hidden = f", {shard.hidden} hidden passed over" if shard.hidden else ""
    members = f"{shard.members / shard.samples:.3g} each ({', '.join(shard.kinds)}{hidden})"
    size = byte_text(_data_bytes(shard))
    return addresses.name_of(shard.path), f"{shard.samples:,}", members, size, f"{state} in {shard.time_s:.2f} s: {shard.index}"


def _index_candidates(shard: str) -> list[Path]:
    return [cached_index(shard, None)] if addresses.is_remote(shard) else indexes.candidate_paths(Path(shard), None)


def _data_bytes(shard: Indexed) -> int:
    head = indexes.read_head(shard.index)
    assert head is not None, f"{shard.index} was there a moment ago"
    return int(head.stamp["size"])


def byte_text(count: float) -> str:
    """Return a number of bytes as text, in powers of 1000: 1500 -> "1.5 kB"."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"
