"""What a stage says of itself before its first step: what trains, on what, for how long, and what looks odd about that."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plait.config.resolved import StageView
from plait.data.buckets import contents_of
from plait.engine import power_ema, source_shares


def announce(
    view: StageView,
    trained: dict[str, dict[str, Any]],
    components: dict[str, dict[str, Any]],
    opened: list[Any],
    steps: int,
    weights: Sequence[float],
    slots: Sequence[int],
) -> None:
    """Say what the stage trains, on what, for how long."""
    total = sum(value.numel() for part in components.values() for value in part.values())
    counts = {name: sum(value.numel() for value in part.values()) for name, part in trained.items()}
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    data = ", ".join(f"{source.name} {len(source):,}" for source in opened)
    print(f"stage {view.index} {view.name}: trains {shown} of {total:,} parameters ({sum(counts.values()) / total:.2%})")
    print(f"data: {data} samples; {steps:,} steps of {view.config.train.global_batch}")
    for name, text in contents_of(opened, view.config.train.global_batch):
        print(f"  {name:<18} {text}")
    for line in shares(titles(opened), weights, slots):
        print(f"  {line}")
    average = view.config.optim.ema
    if average is not None and (said := power_ema.half_life_warning(average.decay, steps)):
        print(f"warning: {said}")


def titles(opened: Sequence[Any]) -> list[str]:
    """The name of each source; a second one of a name gets a number."""
    names = [source.name for source in opened]
    earlier = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name} ({count + 1})" if count else name for name, count in zip(names, earlier, strict=True)]


def realised(names: Iterable[str], weights: Sequence[float], totals: Mapping[str, float]) -> list[str]:
    """Each source's share of the samples as its weight asks, and of everything that the stage has drawn so far. One source: nothing."""
    found = source_shares.shares(totals)
    quantities = {name.rpartition("/")[2]: None for name in found}
    words = {quantity: "loss weight" if quantity == "loss" else quantity.replace("_", " ") for quantity in quantities}
    return [
        f"{name:<18} asked {weight / math.fsum(weights):.2%} of the samples; gave "
        + ", ".join(f"{found[f'share/{name}/{quantity}']:.2%} of {word}" for quantity, word in words.items())
        for name, weight in zip(names, weights, strict=True)
        if found
    ]


def shares(names: Sequence[str], weights: Sequence[float], slots: Sequence[int]) -> list[str]:
    """Each source's share of the samples: as its weight asks, and as the order's repeating block of `slots` gives. One source: nothing."""
    if len(names) < 2:
        return []
    return [
        f"{name:<18} asked {weight / math.fsum(weights):.2%} of the samples, gets {count / sum(slots):.2%}"
        for name, weight, count in zip(names, weights, slots, strict=True)
    ]
