"""Open a finished shard again: for further rows of the list, rows that failed, or pictures that are lost or damaged.

Its outcomes and pictures become a journal, less the rows to fetch, and the shard is then finished as any other. A kill on the way leaves
the shard as it was, or as one under way.
"""

import hashlib
import tarfile
from collections.abc import Collection, Mapping
from typing import Any

from plait import files
from plait.data.download.journal import Journal
from plait.data.download.outcomes import SAVED, Outcome
from plait.data.download.picture_files import PictureFiles
from plait.data.download.shards import ShardFiles


def is_wanted(shard: ShardFiles, counts: Mapping[str, Any], again: Collection[str]) -> bool:
    """Return whether a finished shard is to have more rows, or has outcomes of `again`. `counts`: what `shard.finished()` returned."""
    return counts["rows"][1] != shard.rows.stop or bool(set(again) & counts["outcomes"].keys())


def damage(shard: ShardFiles, counts: Mapping[str, Any], pictures: PictureFiles | None, *, thorough: bool) -> str:
    """Return what has become of the pictures of a finished shard; "" if they are there, in their size.

    `counts`: what `shard.finished()` returned; `pictures`: where they are files. `thorough`: read them, and compare their hashes.
    Raises PlaitError for a damaged manifest.
    """
    if pictures is not None:
        saved = [outcome for outcome in shard.told() if outcome.status == SAVED]
        lost = sum(not _is_there(pictures, outcome, thorough=thorough) for outcome in saved)
        return f"{lost:,} pictures of {shard.manifest.name} are missing or damaged" if lost else ""
    if not counts.get("xxh3"):
        return ""
    if not shard.tar.is_file():
        return f"{shard.tar.name} is missing"
    size = shard.tar.stat().st_size
    if counts.get("tar_bytes", size) != size:
        return f"{shard.tar.name} has {size:,} bytes, not {counts['tar_bytes']:,}"
    if (thorough or "tar_bytes" not in counts) and files.xxh3(shard.tar) != counts["xxh3"]:
        return f"{shard.tar.name} is damaged"
    return ""


def _is_there(pictures: PictureFiles, outcome: Outcome, *, thorough: bool) -> bool:
    """Return whether the file of a saved picture has its size, and if that is asked for, its hash, where it is as it came."""
    path = pictures.path(str(outcome.url))
    if not path.is_file() or path.stat().st_size != outcome.picture["bytes"]:
        return False
    if not thorough or pictures.resized:
        return True
    return _is_whole(path.read_bytes(), outcome)


def _is_whole(body: bytes, outcome: Outcome) -> bool:
    return hashlib.sha256(body).hexdigest() == str(outcome.picture["sha256"])


def reopen(shard: ShardFiles, again: Collection[str], *, pictures: PictureFiles | None, damaged: bool) -> None:
    """Make a finished shard one under way, of whose rows those with outcomes of `again` are still to be fetched.

    `pictures`: where they are files. `damaged`: pictures are missing or damaged; those are fetched, too. Raises PlaitError for a damaged
    manifest, OSError where a file cannot be used.
    """
    rows = shard.told()
    bodies = {} if pictures is not None else _places(shard)
    journal = Journal(shard.journal)
    try:
        with shard.tar.open("rb") if bodies else shard.manifest.open("rb") as file:
            for outcome in rows:
                if outcome.status in again:
                    continue
                if outcome.status != SAVED:
                    journal.add(outcome)
                elif pictures is not None:
                    if not damaged or _is_there(pictures, outcome, thorough=True):
                        journal.add(outcome)
                elif (place := bodies.get(f"{outcome.row:09d}.{outcome.picture['kind']}")) is not None:  # else it is fetched again
                    file.seek(place[0])
                    body = file.read(place[1])
                    if not damaged or _is_whole(body, outcome):
                        journal.add(outcome, body)
    finally:
        journal.close()
    shard.counts.unlink()


def _places(shard: ShardFiles) -> dict[str, tuple[int, int]]:
    """Return {name: (offset, size)} of the members of a shard, up to where it is damaged; {} where it has none."""
    places: dict[str, tuple[int, int]] = {}
    if shard.tar.is_file():
        try:
            with tarfile.open(shard.tar) as tar:
                places.update((member.name, (member.offset_data, member.size)) for member in tar)
        except (tarfile.TarError, EOFError):
            pass  # what comes after is fetched again
    return places
