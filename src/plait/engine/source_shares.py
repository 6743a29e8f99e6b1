"""What a mixture really gave: the part of each source in the samples, tokens and loss weight of a stage so far.

Amounts are totals of the state, `drawn/SOURCE/QUANTITY`: summed over ranks with the step's weights, saved with each checkpoint, begun anew
by each stage. Sources that draw equally often can differ tenfold in supervised tokens, and it is loss weight that pulls on the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from plait.engine.loss import Loss

PREFIX = "drawn/"
SAMPLES = "samples"


def amounts(loss: Loss, micros: Sequence[Any], sources: Sequence[str]) -> dict[str, float]:
    """What each source gave to these micro-batches; every rank has the same names. Of a single source nothing is counted."""
    if len(sources) < 2:
        return {}
    found = {f"{PREFIX}{source}/{quantity}": 0.0 for source in sources for quantity in (SAMPLES, *loss.shares)}
    for micro in micros:
        if micro.padding:
            continue
        names = [sources[i.source] for i in micro.ids]
        parts = {SAMPLES: [1.0] * len(names), **{name: values.tolist() for name, values in loss.by_sample(micro.batch).items()}}
        for quantity, values in parts.items():
            for source, value in zip(names, values, strict=True):
                found[f"{PREFIX}{source}/{quantity}"] += value
    return found


def shares(totals: Mapping[str, float]) -> dict[str, float]:
    """`share/SOURCE/QUANTITY`: each source's part of a quantity; a quantity that nothing was given of is left out."""
    given = {name: value for name, value in totals.items() if name.startswith(PREFIX)}
    whole: dict[str, float] = {}
    for name, value in given.items():
        quantity = name.rpartition("/")[2]
        whole[quantity] = whole.get(quantity, 0.0) + value
    parts = {name: whole[name.rpartition("/")[2]] for name in given}
    return {f"share/{name.removeprefix(PREFIX)}": value / parts[name] for name, value in given.items() if parts[name] > 0}


def without(totals: Mapping[str, float]) -> dict[str, float]:
    """The totals of a stage that has drawn nothing yet."""
    return {name: value for name, value in totals.items() if not name.startswith(PREFIX)}
