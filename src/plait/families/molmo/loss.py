"""Weighted next-token cross-entropy and z-loss, as numerators with denominators; the training loop divides, once per global batch."""

import torch
from torch import Tensor, nn

from plait.engine import loss as contract
from plait.engine.loss import Batch
from plait.families.molmo.config import Config
from plait.families.molmo.packing.sequence import PADDING


class Loss(contract.Loss):
    """Terms: `loss`, nats per unit of token weight; `z_loss`, mean squared log-normaliser; `cut`, answer tokens lost per sample.

    Also counts `tokens`, positions that are not padding (those of images too), and `supervised_tokens`, whose next token is learned.
    """

    counts = ("tokens", "supervised_tokens")
    may_idle = ("vision", "connector")
    amounts = ("tokens", "supervised_tokens", "loss")
    positions = "labels"

    def __init__(self, config: Config):
        self.coefficients = {"loss": 1.0, "z_loss": config.z_loss, "cut": 0.0}

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """Return the denominators {"loss", "z_loss": summed token weights, "cut": samples}, and the counts by name; float64 scalars."""
        total = batch["loss_weights"].sum(dtype=torch.float64)
        tokens = (batch["segments"][..., 0] != PADDING).sum(dtype=torch.float64)
        counts = {"tokens": tokens, "supervised_tokens": (batch["loss_weights"] > 0).sum(dtype=torch.float64)}
        return {"loss": total, "z_loss": total, "cut": torch.tensor(float(len(batch["cut"])), dtype=torch.float64), **counts}

    def by_sample(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"tokens", "supervised_tokens", "loss" (summed token weights)}, (B,) each, by sample, also where a row packs several."""
        documents, samples = batch["segments"][..., 0], len(batch["cut"])
        one_per_row = len(documents) == samples
        number = documents + torch.arange(samples)[:, None] if one_per_row else documents
        sample_of_position = torch.where(documents == PADDING, samples, number).flatten()
        token_weights = batch["loss_weights"].flatten().double()
        values = {"tokens": None, "supervised_tokens": (token_weights > 0).double(), "loss": token_weights}
        return {name: torch.bincount(sample_of_position, value, minlength=samples + 1)[:samples] for name, value in values.items()}

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the numerators {"loss", "z_loss": weighted sums over positions, differentiable, "cut": the number of tokens cut off}."""
        sums: dict[str, Tensor] = model(batch)
        return {**sums, "cut": batch["cut"].sum().to(sums["loss"])}
