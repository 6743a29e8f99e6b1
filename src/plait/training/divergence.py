"""Stop at weights that give no finite loss, after an update that was too large: they are neither saved nor trained on.

Probe samples are a few fixed training samples of the stage (probes.py).
"""

import math
from pathlib import Path

from plait.data.loading.loader import StepBatch
from plait.engine.checkpoints import checkpoint
from plait.engine.held_out_loss import held_out_loss
from plait.engine.loop import total_loss_weights
from plait.engine.loss import has_targets
from plait.engine.parallel.distributed import Ranks
from plait.errors import Recurring, command
from plait.training.probes import ProbeLoss


def stop_if_diverged(probe: ProbeLoss, ranks: Ranks, *, run: Path, updated: int | None, step: int) -> None:
    """Raise Recurring, a PlaitError, if none of the probe samples, each by itself, has a finite loss; all ranks call this.

    A single bad sample does not count against the model, nor do samples with nothing to predict. `run`: the run directory. `updated`: the
    step of the last update before `step`; None where the weights were loaded from a checkpoint.
    """
    model, losses = probe.bundle.model.eval(), []
    with probe.load(micro_batch=1) as loader:
        micros = [micro for batch in loader for micro in batch.micro]
    for micro in micros:
        loss_weights = total_loss_weights(probe.loss, [micro], probe.alone)
        if has_targets(probe.loss, loss_weights):
            batch = StepBatch(0, [micro], [], 0.0)
            losses.append(held_out_loss(model, probe.loss, [batch], probe.alone, probe.precision)["loss"])
    if ranks.any(bool(losses) and not any(map(math.isfinite, losses))):
        raise Recurring(describe_divergence(run, updated, step))


def describe_divergence(run: Path, updated: int | None, step: int) -> str:
    """Return the message that the weights at `step` give no finite loss, with the command that continues from an earlier checkpoint.

    `updated`: the step of the update that is to blame; None: the checkpoint of `step` in `run` was saved with such weights.
    """
    sound = [folder for folder in checkpoint.published(run) if checkpoint.step_of(folder) < step]
    what = f"the update at step {updated} made the loss non-finite, and step {step} is not saved"
    what = f"the checkpoint of step {step} gives no finite loss" if updated is None else what
    if not sound:
        return f"{what}; no earlier checkpoint: begin anew with a lower optim.lr or train.grad_clip"
    spec = f"{run}@{checkpoint.step_of(sound[0])}"
    again = command("fork", spec, "NEW", "--optim.lr=...")
    return f"{what}; go on from before, with a lower optim.lr or train.grad_clip: `{again}`"
