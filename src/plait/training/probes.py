"""Probe a stage (part of a run): the loss of a few fixed samples, and whether its memory is to be tried.

A plan says what the stage trains, on which data, for how many steps; a bundle is the model with its family (kind of model).
"""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plait.assembly.fixed_order import FixedOrder
from plait.assembly.model import ModelBundle
from plait.data.loading.loader import Loader, StepBatch
from plait.data.order import SampleId
from plait.data.sources.part import OneByOne
from plait.engine.held_out_loss import held_out_loss
from plait.engine.loop import total_loss_weights
from plait.engine.loss import Loss, has_targets
from plait.engine.parallel.distributed import Ranks
from plait.training.stage_plan import StagePlan

log = logging.getLogger(__name__)

_PROBE_SAMPLES = 4


@dataclass(frozen=True)
class ProbeLoss:
    """The loss of a stage's first training samples. Stored with each checkpoint, it shows at a start that the model is the same."""

    bundle: ModelBundle
    loss: Loss
    batches: Sequence[StepBatch]
    precision: str
    alone: Ranks
    """A process group of this rank by itself, because every rank computes the whole loss."""
    load: Callable[..., Loader]
    """Opens a loader of these samples again; `micro_batch=n` makes it give n at a time."""

    def measure(self) -> float | None:
        """Return the loss, or None if a sample could not be read or none has anything to predict. Leaves the model in eval mode."""
        model = self.bundle.model.eval()
        loss_weights = total_loss_weights(self.loss, self.batches[0].micro, self.alone)
        if self.batches[0].bad or not has_targets(self.loss, loss_weights):
            return None
        return held_out_loss(model, self.loss, self.batches, self.alone, self.precision)["loss"]


def probe_loss(plan: StagePlan, bundle: ModelBundle, ranks: Ranks) -> ProbeLoss:
    """Read the probe samples, the first four of the stage's first dataset; return a ProbeLoss, which measures the model's loss on them."""
    sources, config = [source if source.stream is None else OneByOne(source) for source in plan.data.sources], plan.config
    ids = tuple(SampleId(0, i, 0) for i in range(min(_PROBE_SAMPLES, len(sources[0]))))
    order = FixedOrder.of(ids, sources, _PROBE_SAMPLES)
    load = functools.partial(Loader, sources, order, bundle.inputs(config, train=False), seed=config.seed, workers=0, stop_step=1)
    with load() as loader:
        batches = list(loader)
    for bad in batches[0].bad[:1]:
        log.warning(f"the probe loss is not compared: its sample {bad.name} cannot be used ({bad.reason})")
    return ProbeLoss(bundle, plan.loss, batches, config.train.precision, Ranks(0, 1, ranks.device), load)


def wants_memory_probe(plan: StagePlan, ranks: Ranks) -> bool:
    """Return whether to try memory before the first step: if `guard.memory_probe` is "always", or "auto" and there is a GPU."""
    wanted = plan.config.guard.memory_probe
    return wanted == "always" or (wanted == "auto" and ranks.device.type != "cpu")
