"""The flow-matching loss: squared error of the velocity, as a sum over samples and their number; the loop divides, once per step."""

import torch
from torch import Tensor, nn

from plait.engine import loss as contract
from plait.engine.loss import Batch
from plait.families.nanodit import flow
from plait.families.nanodit.config import Config


class Loss(contract.Loss):
    """Mean squared error of the velocity per element, summed over samples (`flow`), and terms that are only logged (coefficient 0).

    Those are the same error by range of t (`t_low`, `t_mid`, `t_high`), the mean squares of the predicted velocity and its target
    (`prediction_ms`, `target_ms`), and `cut`: caption tokens cut off per sample.
    """

    counts = ()
    amounts = ()  # every sample weighs the same

    def __init__(self, config: Config) -> None:
        self.prediction = config.prediction
        self.coefficients = {"flow": 1.0, **dict.fromkeys((*flow.BINS, "prediction_ms", "target_ms", "cut"), 0.0)}

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """Return {term: its denominator}, float64 scalars: the samples, or for `t_low`, `t_mid` and `t_high` those with such a t."""
        samples = torch.tensor(float(len(batch["t"])), dtype=torch.float64)
        ranges = {name: inside.sum(dtype=torch.float64) for name, inside in _bins(batch["t"]).items()}
        return {"flow": samples, **ranges, "prediction_ms": samples, "target_ms": samples, "cut": samples}

    def by_sample(self, batch: Batch) -> dict[str, Tensor]:
        """Return {}: every sample weighs the same, so there are no weights to split by sample."""
        return {}

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return {term: its sum over samples}: float32 scalars on the device, without synchronising; only `flow` is differentiable."""
        x0, noise, t = batch["x0"], batch["noise"], batch["t"]
        z = flow.interpolate(x0, noise, t)
        conditions = {name: value for name, value in batch.items() if name not in ("x0", "noise", "cut")}
        v = flow.velocity(model({**conditions, "z": z}).float(), z, t, self.prediction, flow.T_FLOOR)
        target = flow.target(x0, noise, t, self.prediction)
        error_B = (v - target).square().flatten(1).mean(1)
        logged_B = error_B.detach()
        ranges = {name: (logged_B * inside).sum() for name, inside in _bins(t).items()}
        squares = {"prediction_ms": _mean_squares(v.detach()), "target_ms": _mean_squares(target)}
        return {"flow": error_B.sum(), **ranges, **squares, "cut": batch["cut"].sum().to(logged_B)}


def _bins(t_B: Tensor) -> dict[str, Tensor]:
    """Return a mask (B,) per range of t; the last range includes its end."""
    last = max(high for _, high in flow.BINS.values())
    return {name: (t_B >= low) & ((t_B < high) | (t_B >= last) & (high == last)) for name, (low, high) in flow.BINS.items()}


def _mean_squares(values: Tensor) -> Tensor:
    """Sum over samples of the mean square per element."""
    return values.square().flatten(1).mean(1).sum()
