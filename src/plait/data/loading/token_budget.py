"""Divide a step's samples over ranks and rows of a bounded number of tokens that have like amounts of work.

Rows are packed micro-batches. Work is of two kinds, tokens of the language model and pixels of the encoders, whose costs are not known
against each other: both are balanced. What goes where follows from the step's samples, their measured lengths and the ranks alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from plait.data.order import Ordering, SampleId, Slices, rank_slices

Table = np.ndarray[Any, np.dtype[np.float64]]
"""Numbers, (samples, 2): tokens and pixels of each."""


_LOOKED_STEPS = 16


def nothing_ahead(order: Ordering, steps: range) -> None:
    """Measure nothing: all lengths are there."""


class Lengths(Protocol):
    """A number of each sample of a source, by its index: an array, or what measures it when it is asked for."""

    def __getitem__(self, index: int, /) -> Any: ...


class TokenBudget:
    """The slicing of global batches into rows of at most `tokens` tokens; used in place of `rank_slices`.

    `lengths[source]`, `pixels[source]`: of each of its samples, measured; NaN where it cannot be read: it counts as the mean of its step.
    `longest`: tokens that a sample is cut to, None: any. `micro_batch`: samples of a row at most, None: any. A sample of more than `tokens`
    has a row of its own. `ahead(order, steps)`: measures the samples of steps together, which takes less time than one by one.
    """

    def __init__(
        self,
        lengths: Sequence[Lengths],
        pixels: Sequence[Lengths],
        tokens: int,
        *,
        longest: int | None = None,
        micro_batch: int | None = None,
        ahead: Callable[[Ordering, range], None] = nothing_ahead,
    ) -> None:
        self.lengths, self.pixels, self.tokens, self.longest, self.micro_batch = lengths, pixels, tokens, longest, micro_batch
        self.ahead = ahead
        self._memo: tuple[Any, list[list[list[SampleId]]]] = (None, [])  # replaced as a whole: several threads may call this

    def __call__(self, ids: Sequence[SampleId], rank: int, world_size: int, micro_batch: int | None) -> Slices:
        """Return the rows (ids, padding) of a rank, the longest first; every rank has as many, and those without samples are padding.

        `micro_batch`: samples of a row at most. Where that is less than configured, as memory ran out, a row has as much fewer tokens.
        """
        asked = (tuple(ids), world_size, micro_batch)
        memo = self._memo
        if memo[0] != asked:
            memo = self._memo = (asked, self._divide(ids, world_size, micro_batch))
        rows = memo[1]
        least = ids[int(self.work(ids)[:, 0].argmin())]
        missing = max(map(len, rows)) - len(rows[rank])
        return [(row, False) for row in rows[rank]] + [([least], True)] * missing

    def work(self, ids: Sequence[SampleId]) -> Table:
        """Return the tokens and pixels of samples."""
        table = np.array([[values[one.source][one.index] for values in (self.lengths, self.pixels)] for one in ids], np.float64)
        known = ~np.isnan(table[:, 0])
        table[~known] = table[known].mean(axis=0) if known.any() else (1.0, 0.0)
        table[:, 0] = np.minimum(table[:, 0], self.longest or math.inf)
        return table

    def _divide(self, ids: Sequence[SampleId], ranks: int, micro_batch: int | None) -> list[list[list[SampleId]]]:
        """Return the rows of each rank."""
        work, largest = self.work(ids), -(-len(ids) // ranks)
        full = min(self.micro_batch or largest, largest)
        samples = min(micro_batch or full, full)
        tokens = max(1.0, self.tokens * samples / full)
        least = max(np.minimum(work[:, 0], tokens).sum() / tokens, len(ids) / samples) / ranks
        per_rank = max(1, math.ceil(least - 1e-9))
        while (rows := shared_out(work, ranks * per_rank, most=samples, tokens=tokens)) is None:
            per_rank += 1
        rows = [row for row in rows if row]
        rows.sort(key=lambda row: -work[row, 0].sum())
        of_ranks = shared_out(np.array([work[row].sum(axis=0) for row in rows]), ranks, most=per_rank)
        assert of_ranks is not None
        return [[[ids[i] for i in rows[number]] for number in chosen] for chosen in of_ranks]

    def describe(self, order: Ordering, steps: range, ranks: int, micro_batch: int | None) -> str:
        """Say how full the rows of the first steps are, and how unlike the ranks, beside slices of as many samples.

        The samples of all `steps` are measured before.
        """
        self.ahead(order, steps)
        batches = [order.ids(step) for step in steps[:_LOOKED_STEPS]]
        count = filled = 0.0
        beyond = np.zeros((2, 2))  # (rows, plain slices), (tokens, pixels): work of the busiest rank above the mean
        for ids in batches:
            budgeted = [self(ids, rank, ranks, micro_batch) for rank in range(ranks)]
            plain = [rank_slices(ids, rank, ranks, micro_batch) for rank in range(ranks)]
            rows = [row for slices in budgeted for row, padding in slices if not padding]
            count, filled = count + len(budgeted[0]), filled + sum(min(self.tokens, self.work(row)[:, 0].sum()) for row in rows)
            beyond += [imbalance(np.array([self._of_rank(rows) for rows in slices])) for slices in (budgeted, plain)]
        of_each = "" if ranks == 1 else f" on each of {ranks} ranks"
        told = f"{count / len(batches):.3g} a step{of_each}, {filled / (count * ranks * self.tokens):.0%} full"
        looked = [one for ids in batches for one in ids]
        longer = int((self.work(looked)[:, 0] > self.tokens).sum())
        told += f"; {longer:,} of {len(looked):,} samples are longer, and alone in their rows" if longer else ""
        if ranks > 1:
            (tokens, pixels), others = beyond[0] / len(batches), beyond[1] / len(batches)
            told += f"; the busiest rank has {tokens:.1%} more tokens and {pixels:.1%} more pixels than the mean"
            told += f" ({others[0]:.1%} and {others[1]:.1%} in slices of as many samples)"
        return f"rows of at most {self.tokens:,} tokens: {told}"

    def _of_rank(self, slices: Slices) -> Table:
        members = [one for row, padding in slices if not padding for one in row]
        total: Table = self.work(members).sum(axis=0) if members else np.zeros(2)
        return total


def shared_out(work: Table, parts: int, *, most: int, tokens: float = math.inf) -> list[list[int]] | None:
    """Divide items over `parts` parts of like work; returns the indices of each. None: they do not fit.

    `work` (items, 2): tokens and pixels. A part has `most` items and `tokens` tokens at the most, but for one item alone. The largest item
    comes first; each goes to the part where it adds least to the sum of the squares of both kinds, in units of their means.
    """
    units = work / np.maximum(work.mean(axis=0), 1e-9)
    loads, counts, held = np.zeros((parts, 2)), np.zeros(parts, np.int64), np.zeros(parts)
    members: list[list[int]] = [[] for _ in range(parts)]
    for item in np.lexsort((np.arange(len(units)), -units.sum(axis=1))).tolist():
        fits = (counts == 0) | ((counts < most) & (held + work[item, 0] <= tokens))
        if not fits.any():
            return None
        chosen = int(np.where(fits, loads @ units[item], np.inf).argmin())
        loads[chosen] += units[item]
        counts[chosen] += 1
        held[chosen] += work[item, 0]
        members[chosen].append(item)
    return [sorted(part) for part in members]


def imbalance(work: Table) -> Table:
    """Return by which share the largest of each column (parts, 2) is above its mean; 0 for zeros."""
    mean = work.mean(axis=0)
    beyond: Table = np.where(mean > 0, work.max(axis=0) / np.where(mean > 0, mean, 1.0) - 1, 0.0)
    return beyond
