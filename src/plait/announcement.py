"""What a stage says of itself before its first step: what trains, on what, for how long, and what looks odd about that."""

from typing import Any

from plait.data.buckets import contents_of
from plait.engine import power_ema
from plait.resolved import StageView


def announce(
    view: StageView, trained: dict[str, dict[str, Any]], components: dict[str, dict[str, Any]], opened: list[Any], steps: int
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
    average = view.config.optim.ema
    if average is not None and (said := power_ema.half_life_warning(average.decay, steps)):
        print(f"warning: {said}")
