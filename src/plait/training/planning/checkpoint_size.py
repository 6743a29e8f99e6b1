"""Count the bytes of a run's checkpoints before there are any.

They follow from the names, shapes and types of what each stage (part of a run) trains.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from plait import files
from plait.assembly.model import ModelBundle
from plait.config.resolved import Resolved, StageView
from plait.engine import optim
from plait.engine.monitoring import spikes
from plait.engine.precision import TYPES
from plait.training.moments import kept
from plait.training.planning.entries import on_hub, training_entries
from plait.training.planning.meta_model import meta_bundle
from plait.training.stage_plan import installed_versions, steps_of

_FLOAT32 = 4
_DTYPE = {2: "BF16", 4: "F32"}
_MANIFEST = 1_750
"""Bytes of what a manifest.json holds besides names of parameters and versions of packages: totals, hashes, chain, fingerprints of data."""
_BLOCK, _COMPONENT, _INPUTS = 70, 45, 300
"""Bytes of what it holds of each block's output, of each component's frozen weights, and of inputs (engine/checkpoints/reference.py)."""
_RECENT = 26
"""Bytes of each of the last figures that steps are compared with (engine/monitoring/spikes.py)."""
_ALIGNMENT = 8  # of a safetensors header, which is filled up with blanks


class StageCheckpoints(NamedTuple):
    """The checkpoints of a stage: `kept` at most, of `size` bytes each, and `left` bytes of averages that deleted ones leave behind.

    `tensors`: bytes of a checkpoint's tensors alone.
    """

    kept: int
    size: int
    left: int
    tensors: int


def of_run(resolved: Resolved) -> list[StageCheckpoints]:
    """Return the checkpoints of each stage; the model is built on the meta device. Raises PlaitError if its sizes are not known."""
    return of_stages(resolved, meta_bundle(resolved.config, Path(resolved.config.run or ".")))


def of_stages(resolved: Resolved, bundle: ModelBundle) -> list[StageCheckpoints]:
    """Return the checkpoints of each stage of a run whose model, with or without weights, is in `bundle`."""
    components, family = bundle.components(), bundle.family
    parameters = {name: value for part in components.values() for name, value in part.items()}
    ever: set[str] = set()
    averaged: set[str] = set()
    with_moments: dict[str, tuple[str, ...]] = {}
    stages = []
    for view in resolved.stages:
        settings = view.config.optim
        selected = optim.select(components, view.config.trainable, family.never_trained)
        now = {name for part in selected.values() for name in part}
        ever |= now
        kinds = kept.kinds(selected, settings, bundle.blocks)
        with_moments = kinds if settings.returning_moments == "reset" else with_moments | kinds
        averaged = averaged | now if settings.ema is not None else set()
        trained = TYPES[view.config.train.precision].trained.itemsize
        average, of_average = _file(parameters, dict.fromkeys(averaged, ("",)), _FLOAT32) if averaged else (0, 0)
        averages = average * settings.average_count
        moments, of_moments = _file(parameters, {name: [f".{kind}" for kind in with_moments[name]] for name in with_moments}, trained)
        weights, of_weights = _file(parameters, dict.fromkeys(ever, ("",)), trained)
        tensors = of_weights + of_moments + of_average * settings.average_count
        count, deleted = _kept(view)
        left = 0 if settings.ema is None or not settings.ema.post_hoc else deleted * (averages - average)
        beside = _manifest(components, ever) + _figures(view, len(bundle.blocks), len(components)) + len(resolved.yaml.encode())
        stages.append(StageCheckpoints(count, weights + moments + averages + beside, left, tensors))
    return stages


def needed(stages: Collection[StageCheckpoints]) -> tuple[int, int]:
    """Return (the number of checkpoints of all stages, their bytes on the disk plus those of one more that is being written)."""
    total = sum(stage.kept * stage.size + stage.left for stage in stages)
    return sum(stage.kept for stage in stages), total + max((stage.size for stage in stages), default=0)


def _file(parameters: Mapping[str, nn.Parameter], kinds: Mapping[str, Sequence[str]], itemsize: int) -> tuple[int, int]:
    """Return the bytes of a safetensors file with a tensor of each of its `kinds` for each name, header and all, and of its values alone.

    `kinds`: {name: endings of the tensors' names}, of which `.step` is one float32 number; `itemsize`: bytes of a value of the others.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    values = 0
    for name in sorted(kinds):
        for kind in kinds[name]:
            dtype, shape, size = kept.form_of(kind.removeprefix("."), parameters[name], itemsize)
            header[name + kind] = {"dtype": dtype, "shape": shape, "data_offsets": [values, values + size]}
            values += size
    return values + -(-len(json.dumps(header, separators=(",", ":"))) // _ALIGNMENT) * _ALIGNMENT + _ALIGNMENT, values


def _manifest(components: Mapping[str, Mapping[str, nn.Parameter]], ever: Collection[str]) -> int:
    """Return about how many bytes a manifest.json takes, which lists all parameters once and those that were ever trained twice."""
    listed = {
        component: {"values": 0, "trains": 0, "weights": [name for name in part if name in ever], "names": list(part)}
        for component, part in components.items()
    }
    return len(files.json_text({"components": listed, "versions": installed_versions(), "state": {"trained": sorted(ever)}})) + _MANIFEST


def _figures(view: StageView, blocks: int, components: int) -> int:
    """Return about how many bytes a manifest.json takes for the reference of the model's work, and for the last figures of its steps."""
    config = view.config
    reference = _INPUTS + _COMPONENT * components + (0 if config.distributed.compile is True else _BLOCK * blocks)
    steps = _steps(view) or spikes.WINDOW
    recent = len(spikes.WATCHED) * (min(steps, spikes.NEAR) + min(max(0, steps - 10), spikes.WINDOW))
    return reference * config.checkpoint.reference + _RECENT * recent * (config.guard.spikes != "ignore")


def _kept(view: StageView) -> tuple[int, int]:
    """Return how many checkpoints a stage leaves at most, and how many it deletes.

    The newest `checkpoint.keep` stay (0: all), and the best one. Where the steps are those of a dataset on the Hub, none is deleted, and of
    "all" one is counted.
    """
    settings = view.config.checkpoint
    limit = settings.keep + (settings.best is not None) if settings.keep else None
    steps = _steps(view)
    if steps is None:
        return limit or 1, 0
    intervals = [settings.every_steps, *(entry.every_steps for entry in view.config.evaluate if settings.best is not None)]
    saved = {steps}.union(*(range(interval, steps, interval) for interval in intervals if interval is not None))
    kept = len(saved) if limit is None else min(len(saved), limit)
    return kept, len(saved) - kept


def _steps(view: StageView) -> int | None:
    """Return the steps of a stage; None where they are those of a dataset on the Hub, which is not opened for it."""
    unknown = view.config.train.steps is None and any(map(on_hub, training_entries(view.config)))
    return None if unknown else steps_of(view)
