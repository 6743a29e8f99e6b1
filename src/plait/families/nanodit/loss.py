"""The loss: squared error of the velocity, as a sum over samples and its weight. Division happens in the loop, once, globally."""

import torch
from torch import Tensor, nn

from plait.engine import loss as contract
from plait.engine.loss import Batch
from plait.families.nanodit import flow
from plait.families.nanodit.config import Config


class Loss(contract.Loss):
    """`flow` trains: mean squared error per element, averaged over samples. The others are logged only (coefficient 0):
    the same by range of t, and the mean squares of prediction and target, which monitors compare."""

    counts = ()
    shares = ()  # every sample weighs the same

    def __init__(self, config: Config):
        self.prediction = config.prediction
        self.coefficients = {"flow": 1.0, **dict.fromkeys((*flow.BINS, "prediction_ms", "target_ms"), 0.0)}

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """Samples, and samples in each range of t."""
        every = torch.tensor(float(len(batch["t"])), dtype=torch.float64)
        ranges = {name: inside.sum(dtype=torch.float64) for name, inside in _bins(batch["t"]).items()}
        return {"flow": every, **ranges, "prediction_ms": every, "target_ms": every}

    def by_sample(self, batch: Batch) -> dict[str, Tensor]:
        """Nothing besides the samples themselves."""
        return {}

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Summed errors per element, float32; `flow` is differentiable. Reads nothing back from the device."""
        x0, noise, t = batch["x0"], batch["noise"], batch["t"]
        z = flow.interpolate(x0, noise, t)
        conditions = {name: value for name, value in batch.items() if name not in ("x0", "noise")}
        v = flow.velocity(model({**conditions, "z": z}).float(), z, t, self.prediction)
        target = flow.target(x0, noise, t, self.prediction)
        error_B = (v - target).square().flatten(1).mean(1)
        seen_B = error_B.detach()
        ranges = {name: (seen_B * inside).sum() for name, inside in _bins(t).items()}
        squares = {"prediction_ms": _mean_squares(v.detach()), "target_ms": _mean_squares(target)}
        return {"flow": error_B.sum(), **ranges, **squares}


def _bins(t_B: Tensor) -> dict[str, Tensor]:
    """Which samples are in each range; the last range is closed."""
    last = max(high for _, high in flow.BINS.values())
    return {name: (t_B >= low) & ((t_B < high) | (t_B >= last) & (high == last)) for name, (low, high) in flow.BINS.items()}


def _mean_squares(values: Tensor) -> Tensor:
    return values.square().flatten(1).mean(1).sum()
