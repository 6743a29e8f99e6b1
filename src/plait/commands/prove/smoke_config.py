"""Shorten a configuration to a few steps per stage (part of a run), so that every phase of the run still occurs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from plait.assembly.configuration import open_config
from plait.config.resolved import Resolved, difference
from plait.config.schema import RunConfig

GLOBAL_BATCH = 16
HELD_OUT_SAMPLES = 8
"""The largest global batch, and the most samples of an evaluation, of a shortened configuration."""
_EVALUATE_BATCH = 4
_QUIET: Mapping[str, Any] = {
    "track": {"tensorboard": False, "wandb": None, "mlflow": None, "trackio": None},
    "alert": {"urls": [], "command": None},
    "hub": None,
    "checkpoint": {"mirror": None},
}
"""Nobody hears of a shortened run, and no service gets its rows or weights."""
_INTERVALS = 3
"""Checkpoints and evaluations per stage, besides those at its end."""


def make_smoke_config(resolved: Resolved, steps: int, path: Path) -> Resolved:
    """Write `resolved`, with at most `steps` steps per stage, to the file `path`, and return it as read from there.

    Batch sizes, held-out samples, warm-up, and intervals between checkpoints and evaluations become smaller too. Raises PlaitError if the
    result is not valid.
    """
    plain = yaml.safe_load(resolved.yaml)
    _merge(plain, _QUIET)
    if plain.get("stages"):
        for stage, view in zip(plain["stages"], resolved.stages, strict=True):
            _merge(stage, _shortened(view.config, steps))
    else:
        _merge(plain, _shortened(resolved.config, steps))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return open_config(path, [])


def _shortened(settings: RunConfig, steps: int) -> dict[str, Any]:
    """Return the settings of a stage that are changed."""
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
            "keep": max(settings.checkpoint.keep, steps),  # all of them: the first that differs is reported
        },
        "evaluate": entries,
        "track": {"every_steps": 1},
    }


def _optim(settings: RunConfig, steps: int) -> dict[str, Any]:
    """Return a schedule in steps with its warm-up in the first quarter and its end in the last step. Counts of tokens stay."""
    schedule = settings.optim.schedule
    shortened = {"warmup_steps": min(schedule.warmup_steps, steps // 4)}
    if schedule.decay_steps is not None:
        shortened["decay_steps"] = min(schedule.decay_steps, steps)
    warmups = {name: component.warmup_steps for name, component in settings.optim.components.items()}
    components = {name: {"warmup_steps": min(warmup, steps // 4)} for name, warmup in warmups.items() if warmup is not None}
    return {"schedule": shortened, "components": components} if components else {"schedule": shortened}


def _micro(settings: RunConfig, batch: int) -> int | None:
    """Return a micro-batch size that splits the new batch as the old one was split: into one micro-batch, or into several."""
    micro = settings.train.micro_batch
    if micro is None or batch == settings.train.global_batch or micro >= settings.train.global_batch:
        return micro if micro is None else min(micro, batch)
    return next(size for size in range(min(micro, batch // 2), 0, -1) if batch % size == 0)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    """Merge `above` into `below`, in place."""
    for name, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(name), dict):
            _merge(below[name], value)
        else:
            below[name] = value


def changes(before: Resolved, after: Resolved) -> list[str]:
    """Return a line per setting that differs, as "train.steps: 5000 -> 8". A line ends in the stages' names if not all changed so."""
    stages: dict[tuple[str, str], list[str]] = {}
    for old, new in zip(before.stages, after.stages, strict=True):
        for name, was, now in difference(old.config, new.config):
            if name.split(".")[0] not in ("run", "stages"):
                stages.setdefault((name, f"{_plain(was)} -> {_plain(now)}"), []).append(old.name)
    count = len(before.stages)
    return [f"{name}: {change}" + ("" if len(names) == count else f" ({', '.join(names)})") for (name, change), names in stages.items()]


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)
