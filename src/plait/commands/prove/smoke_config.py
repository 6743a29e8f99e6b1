"""A configuration made short enough to be run again and again, with every kind of moment still in it; what was changed is told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from plait.assembly.configuration import open_config
from plait.config.resolved import Resolved, difference
from plait.config.schema import RunConfig

GLOBAL_BATCH = 16
HELD_OUT_SAMPLES = 8
_EVALUATE_BATCH = 4
_INTERVALS = 3
"""Checkpoints and evaluations per stage, besides those at its end."""


def shorten(resolved: Resolved, steps: int, path: Path) -> Resolved:
    """`resolved` with at most `steps` steps per stage, written to `path` as a configuration file of its own."""
    plain = yaml.safe_load(resolved.yaml)
    if plain.get("stages"):
        for stage, view in zip(plain["stages"], resolved.stages, strict=True):
            _lay(stage, _short(view.config, steps))
    else:
        _lay(plain, _short(resolved.config, steps))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return open_config(path, [])


def _short(settings: RunConfig, steps: int) -> dict[str, Any]:
    """What a stage of these settings is changed to."""
    steps = min(steps, settings.train.steps or steps)
    every = max(1, steps // _INTERVALS)
    batch = min(settings.train.global_batch, GLOBAL_BATCH)
    entries = [
        {
            **entry.model_dump(mode="json", by_alias=True),
            "every_steps": entry.every_steps and min(entry.every_steps, every),
            "samples": min(entry.samples or HELD_OUT_SAMPLES, HELD_OUT_SAMPLES),
            "batch": min(entry.batch, _EVALUATE_BATCH),
        }
        for entry in settings.evaluate
    ]
    return {
        "train": {"steps": steps, "epochs": None, "samples": None, "global_batch": batch, "micro_batch": _micro(settings, batch)},
        "optim": _optim(settings, steps),
        "checkpoint": {
            "every_steps": min(settings.checkpoint.every_steps or every, every),
            "keep": max(settings.checkpoint.keep, steps),  # all of them: the first that differs is the one to name
        },
        "evaluate": entries,
        "track": {"every_steps": 1, "tensorboard": False, "wandb": None},
    }


def _optim(settings: RunConfig, steps: int) -> dict[str, Any]:
    """Warm-up in the first quarter, and a curve in steps over all of them. In tokens nothing is changed: few of them come by."""
    schedule, components = settings.optim.schedule, settings.optim.components
    found = {"schedule": {"warmup_steps": min(schedule.warmup_steps, steps // 4)}}
    if schedule.decay_steps is not None:
        found["schedule"]["decay_steps"] = min(schedule.decay_steps, steps)
    own = {name: {"warmup_steps": min(part.warmup_steps, steps // 4)} for name, part in components.items() if part.warmup_steps is not None}
    return {**found, "components": own} if own else found


def _micro(settings: RunConfig, batch: int) -> int | None:
    """A micro-batch that cuts the new batch as the old one was cut: in one piece, or in several."""
    micro = settings.train.micro_batch
    if micro is None or batch == settings.train.global_batch or micro >= settings.train.global_batch:
        return micro if micro is None else min(micro, batch)
    return next(size for size in range(min(micro, batch // 2), 0, -1) if batch % size == 0)


def _lay(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for name, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(name), dict):
            _lay(below[name], value)
        else:
            below[name] = value


def changes(before: Resolved, after: Resolved) -> list[str]:
    """What shortening changed, a line per setting, with the stages it holds for when they differ."""
    found: dict[tuple[str, str], list[str]] = {}
    for old, new in zip(before.stages, after.stages, strict=True):
        for name, was, now in difference(old.config, new.config):
            if name.split(".")[0] not in ("run", "stages"):
                found.setdefault((name, f"{_plain(was)} -> {_plain(now)}"), []).append(old.name)
    every = len(before.stages)
    return [f"{name}: {said}" + ("" if len(names) == every else f" ({', '.join(names)})") for (name, said), names in found.items()]


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)
