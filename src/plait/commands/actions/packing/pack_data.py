"""What `plait data shard --plain` does: pack the samples of any source, as they are, into tar shards for any trainer."""

import errno
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from plait.commands.actions.index_data import byte_text
from plait.commands.actions.packing.source_argument import open_named
from plait.commands.actions.shard_data import show_progress
from plait.data.shard_sets import encoding, processes, write
from plait.data.shard_sets.members import Pictures
from plait.errors import PlaitError, Stopped

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class PackOptions:
    """How a source is packed. `split`, `number`: which part of the source, or which source of a configuration.

    `per_shard`: samples of the source in a shard; `shuffle`: in a random order by `seed`; `limit`: the first so many. `max_side`,
    `min_side`, `encode`, `quality`: what becomes of pictures (members.py). `workers`: threads of each of `processes`.
    """

    split: str = "train"
    number: int | None = None
    per_shard: int = 10_000
    shuffle: bool = False
    seed: int = 0
    limit: int | None = None
    max_side: int | None = None
    min_side: int | None = None
    encode: encoding.Kind | None = None
    quality: int | None = None
    workers: int = 2
    processes: int = 1


OPTIONS = frozenset(PackOptions.__dataclass_fields__)
"""The names of its fields."""


def pack(what: str, out: Path | None, options: PackOptions, settings: Sequence[str] = ()) -> None:
    """Pack the source `what` into tar shards in the folder `out`, or finish what was stopped.

    `what`: a path, an address, `scenes`, or a configuration; `settings`: of it, such as "columns.caption=text". Raises PlaitError for a
    wrong argument, source or setting, and Stopped where a disk is full or a process dies: the same command then goes on.
    """
    if out is None:
        raise PlaitError("name the folder to write after the source")
    if options.quality is not None and ((options.max_side is None and options.encode is None) or options.encode == "png"):
        cure = "PNG has none" if options.encode == "png" else "give --max-side or --encode too, or pictures stay as they are"
        raise PlaitError(f"--quality={options.quality} is of pictures that are encoded anew: {cure}")
    if options.quality is not None and options.quality > 100:
        raise PlaitError(f"--quality={options.quality}: 1 to 100")
    source = open_named(what, settings, split=options.split, number=options.number)
    quality = {} if options.quality is None else {"quality": options.quality}
    pictures = Pictures(max_side=options.max_side, min_side=options.min_side, encode=options.encode, **quality)
    request = write.Request(
        options.per_shard,
        shuffled=options.shuffle,
        seed=options.seed if options.shuffle else 0,
        limit=options.limit,
        pictures=pictures,
    )
    several = options.processes > 1
    run = (
        partial(processes.in_several, threads=options.workers, processes=options.processes)
        if several
        else partial(processes.in_this, threads=options.workers)
    )
    before = (out / write.MANIFEST).is_file()
    log.info(f"{source.name}: {len(source):,} samples, {options.per_shard:,} a shard")
    try:
        with show_progress() as report:
            manifest = write.build(source, out, request, run=run, report=report)
    except OSError as error:
        cure = "free space there" if error.errno in _FULL else "mend it"
        raise Stopped(f"cannot write in {out}: {error.strerror or error}; {cure}, and the same command goes on") from error
    log.info("\n".join([*_told(manifest), f"{out}: {'was packed before' if before else 'done'}"]))


def _told(manifest: Mapping[str, Any]) -> list[str]:
    """Return the lines of a finished set: samples, pictures, texts, and what was skipped."""
    size = sum(row["size"] for row in manifest["shards"].values())
    skipped = ", ".join(f"{count} {reason}" for reason, count in manifest["skipped"].items()) or "none"
    shards = f"{len(manifest['shards']):,} shard{'s' * (len(manifest['shards']) > 1)}"
    lines = [f"{manifest['samples']:,} samples in {shards}, {byte_text(size)}; skipped: {skipped}"]
    anew = f", {manifest['encoded_anew']:,} encoded anew" if manifest["encoded_anew"] else ""
    lines.append(f"{manifest['pictures']:,} pictures{anew}; {manifest['captions']:,} captions, {manifest['conversations']:,} conversations")
    lines += [f"left out: {count} of field {name!r}, which JSON cannot hold" for name, count in manifest["lost_fields"].items()]
    return lines
