"""A source without the samples that the `filter:` of its entry does not pass (data/selection/filters.py says which)."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from plait.config.schema import SourceEntry
from plait.data.selection import filters
from plait.data.selection.survey import Surveyed
from plait.data.sources.contract import Source
from plait.data.sources.part import Subset
from plait.errors import PlaitError


class Filtered(Subset):
    """The samples of a source that pass a filter, in the order of the source. `filtered`: how many do not, by what they fail."""

    def __init__(self, whole: Source, kept: np.ndarray, counts: Mapping[str, int]) -> None:
        self._kept = kept.astype(np.int64, copy=False)
        ends = np.searchsorted(kept, np.cumsum([0, *(whole.groups or (len(whole),))]))
        super().__init__(whole, [int(end - begin) for begin, end in pairwise(ends)])
        self.filtered, self.unfiltered = {**whole.filtered, **counts}, whole.unfiltered or len(whole)
        self.fingerprint = xxhash.xxh3_64_hexdigest(f"{whole.fingerprint} {xxhash.xxh3_64_hexdigest(kept.tobytes())}".encode())
        self.stream = None if whole.stream is None else whole.stream.part(lambda indices: np.searchsorted(kept, indices))

    def in_whole(self, indices: Any) -> Any:
        """Return the indices, in the whole source, of samples that pass; `indices`: an integer or an array."""
        return self._kept[indices]


def place_of(entry: SourceEntry) -> str:
    """Return where the pictures of an entry lie, which a source's fingerprint does not tell."""
    return repr((entry.path, sorted(entry.options.items())))


def passing(source: Source, entry: SourceEntry, where: str, cache: str | Path | None) -> Source:
    """Return the samples of `source` that pass the filter of `entry`, which has one. `where`: names the entry in messages.

    `cache`: folder of what is measured of the samples, once; None: the user's. Raises PlaitError for a filter that does not fit the data.
    """
    assert entry.filter is not None
    try:
        kept, counts = filters.passing(Surveyed(source, place_of(entry), cache), entry.filter)
    except PlaitError as error:
        raise PlaitError(f"{where}: {error}") from error
    return Filtered(source, kept, counts)


def filtered_text(source: Source) -> str:
    """Return how many samples a filter leaves out of a source: "filtered: 117 by min_side 256, 3 by expr, 120 of 5,000"."""
    return f"filtered: {filters.counted(source.filtered)}, {sum(source.filtered.values()):,} of {source.unfiltered:,}"
