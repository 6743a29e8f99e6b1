"""Next-token cross-entropy on supervised positions, as a sum and their number; the training loop divides, once per global batch."""

import torch
from torch import Tensor, nn

from plait.engine import loss as contract
from plait.engine.loss import Batch
from plait.families.theworld.config import Config
from plait.nn.losses import IGNORED


class Loss(contract.Loss):
    """One term, `loss`: nats per supervised token, one that is to be learned. Also counts `tokens`: positions that are not padding."""

    counts = ("tokens", "supervised_tokens")
    may_idle = ("vision", "world", "projector")
    shares = counts  # a supervised token weighs 1: its share is that of the loss weight

    def __init__(self, config: Config):
        self.coefficients = {"loss": 1.0}

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of supervised positions as the denominator of `loss`, and the counts; float64 scalars."""
        supervised = (batch["labels"][:, 1:] != IGNORED).sum().to(torch.float64)
        return {"loss": supervised, "tokens": batch["attention_mask"].sum().to(torch.float64), "supervised_tokens": supervised}

    def by_sample(self, batch: Batch) -> dict[str, Tensor]:
        """Return tokens and supervised tokens of each sample, (B,) each; the engine logs what each dataset contributes."""
        return {"tokens": batch["attention_mask"].sum(1), "supervised_tokens": (batch["labels"][:, 1:] != IGNORED).sum(1)}

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the numerator of `loss`: cross-entropy in nats summed over supervised positions, differentiable."""
        sums: dict[str, Tensor] = model(batch)
        return sums
