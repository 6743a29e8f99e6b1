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
from plait.data.sources.contract import Sample, Source
from plait.errors import PlaitError


class Filtered(Source):
    """The samples of a source that pass a filter, in the order of the source. `filtered`: how many do not, by what they fail."""

    def __init__(self, whole: Source, kept: np.ndarray, counts: Mapping[str, int]) -> None:
        self.whole, self._kept, self.filtered = whole, kept, {**whole.filtered, **counts}
        self.name, self.left_out, self.stored, self.may_wait = whole.name, dict(whole.left_out), whole.stored, whole.may_wait
        self.has_template, self.allow_blank, self.unfiltered = whole.has_template, whole.allow_blank, whole.unfiltered or len(whole)
        self.fingerprint = xxhash.xxh3_64_hexdigest(f"{whole.fingerprint} {xxhash.xxh3_64_hexdigest(kept.tobytes())}".encode())
        self.stream = None if whole.stream is None else whole.stream.part(lambda indices: np.searchsorted(kept, indices))
        ends = np.searchsorted(kept, np.cumsum([0, *whole.groups]))
        self._sizes = [int(end - begin) for begin, end in pairwise(ends)]
        self.groups = tuple(size for size in self._sizes if size)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int, /) -> Sample:
        return self.whole[self._index_in_whole(index)]

    def draw(self, index: int, sample_key: int) -> Sample:
        """Return sample `index` of those that pass, drawn by the whole source with the 64-bit seed `sample_key`."""
        return self.whole.draw(self._index_in_whole(index), sample_key)

    def peek(self, index: int) -> Sample:
        """Return what the whole source tells of sample `index` of those that pass."""
        return self.whole.peek(self._index_in_whole(index))

    def places(self, indices: Any) -> Any:
        """Return the indices of samples in the source before any filter."""
        return self.whole.places(self._kept[indices].astype(np.int64))

    @property
    def maker(self) -> str:
        """Return the import path of the class of the whole source."""
        return self.whole.maker

    def table(self, global_batch: int) -> list[Mapping[str, Any]]:
        """Return the whole source's table, a dict per bucket, with the counts of what passes; `tokens` in proportion.

        `global_batch`: samples per step, by which `batches` and `left_over` are counted.
        """
        rows: list[Mapping[str, Any]] = []
        for row, size in zip(self.whole.table(global_batch), self._sizes, strict=False):
            tokens = round(row["tokens"] * size / row["samples"])
            counts = {"samples": size, "tokens": tokens, "batches": size // global_batch, "left_over": size % global_batch}
            rows += [{**row, **counts}] if size else []
        return rows

    def _index_in_whole(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return int(self._kept[index])


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
