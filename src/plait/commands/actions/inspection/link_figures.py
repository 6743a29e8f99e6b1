"""Measure a list of links to pictures, of which no picture is fetched: hosts, captions, what is missing and what comes twice."""

from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import xxhash

from plait.commands.pages.charts import chart
from plait.commands.pages.figures import Section
from plait.config.schema import SourceEntry
from plait.data.download.listing import Link, Listing
from plait.data.figures import languages
from plait.data.figures.measure import STORED
from plait.data.figures.scripts import script_of
from plait.data.figures.series import Hashes, Series

_SIDES = (("original_width", "original_height"), ("width", "height"))
_HOSTS, _PARTS = 10, 64


class _Links:
    """What is counted of the rows of a list."""

    def __init__(self) -> None:
        self.rows = self.without_address = self.without_caption = self.broken = 0
        self.hosts: Counter[str] = Counter()
        self.scripts: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.width, self.height = (Series("px", logarithmic=True) for _ in range(2))
        self.words = Series("words", logarithmic=True)
        self.same_addresses, self.same_captions = Hashes(), Hashes()

    def add(self, link: Link) -> None:
        """Count one row."""
        self.rows += 1
        self.broken += bool(link.fault)
        if link.url is None:
            self.without_address += 1
        else:
            self.hosts[urlsplit(link.url).hostname or "no host"] += 1
            self.same_addresses.add(_hash(link.url), link.row)
        if link.caption is None:
            self.without_caption += 1
        else:
            self.words.add(len(link.caption.split()))
            self.scripts[script_of(link.caption)] += 1
            languages.count(self.languages, link.caption)
            self.same_captions.add(_hash(link.caption), link.row)
        sides = _sides(link.fields)
        if sides is not None:
            self.width.add(sides[0])
            self.height.add(sides[1])


def measure(what: str, entry: SourceEntry, most: int | None) -> tuple[Section, dict[str, Any]]:
    """Measure rows from all over the list of links `what`, up to `most` (None: a fixed number).

    `entry`: the list as a source. Returns the section of a page, whose title is the list's name, and the figures as JSON values.
    """
    named = {role: entry.columns[name] for role, name in (("url", "url"), ("caption", "caption")) if name in entry.columns}
    listing, links = Listing(what, named, limit=entry.limit), _Links()
    for start, stop in _parts(listing.rows, most or STORED):
        for link in listing.links(start, stop):
            links.add(link)
    drawn = (("Words of the captions", links.words), ("Width, as the list says", links.width), ("Height, as the list says", links.height))
    charts = [chart(name, series, "rows") for name, series in drawn if series.varies]
    hosts = [[f"{count:,}", host] for host, count in links.hosts.most_common(_HOSTS)]
    tables = [("Most frequent hosts", ("rows", "host"), hosts)]
    return Section(listing.title, _details(listing, links), charts, tables), _as_dict(listing, links)


def _parts(rows: int, most: int) -> list[tuple[int, int]]:
    """Return ranges of rows, of `most` together, from all over a list: all of a short one."""
    if rows <= most:
        return [(start, min(start + 10_000, rows)) for start in range(0, rows, 10_000)]
    size = max(1, most // _PARTS)
    starts = np.linspace(0, rows - size, -(-most // size)).astype(int)
    return [(int(start), int(start) + size) for start in starts]


def _sides(fields: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (width, height) of a row's picture, as its columns say; None where they do not."""
    named = {str(name).lower(): value for name, value in fields.items()}
    for pair in _SIDES:
        try:
            width, height = (int(float(named[name])) for name in pair)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        if width > 0 and height > 0:
            return width, height
    return None


def _hash(text: str) -> int:
    return int(xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")))


def _details(listing: Listing, links: _Links) -> list[tuple[str, str]]:
    """Return what was counted as (name, text), without zeros."""
    looked = "all" if links.rows == listing.rows else f"{links.rows:,} of them, from all over the list,"
    columns = listing.columns
    rows = [("rows", f"{listing.rows:,}, {looked} read; addresses in {columns.url!r}, captions in {columns.caption!r}")]
    counts = {"no address": links.without_address, "no caption": links.without_caption, "broken": links.broken}
    rows += [(name, f"{count:,} rows ({count / links.rows:.1%})") for name, count in counts.items() if count]
    rows.append(("hosts", f"{len(links.hosts):,}; {', '.join(f'{count:,} {host}' for host, count in links.hosts.most_common(5))}"))
    for name, hashes, what in (("repeated", links.same_addresses, "addresses"), ("", links.same_captions, "captions")):
        repeated, kinds, _ = hashes.repeated(0)
        if repeated:
            rows.append((name, f"{repeated:,} {what} ({repeated / len(hashes):.1%}) are those of an earlier row; {kinds:,} come again"))
    if len(links.words):
        summary = links.words.summary()
        rows.append(("captions", f"{summary['min']:g} to {summary['max']:g} words, median {summary['median']:g}"))
        rows.append(("scripts", ", ".join(f"{n / len(links.words):.1%} {name}" for name, n in links.scripts.most_common(6))))
        rows.append(("languages", languages.shares(links.languages)))
    if len(links.width):
        wide, high = links.width.summary(), links.height.summary()
        rows.append(("sides", f"width median {wide['median']:g}, height median {high['median']:g} px, as the list says"))
    return rows


def _as_dict(listing: Listing, links: _Links) -> dict[str, Any]:
    repeats = {name: hashes.repeated(0)[0] for name, hashes in (("addresses", links.same_addresses), ("captions", links.same_captions))}
    return {
        "name": listing.title,
        "links": True,
        "rows": listing.rows,
        "read": links.rows,
        "all": links.rows == listing.rows,
        "without_address": links.without_address,
        "without_caption": links.without_caption,
        "broken": links.broken,
        "hosts": dict(links.hosts.most_common(100)),
        "repeated": repeats,
        "scripts": dict(links.scripts.most_common()),
        "languages": dict(links.languages.most_common()),
        "words": links.words.plain(),
        "width": links.width.plain(),
        "height": links.height.plain(),
    }
