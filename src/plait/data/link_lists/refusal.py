"""Tell records that are links in place of pictures, by columns or by name, and give the command that fetches the pictures.

How much and how long that is, is an estimate, and says from what.
"""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from plait.config.schema import SourceEntry
from plait.data.addresses import shown
from plait.data.link_lists.columns import NAMES
from plait.data.records import IMAGE_KINDS
from plait.errors import BadSample, PlaitError, command

ROWS_PER_S = 250
"""Rows a second that estimates assume: 256 connections, one second a link. The command itself tells the rate that it has."""
ALIVE_SHARE = 0.65
"""The share of links that is assumed to give a picture: of lists of the open web a quarter to a third are dead."""
_ROWS = 1000  # to which a limit is rounded up
_OF_PAGES = "url"  # a column whose addresses may be of anything
_SIZES = (("original_width", "original_height"), ("width", "height"))
"""Columns that only a list of pictures has."""
_SHARE = 1 / 3  # of addresses that end as pictures do, in a list of pictures


@dataclass(frozen=True)
class KnownList:
    """A published list of links. `rows`: how many; `row_bytes`: an estimate of bytes a row, and `source`, what it comes from.

    `options`: of the command that fetches it.
    """

    rows: int
    row_bytes: int
    source: str
    options: tuple[str, ...] = ()


def _pool(rows: int) -> KnownList:
    return KnownList(rows, 35_000, "as published: 450 GB for 12.8 million rows, at 512 pixels", ("--max-side=512",))


KNOWN_LISTS: Mapping[str, KnownList] = {
    "mlfoundations/datacomp_small": _pool(12_800_000),
    "mlfoundations/datacomp_medium": _pool(128_000_000),
    "mlfoundations/datacomp_large": _pool(1_280_000_000),
    "mlfoundations/datacomp_xlarge": _pool(12_800_000_000),
    "mlfoundations/datacomp_1b": _pool(1_387_000_000),
}
"""Lists that are known by their name on the Hub: they hold links and no pictures."""


class RemotePicture(BadSample):
    """Raised for a sample whose picture is an address. `field`: the record's field that holds it, alone; None if that is not known."""

    field: str | None = None

    @classmethod
    def at(cls, address: str, fields: Mapping[str, Any] | None = None) -> "RemotePicture":
        """Return the error for an address in a record with these fields."""
        error = cls(f"the image {address} is on the network; download it first, and name the file in its place")
        error.field = next((name for name, held in (fields or {}).items() if held == address), None)
        return error


class LinkList(PlaitError):
    """Raised for a source whose records are links to pictures, and no pictures."""


def address_column(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the column of the addresses if records, without pictures, are those of a list of links to pictures; else None.

    `rows`: fields of some of them. A column `image_url` is one; `url` is if a third of its addresses end as pictures do, or there are
    columns of width and height; else it may be of the pages that texts come from.
    """
    listed = list(rows)
    names = {str(name).lower(): str(name) for row in listed for name in row}
    for column in NAMES["url"]:
        values = [row.get(names.get(column, "")) for row in listed]
        urls = [value for value in values if isinstance(value, str) and value.lower().startswith(("http://", "https://"))]
        if not urls:
            continue
        pictured = sum(PurePosixPath(urlsplit(url).path).suffix.lower().removeprefix(".") in IMAGE_KINDS for url in urls)
        if column != _OF_PAGES or pictured >= _SHARE * len(urls) or any(names.keys() >= set(pair) for pair in _SIZES):
            return names[column]
    return None


def refuse_known(entry: SourceEntry) -> None:
    """Raise LinkList, a PlaitError, for a dataset of the Hub that is known to be a list of links. Nothing is fetched for that."""
    if entry.name in KNOWN_LISTS and not entry.path:
        raise LinkList(links_refusal(entry))


def links_refusal(entry: SourceEntry, column: str | None = None) -> str:
    """Return the message for an entry whose records are links: the command that fetches their pictures, and what to train on then.

    `column`: of the addresses, where it is not one that the command finds by itself.
    """
    known, column = KNOWN_LISTS.get(entry.name or ""), entry.columns.get(column or "", column)
    what = shown(str(entry.path)) if entry.path else f"hf://datasets/{entry.name}"
    out = f"data/{PurePosixPath(what).stem or 'pictures'}"
    rows = known.rows if known else None
    options, remarks = list(known.options) if known else [], []
    if entry.limit is not None:
        rows = min(math.ceil(entry.limit / ALIVE_SHARE / _ROWS) * _ROWS, rows or sys.maxsize)
        options += [f"--limit={rows}"]
        remarks += [f"{entry.limit:,} pictures take about so many rows, as some links are dead"]
    if known is not None and rows is not None:
        remarks += [estimate(rows, known)]
    if column is not None and column.lower() not in NAMES["url"]:
        options += [f"--url-column={column}"]
    fetch = command("data", "download", what, out, *options) + (f" ({'; '.join(remarks)})" if remarks else "")
    then = f"train on {{source: shards, path: {out}}}, in a flat JSON file --dataset_name=./{out}"
    return f"its rows hold addresses of pictures, and no pictures: fetch them into tar shards: {fetch}; then {then}"


def estimate(rows: int, known: KnownList) -> str:
    """Return how much `rows` rows of a known list are, and how long they take, with what the estimate comes from."""
    hours = rows / ROWS_PER_S / 3600
    size = rows * known.row_bytes / 1e9
    kilobytes = f"{known.row_bytes / 1000:.0f} kB a row {known.source}"
    return f"about {size:,.0f} GB, {kilobytes}; about {duration(hours)} at {ROWS_PER_S} rows a second"


def duration(hours: float) -> str:
    """Return a number of hours as text, in minutes, hours or days."""
    return f"{hours * 60:.0f} minutes" if hours < 1.5 else f"{hours:,.0f} hours" if hours < 72 else f"{hours / 24:,.0f} days"
