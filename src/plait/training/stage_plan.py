"""The plan of a stage (part of a run): all that is known before its first step, as a frozen value. Planning changes no model or state.

A view is the configuration of one stage; a bundle, the model with its family (kind of model).
"""

import contextlib
import functools
import importlib.metadata
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import xxhash
from torch import nn

from plait import __version__
from plait.assembly.data import TrainingData, data_seed, open_training
from plait.assembly.held_out import benches
from plait.assembly.model import ModelBundle
from plait.config.conflicts import schedule_conflicts
from plait.config.resolved import StageView
from plait.config.schema import RunConfig
from plait.data.buckets import BucketOrder
from plait.data.loading.bucketing import bucket_lengths
from plait.data.order import BatchChanges, Order, Slicing, rank_slices
from plait.engine import optim, precision, schedule
from plait.engine.evaluation import Bench
from plait.engine.loss import Loss
from plait.errors import PlaitError
from plait.families import registry
from plait.training.batching import token_lengths

AnyOrder = Order | BucketOrder  # of samples; a BucketOrder where sources have buckets (samples of one shape)
Names = Mapping[str, tuple[str, ...]]
"""Parameter names by component."""


@dataclass(frozen=True)
class StagePlan:
    """What a stage trains, on which data, in what order (from `data_seed`) and slices, how long, and its benches (evaluations)."""

    view: StageView
    data: TrainingData
    data_seed: int
    order: AnyOrder
    slicing: Slicing
    steps: int
    """Optimizer steps of the stage."""
    loss: Loss
    benches: Mapping[str, Bench]
    components: Names
    trained: Names
    """The parameters that train in this stage, by component (model part); `components` has all parameters of the model."""

    @property
    def config(self) -> RunConfig:
        """Return the configuration with the stage's own settings in place."""
        return self.view.config

    @property
    def trained_names(self) -> set[str]:
        """Return the names of all parameters that train in this stage."""
        return {name for names in self.trained.values() for name in names}

    def trained_parameters(self, model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
        """Return {component: {name: parameter}} of what trains, from `model` as it is now (sharding replaces the parameters)."""
        parameters = dict(model.named_parameters())
        return {component: {name: parameters[name] for name in names} for component, names in self.trained.items()}

    def micro_batch(self, ranks: int) -> int:
        """Return the number of samples per forward pass on one of `ranks` ranks: `train.micro_batch`, or its part of the global batch."""
        return self.config.train.micro_batch or math.ceil(self.config.train.global_batch / ranks)

    @property
    def order_digest(self) -> str:
        """Return a hash of what decides which samples come when: seed, sizes of the data, weights, and the first global batch."""
        lengths = [*map(bucket_lengths, self.data.sources), *filter(None, [self.order.arranged])]
        parts = (self.data_seed, self.order.sizes, self.order.counts, self.order.segments[0].batch, lengths)
        return xxhash.xxh3_64_hexdigest(repr(parts).encode())

    def manifest(self, model: nn.Module, ever_trained: set[str], ranks: int, torch_version: str) -> dict[str, Any]:
        """Return the stage's part of a manifest.json, from `stage` to `versions`.

        `ever_trained`: names of parameters that train now or did in an earlier stage, whose weights the checkpoint holds.
        """
        sizes = {name: precision.count(value) for name, value in model.named_parameters()}
        contents = {}
        for component, names in self.components.items():
            values, trains = (sum(sizes[name] for name in some) for some in (names, self.trained.get(component, ())))
            contents[component] = {"values": values, "trains": trains, "weights": sorted(ever_trained & set(names)), "names": list(names)}
        return {
            "stage": self.view.name,
            "trainable": list(self.trained),
            "steps": self.steps,
            "components": contents,
            "data": self.data.fingerprints(),
            "order": self.order_digest,
            "ranks": ranks,
            "compiled": self.config.distributed.compile,
            "versions": {"plait": __version__, **installed_versions(), "torch": torch_version},
        }


@functools.cache
def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries that plait needs, optional ones included."""
    versions = {"python": platform.python_version()}
    for requirement in importlib.metadata.requires("plait") or []:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return dict(sorted(versions.items()))


def trained_by(view: StageView, bundle: ModelBundle) -> optim.Trained:
    """Return what a stage trains, {component: {name: parameter}}. Raises PlaitError where `trainable` or `optim` does not fit the model."""
    optim.check_components(view.config.optim, bundle.components(), bundle.family.never_trained)
    schedule.check(view.config.optim.schedule, bundle.loss().counts, view.config.family)
    return optim.select(bundle.components(), view.config.trainable, bundle.family.never_trained)


def plan_stage(view: StageView, bundle: ModelBundle, batches: BatchChanges = ()) -> StagePlan:
    """Open the data of the stage with settings `view`, and return its plan. Raises PlaitError for settings that do not fit the model.

    `batches`: the global batches that the stage has had, as (step of the stage, samples per step from it on); () if it never changed.
    """
    config, family = view.config, bundle.family
    loss, trained = bundle.loss(), trained_by(view, bundle)
    known_benches = benches(config, config.evaluate) if config.evaluate else registry.benches(config.family)
    data = open_training(config)
    order = data.order(view, batches)
    slicing: Slicing = rank_slices
    if config.data.needs_lengths:
        data, order, slicing = token_lengths.prepare(view, data, family, bundle.inputs(config, train=True), batches)
    steps = planned_steps(config, order)
    config = config.model_copy(update={"optim": schedule.with_warmup(config.optim, steps)})
    return StagePlan(
        view=replace(view, config=config),
        data=data,
        data_seed=data_seed(view),
        order=order,
        slicing=slicing,
        steps=steps,
        loss=loss,
        benches=known_benches,
        components=bundle.component_names,
        trained={component: tuple(part) for component, part in trained.items()},
    )


def steps_of(view: StageView, batches: BatchChanges = ()) -> int:
    """Return a stage's optimizer steps. `batches`: its (step, samples per step from it on). Raises PlaitError if data for it is missing."""
    steps = view.config.train.steps
    return steps if steps is not None else planned_steps(view.config, open_training(view.config).order(view, batches))


def planned_steps(config: RunConfig, order: AnyOrder) -> int:
    """Return a stage's optimizer steps: `train.steps`, or as many as its epochs or samples take. Raises PlaitError if warm-up is longer."""
    budget = config.train
    if budget.steps is not None:
        steps = budget.steps
    else:
        steps = order.steps(budget.epochs * sum(order.sizes) if budget.epochs is not None else budget.samples or 0)
    for path, message in schedule_conflicts(config.optim, steps):
        raise PlaitError(f"{'.'.join(map(str, path))} {message}")
    return steps


def evaluates(config: RunConfig) -> bool:
    """Return whether a stage with these settings evaluates anything: `evaluate:` has entries, or a setting relies on a figure."""
    return bool(config.evaluate or wanted_figures(config))


def wanted_figures(config: RunConfig) -> list[str]:
    """Return the names of the figures that a decision needs: `checkpoint.best` and `train.plateau.metric`, those of them that are set."""
    rule = config.train.plateau
    return [name for name in (config.checkpoint.best, rule and rule.metric) if name]
