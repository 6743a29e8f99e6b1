"""Next-token cross-entropy on supervised positions, as a sum and their number; the training loop divides, once per global batch."""

import torch
from torch import Tensor, nn

from plait.engine import loss as contract
from plait.engine.loss import Batch
from plait.families.theworld.config import Config
from plait.families.theworld.packing.rows import of_documents
from plait.nn.losses import IGNORED


class Loss(contract.Loss):
    """Terms: `loss`, nats per supervised token (a token of an answer); `cut`, answer tokens cut off per sample (only logged).

    Also counts `tokens` (positions that are not padding) and `supervised_tokens`.
    """

    counts = ("tokens", "supervised_tokens")
    may_idle = ("vision", "world", "projector")
    amounts = counts  # a supervised token weighs 1: its share is that of the loss weight
    positions = "labels"

    def __init__(self, config: Config):
        self.coefficients = {"loss": 1.0, "cut": 0.0}

    def weights(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"loss": supervised positions, "cut": samples}, the denominators, and the counts by name: float64 scalars."""
        supervised = (batch["labels"][:, 1:] != IGNORED).sum().to(torch.float64)
        counts = {"tokens": batch["attention_mask"].sum().to(torch.float64), "supervised_tokens": supervised}
        return {"loss": supervised, "cut": torch.tensor(float(len(batch["cut"])), dtype=torch.float64), **counts}

    def by_sample(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"tokens": (B,), "supervised_tokens": (B,)}, counts for each of the B samples, to log what each dataset contributes."""
        if len(batch["ids"]) != len(batch["cut"]):
            return of_documents(batch["places"]["documents"], batch["labels"])
        return {"tokens": batch["attention_mask"].sum(1), "supervised_tokens": (batch["labels"][:, 1:] != IGNORED).sum(1)}

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return {"loss", "cut"}, the numerators: nats summed over supervised positions, differentiable, and the number of cut tokens."""
        sums: dict[str, Tensor] = model(batch)
        return {**sums, "cut": batch["cut"].sum().to(sums["loss"])}
