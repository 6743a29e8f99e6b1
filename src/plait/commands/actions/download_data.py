"""What `plait data download` does: fetch the pictures of a list into tar shards, tell how far it is, and count outcomes."""

import errno
import logging
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from plait.commands.actions.index_data import byte_text
from plait.data.download import engine, picture_files, shards
from plait.data.download.engine import Download, Progress
from plait.data.download.limits import NetworkLimits, PictureLimits
from plait.data.download.listing import Listing
from plait.data.download.outcomes import MEANINGS, SAVED, count_lines, is_outcome
from plait.errors import PlaitError, Stopped, command

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class DownloadOptions:
    """How a list is downloaded. `columns`: names of its columns by role (url, caption, hash), where they are not found by name.

    `limit`: the first so many rows; `per_shard`: rows of one shard; `part`: (number from 1, of how many) where several machines share the
    list. `as_files`: pictures as files of one folder (picture_files.py), not in shards. `cache`: folder for copies of remote lists and
    indexes. `record_unreachable`, `again` and `verify`: see engine.py.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    per_shard: int = 10_000
    part: tuple[int, int] = (1, 1)
    cache: str | None = None
    record_unreachable: bool = False
    as_files: bool = False
    again: Sequence[str] = ()
    verify: bool = False
    network: NetworkLimits = field(default_factory=NetworkLimits)
    pictures: PictureLimits = field(default_factory=PictureLimits)


def download(path: str, out: Path, options: DownloadOptions) -> None:
    """Fetch the pictures of the list `path` into shards in the folder `out`, or go on with a download that was stopped.

    Raises PlaitError for a list that cannot be read, a folder with another download, a dead network, and a disk that is full or fails.
    """
    if (unknown := next((name for name in options.again if not is_outcome(name)), None)) is not None:
        raise PlaitError(
            f"--again={unknown}: no link has this outcome; there are {', '.join(name for name in MEANINGS if name != SAVED)}, http_..."
        )
    listing = Listing(path, options.columns, limit=options.limit, cache=options.cache)
    if options.pictures.check_hash:
        listing.check_hashes((options.part[0] - 1) * options.per_shard)
    request = {
        "list": {"name": listing.title, "rows": listing.rows, "digest": listing.digest},
        "columns": asdict(listing.columns),
        "rows_per_shard": options.per_shard,
        "as_files": options.as_files,
        "pictures": asdict(options.pictures),
    }
    try:
        folder = picture_files.lists_folder(out, listing) if options.as_files else out
        shards.begin(folder, request)
        files = engine.part_of(folder, listing.rows, options.per_shard, options.part)
        log.info(_beginning(listing, options, len(files)))
        work = Download(
            listing,
            files,
            options.network,
            options.pictures,
            threads=max(2, os.cpu_count() or 1),
            picture_files=picture_files.PictureFiles(out, listing, resized=options.pictures.max_side is not None)
            if options.as_files
            else None,
            again=options.again,
            verify=options.verify,
            record_unreachable=options.record_unreachable,
            report=lambda progress: log.info(progress_line(progress)),
        )
        progress = work.run()
        _tidy(folder)
    except OSError as error:
        cure = "free space there" if error.errno in _FULL else "mend it"
        raise Stopped(f"cannot write in {out}: {error.strerror or error}; {cure}, and the same command goes on: no row is lost") from error
    log.info("\n".join([*count_lines(progress.counts), _ending(progress, out, options.part), *_next(progress, out, options)]))


def _tidy(out: Path) -> None:
    """Remove the folder of journals, if no other part has one."""
    if (out / shards.WORK).is_dir() and not any((out / shards.WORK).iterdir()):
        (out / shards.WORK).rmdir()


def _beginning(listing: Listing, options: DownloadOptions, count: int) -> str:
    columns = listing.columns
    part = f", part {options.part[0]} of {options.part[1]}" if options.part[1] > 1 else ""
    captions = f"captions in {columns.caption!r}" if columns.caption else "no captions"
    named = f"addresses in {columns.url!r}, {captions}"
    hashes = f", hashes in {columns.hash!r}" if columns.hash else ""
    return f"{listing.title}: {listing.rows:,} rows in {count:,} shards{part}; {named}{hashes}"


def progress_line(progress: Progress) -> str:
    """Return how far a download is: rows, share saved, rates and the time that is left, at the rate so far."""
    took_s = max(time.monotonic() - progress.began_s, 1e-9)
    rate = progress.fetched / took_s
    left_s = (progress.rows - progress.done) / rate if rate else 0.0
    saved = progress.counts[SAVED] / max(progress.done, 1)
    return (
        f"{progress.done:,} of {progress.rows:,} rows ({progress.done / max(progress.rows, 1):.1%}), {saved:.0%} saved; "
        f"{rate:,.0f} rows/s, {byte_text(progress.received / took_s)}/s; about {_duration(left_s)} left"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _next(progress: Progress, out: Path, options: DownloadOptions) -> list[str]:
    """Return lines with what to do next: how to look at the pictures and train on them, and what refused addresses take."""
    lines = []
    if progress.odd_captions:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in progress.odd_captions.most_common())
        lines.append(f"captions that are no text ({kinds}) are kept in NAME.json alone: those pictures have no NAME.txt")
    if (refused := progress.counts["private_address"]) and 2 * refused > progress.done:
        lines.append("they are fetched from a network of your own by the same command with --allow=10.0.0.0/8 --again=private_address")
    if progress.counts[SAVED] and not options.as_files:
        flat = shlex.quote(str(out if out.is_absolute() else f"./{out}"))
        lines += [f"look         {command('data', 'inspect', out)}"]
        lines += [f"train        {{source: shards, path: {out}}}; in a flat JSON file --dataset_name={flat}"]
    return lines


def _ending(progress: Progress, out: Path, part: tuple[int, int]) -> str:
    of = f" of part {part[0]} of {part[1]}" if part[1] > 1 else ""
    return f"{out}: {progress.counts[SAVED]:,} pictures, {byte_text(progress.bytes)}, of {progress.done:,} rows{of}"
