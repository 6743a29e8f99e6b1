"""Make the offset indices of tar shards and say what is in them: what `plait data index` does."""

from pathlib import Path

from plait.data import paths
from plait.data.formats import index as indexes
from plait.data.sources.shards import Indexed, index_files


def index(path: str) -> None:
    """Make the offset index of every tar shard that `path` names (a shard, folder, pattern or address), and print what is in each."""
    before = {
        shard: any(place.exists() for place in _index_places(shard)) for shard in paths.files(path, ".tar", split=None, default_split="")
    }
    found = index_files(path)
    header = ("shard", "samples", "members", "size", "index")
    rows = [header]
    for one in found:
        state = "unchanged" if not one.built else "stale, rebuilt" if before[one.path] else "built"
        hidden = f", {one.hidden} hidden passed over" if one.hidden else ""
        members = f"{one.members / one.samples:.3g} each ({', '.join(one.kinds)}{hidden})"
        rows.append(
            (Path(one.path).name, f"{one.samples:,}", members, byte_text(_data_bytes(one)), f"{state} in {one.time_s:.2f} s: {one.index}")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for shard, samples, members, size, place in rows:
        print(f"{shard:<{widths[0]}}  {samples:>{widths[1]}}  {members:<{widths[2]}}  {size:>{widths[3]}}  {place}")
    total = sum(one.samples for one in found)
    built = sum(one.built for one in found)
    size = byte_text(sum(map(_data_bytes, found)))
    print(f"{len(found)} shards, {total:,} samples, {size}; {built} indexes built, {len(found) - built} unchanged")


def _index_places(shard: str) -> list[Path]:
    return [indexes.cached_path(shard, None)] if paths.is_remote(shard) else indexes.candidate_paths(Path(shard), None)


def _data_bytes(one: Indexed) -> int:
    head = indexes.read_head(one.index)
    assert head is not None, f"{one.index} was there a moment ago"
    return head.stamp["size"]


def byte_text(count: float) -> str:
    """Write a number of bytes with its unit (powers of 1000)."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"
