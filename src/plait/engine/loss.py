"""The contract of a loss: numerators and denominators per named term, never divided here. The loop divides once, over the whole batch."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

Batch = Mapping[str, Any]
"""What `Inputs.collate` returns: tensors by name, on the host until the loop moves them to the device."""


class Loss(abc.ABC):
    """Terms of a loss as sums (differentiable numerators) over weights (denominators, known without the model).

    The loss of a global batch is sum over terms of `coefficients[term] * sums[term] / weights[term]`, with sums and weights added over all
    micro-batches and ranks first. A subclass sets `coefficients` before it is used.
    """

    coefficients: Mapping[str, float]
    """Factor of each term; a term with factor 0 is only logged."""
    counts: Sequence[str] = ()
    """Names that `weights` returns besides the terms: totals that are logged, saved, and can be the unit of a schedule (`tokens`)."""
    shares: Sequence[str] = ()
    """Which of the weights and counts `by_sample` splits; of several sources, each one's share of them is logged."""

    @abc.abstractmethod
    def weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the denominator of each term in this micro-batch and its `counts`: float64 host scalars."""

    @abc.abstractmethod
    def sums(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the numerator of each term in this micro-batch: scalars on the model's device, differentiable."""

    def by_sample(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return those of `shares` per sample: (B,) host tensors in the order of the ids, whose sums are those of `weights`."""
        return {}
