"""The loss: weighted next-token cross-entropy and z-loss, as sums over the weights of supervised tokens. Division happens in the loop."""

import torch
from torch import Tensor, nn

from plait.engine import loss as contract
from plait.engine.loss import Batch
from plait.families.molmo.config import Config
from plait.families.molmo.sequence import PADDING


class Loss(contract.Loss):
    """`loss` in nats per unit of token weight; `z_loss`, the mean squared log-normaliser; `cut`, answer tokens lost per sample.

    Counts tokens: positions of the sequence that are no padding, those of images among them; and those whose next token is supervised.
    """

    counts = ("tokens", "supervised_tokens")
    shares = ("tokens", "supervised_tokens", "loss")

    def __init__(self, config: Config):
        self.coefficients = {"loss": 1.0, "z_loss": config.z_loss, "cut": 0.0}

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """The summed token weights, the samples, and the counts."""
        total = batch["weights"].sum(dtype=torch.float64)
        tokens = (batch["segments"][..., 0] != PADDING).sum(dtype=torch.float64)
        counts = {"tokens": tokens, "supervised_tokens": (batch["weights"] > 0).sum(dtype=torch.float64)}
        return {"loss": total, "z_loss": total, "cut": torch.tensor(float(len(batch["cut"])), dtype=torch.float64), **counts}

    def by_sample(self, batch: Batch) -> dict[str, Tensor]:
        """Tokens, supervised tokens and token weights of each sample, whether it has a row of its own or all are packed into one."""
        documents, samples = batch["segments"][..., 0], len(batch["cut"])
        own_rows = len(documents) == samples
        number = documents + torch.arange(samples)[:, None] if own_rows else documents
        places = torch.where(documents == PADDING, samples, number).flatten()
        weights = batch["weights"].flatten().double()
        values = {"tokens": None, "supervised_tokens": (weights > 0).double(), "loss": weights}
        return {name: torch.bincount(places, value, minlength=samples + 1)[:samples] for name, value in values.items()}

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The weighted sums; differentiable."""
        found = model(batch)
        return {**found, "cut": batch["cut"].sum().to(found["loss"])}
