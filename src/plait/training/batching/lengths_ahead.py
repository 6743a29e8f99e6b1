"""Measure the tokens and pixels of samples for packing: together for the steps ahead, else when they are asked for.

Which samples a step has follows from the order, which no length decides: rows are the same, whatever was measured when.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.order import Ordering
from plait.data.selection.measures import Measure
from plait.data.selection.survey import Measured, Surveyed, kept, measure_now, measured, measured_some
from plait.data.sources.contract import Source
from plait.families.lengths import TokenLengths

_WHAT_FOR = "the lengths of its rows"
_MOST = 0.5  # share of the samples from which on all are measured, as further runs need the others


class SourceLengths:
    """The tokens and pixels of each sample of a source; NaN where it cannot be read.

    `cache`: folder of what is measured; None: the user's.
    """

    def __init__(self, source: Source, lengths: TokenLengths, cache: str | Path | None) -> None:
        self.source, self.lengths, self.cache = source, lengths, cache
        self._kept: tuple[np.ndarray | None, list[np.ndarray]] | None = None  # indices and columns, as of `kept`; None: not looked for yet
        self._asked: dict[int, list[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what worker processes need: they are asked for samples of steps alone that were measured ahead."""
        return {"source": None, "lengths": None, "cache": None, "_kept": self._kept, "_asked": self._asked}

    @property
    def _measures(self) -> list[Measure]:
        return [self.lengths.measure(), self.lengths.measure_pixels()]

    @property
    def _surveyed(self) -> Surveyed:
        return Surveyed(self.source, "", self.cache)

    def measure_all(self) -> None:
        """Measure all samples. Raises PlaitError if the cache cannot be written."""
        self._keep(None, measured(self._surveyed, self._measures, what_for=_WHAT_FOR))

    def measure(self, wanted: np.ndarray) -> None:
        """Measure samples `wanted`, sorted indices. Raises PlaitError if the cache cannot be written."""
        self._keep(*measured_some(self._surveyed, self._measures, wanted, what_for=_WHAT_FOR))

    def _keep(self, indices: np.ndarray | None, rows: Measured) -> None:
        self._kept = indices, [rows[measure.name][:, 0] for measure in self._measures]

    def value(self, index: int, column: int) -> Any:
        """Return the tokens, column 0, or the pixels, column 1, of a sample."""
        if self._kept is None:
            self._keep(*kept(self._surveyed, self._measures))
        assert self._kept is not None
        indices, columns = self._kept
        place = index if indices is None else int(np.searchsorted(indices, index))
        if indices is None or (place < len(indices) and indices[place] == index):
            return columns[column][place]
        if index not in self._asked:
            assert self.source is not None, f"sample {index} was not measured ahead"
            taken = measure_now(self.source, [index], self._measures)
            self._asked[index] = [taken[measure.name][0, 0] for measure in self._measures]
        return self._asked[index][column]


@dataclass(frozen=True)
class Column:
    """The tokens (`number` 0) or the pixels (1) of each sample of a source."""

    lengths: SourceLengths
    number: int

    def __getitem__(self, index: int) -> Any:
        return self.lengths.value(index, self.number)


def measure_ahead(sources: Sequence[SourceLengths], order: Ordering, steps: range) -> None:
    """Measure the samples of some steps together, and keep the numbers for other runs. Where they are most of a source, all of it is."""
    most, count, taken = _MOST * sum(order.sizes), 0, list[np.ndarray]()
    for step in steps:
        ids = order.ids(step)
        taken.append(np.array([(one.source, one.index) for one in ids], np.int64))
        count += len(ids)
        if count > most:
            break
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *taken])
    for number, (source, size) in enumerate(zip(sources, order.sizes, strict=True)):
        wanted = np.unique(pairs[pairs[:, 0] == number, 1])
        if count > most or len(wanted) > _MOST * size:
            source.measure_all()
        else:
            source.measure(wanted)
