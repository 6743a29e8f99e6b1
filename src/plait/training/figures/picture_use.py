"""Say whether pictures make a difference to a model: the row of metrics of such a look, and its sentence.

A look is the loss of some samples with their own pictures, and again with another sample's (training/blindness.py).
"""

from collections.abc import Mapping
from typing import Any

from plait.training.figures.paired import Difference

OWN, OTHER, GAIN = "blind/own", "blind/other", "blind/gain"
"""Names of the figures in a row: the loss with own pictures, that with another sample's, and how much lower the first is."""
_SAMPLES = "blind/samples"
_NOTHING = 0.01
"""Share of the loss: even models that were shown mixed-up pictures tell them apart by a little less."""


def row_of(own: float, other: float, gain: Difference, samples: int) -> dict[str, Any]:
    """Return the figures of a look at so many samples, as a row of metrics has them.

    `own`, `other`: mean loss with own pictures and with another sample's; `gain`: how much lower `own` is. Keys: `blind/own`,
    `blind/other`, `blind/gain`, `blind/samples`, and `intervals`: {"blind/gain": (low, high)}, twice the gain where all samples have it.
    """
    ends = (gain.value, gain.value) if gain.low is None else (gain.low, gain.high)
    return {OWN: own, OTHER: other, GAIN: gain.value, _SAMPLES: samples, "intervals": {GAIN: ends}}


def is_row(row: Mapping[str, Any]) -> bool:
    """Return whether a row of metrics is that of a look."""
    return GAIN in row


def makes_difference(row: Mapping[str, Any]) -> bool:
    """Return whether the loss is surely lower with own pictures.

    The 95 % interval of the gain lies above 0, and not all of it below 1 % of the loss.
    """
    return bool(row["intervals"][GAIN][0] > 0) and not saves_less(row, _NOTHING)


def saves_less(row: Mapping[str, Any], share: float) -> bool:
    """Return whether own pictures surely save less than this share of the loss that is measured with them (`blind/own`)."""
    return bool(row["intervals"][GAIN][1] < share * row[OWN])


def verdict(row: Mapping[str, Any]) -> str:
    """Return "a difference", or "no sure difference"."""
    return "a difference" if makes_difference(row) else "no sure difference"


def sentence(row: Mapping[str, Any]) -> str:
    """Return what a look found, in words.

    Such as "the loss is 2.1031 with their own pictures and 2.4034 with another sample's (64 samples, gain +0.3003 [+0.2100, +0.3900])".
    """
    low, high = row["intervals"][GAIN]
    losses = f"the loss is {row[OWN]:.4f} with their own pictures and {row[OTHER]:.4f} with another sample's"
    if low == high:
        return f"{losses} ({Difference(row[GAIN], None, None, row[_SAMPLES]).text(points=False)})"
    return f"{losses} ({row[_SAMPLES]} samples, gain {Difference(row[GAIN], low, high).text(points=False)})"
