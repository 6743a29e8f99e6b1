"""Open a finished shard again, to read a list further, or to fetch rows that failed once more.

Its outcomes and pictures become a journal, less the rows to fetch, and the shard is then finished as any other. A kill on the way leaves
the shard as it was, or as one under way.
"""

import tarfile
from collections.abc import Collection, Mapping
from typing import Any

from plait.data.download.journal import Journal
from plait.data.download.outcomes import SAVED
from plait.data.download.shards import ShardFiles


def is_wanted(shard: ShardFiles, counts: Mapping[str, Any], again: Collection[str]) -> bool:
    """Return whether a finished shard is to have more rows, or has outcomes of `again`. `counts`: what `shard.finished()` returned."""
    return counts["rows"][1] != shard.rows.stop or bool(set(again) & counts["outcomes"].keys())


def reopen(shard: ShardFiles, again: Collection[str], *, as_files: bool) -> None:
    """Make a finished shard one under way, of whose rows those with outcomes of `again` are still to be fetched.

    `as_files`: its pictures are files. Raises PlaitError for a damaged manifest, OSError where a file cannot be
    used.
    """
    rows = shard.told()
    bodies = {} if as_files else _places(shard)
    journal = Journal(shard.journal)
    try:
        with shard.tar.open("rb") if bodies else shard.manifest.open("rb") as file:
            for outcome in rows:
                if outcome.status in again:
                    continue
                if outcome.status != SAVED or as_files:
                    journal.add(outcome)
                elif (place := bodies.get(f"{outcome.row:09d}.{outcome.picture['kind']}")) is not None:  # else it is fetched again
                    file.seek(place[0])
                    journal.add(outcome, file.read(place[1]))
    finally:
        journal.close()
    shard.counts.unlink()


def _places(shard: ShardFiles) -> dict[str, tuple[int, int]]:
    """Return {name: (offset, size)} of the members of a shard; {} where it has none."""
    if not shard.tar.is_file():
        return {}
    with tarfile.open(shard.tar) as tar:
        return {member.name: (member.offset_data, member.size) for member in tar}
