"""Judge by the losses of a few fixed samples of each source whether one does not learn while the others do.

A source is a training data set; a group is a source, or one task of it. Losses are lists in the order of the group's samples; None for one
that could not be used.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from plait.training.figures import paired

PREFIX, SAMPLES, NATS = "loss_by/", "loss_by_samples", "loss_by_nats"
"""The beginning of the names of figures in a row, the row's losses of single samples by group, and the nats of their answers."""
FEWEST = 8
"""Samples of a group of which something is said."""
_CLEAR, _NOT_FALLEN = 0.2, 0.05
"""Share of its loss at first by which a group's falls clearly, and up to which it has not fallen."""

Losses = Mapping[str, Sequence[float | None]]


class Fall(NamedTuple):
    """How a group's loss changed: its mean at first and now, and the share by which it fell.

    `sure`: whether it surely fell; `high`: the upper end of the share's 95 % interval.
    """

    first: float
    now: float
    share: float
    sure: bool
    high: float


def is_row(row: Mapping[str, Any]) -> bool:
    """Return whether a row of metrics has the losses of sources."""
    return isinstance(row.get(SAMPLES), dict)


def mean(losses: Sequence[float | None]) -> float | None:
    """Return the mean of those that are known, None where none is."""
    known = [value for value in losses if value is not None]
    return statistics.fmean(known) if known else None


def falls(first: Losses, now: Losses) -> dict[str, Fall]:
    """Return how the loss of each group changed, by a paired bootstrap over its samples; too small groups are left out."""
    found: dict[str, Fall] = {}
    for group in now:
        pairs = [(a, b) for a, b in zip(first.get(group, ()), now[group], strict=False) if a is not None and b is not None]
        before, after = (statistics.fmean(pair[i] for pair in pairs) if pairs else 0.0 for i in (0, 1))
        if len(pairs) < FEWEST or before <= 0:
            continue
        gain = paired.differences(pairs, {"fall": ("1", "0")}, _figures, lower=True, behind=lambda figure: None)["loss"]["fall"]
        high = gain.value if gain.high is None else gain.high
        found[group] = Fall(before, after, 1 - after / before, gain.sign > 0 or bool(gain.alike and gain.value > 0), high / before)
    return found


def _figures(pairs: Sequence[Any], way: str) -> Mapping[str, float]:
    return {"loss": statistics.fmean(pair[int(way)] for pair in pairs)}


def stuck(changes: Mapping[str, Fall]) -> Iterator[tuple[str, Fall, float]]:
    """Yield (group, its change, median share by which the others fell) where one has not fallen while most others fell clearly.

    It surely fell by less than they did, and is not below them now, as that of samples is which the model knows already.
    """
    for group, change in changes.items():
        others = [other for name, other in changes.items() if name != group]
        clear = sum(other.sure and other.share >= _CLEAR for other in others)
        if not others or 2 * clear <= len(others) or change.share > _NOT_FALLEN:
            continue
        usual = statistics.median(other.share for other in others)
        if change.high < usual and change.now >= statistics.median(other.now for other in others):
            yield group, change, usual


def sentence(group: str, change: Fall, usual: float, steps: int) -> str:
    """Return what was found, in words."""
    return (
        f"source {group}: its loss has not fallen in {steps:,} steps ({change.first:.3g} at first, {change.now:.3g} now) while the others' "
        f"fell by {usual:.0%}: are its labels right, or does the model know it already?"
    )
