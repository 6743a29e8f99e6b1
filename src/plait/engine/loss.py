"""The contract of a loss: numerators and denominators per named term, never divided here. The loop divides once, over the whole batch.

And what the engine reads of a batch, which `plait.data.loading` makes: the samples' ids, and nothing of their content.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

Batch = Mapping[str, Any]
"""What `Inputs.collate` returns: tensors by name, on the host until the loop moves them to the device."""


class SampleId(Protocol):
    """The identity of a sample."""

    @property
    def source(self) -> int:
        """Number of the source, from 0."""

    @property
    def index(self) -> int:
        """Index in the source, from 0."""

    @property
    def epoch(self) -> int:
        """Epoch of the source, from 0."""


class UnusableSample(Protocol):
    """A sample that could not be used, and the one that took its place."""

    @property
    def id(self) -> SampleId:
        """The sample."""

    @property
    def name(self) -> str:
        """Its name, for a person."""

    @property
    def reason(self) -> str:
        """Why it could not be used."""

    @property
    def replaced_by(self) -> SampleId:
        """The sample that took its place."""


class MicroBatch(Protocol):
    """The input of one forward pass. A `padding` one contributes nothing: its rank has less work than others."""

    @property
    def batch(self) -> Batch:
        """The collated samples."""

    @property
    def ids(self) -> Sequence[SampleId]:
        """The samples in `batch`, in its order."""

    @property
    def padding(self) -> bool:
        """Whether it contributes nothing."""


class StepBatch(Protocol):
    """One rank's part of a step's global batch."""

    @property
    def step(self) -> int:
        """The step of the stage, from 0."""

    @property
    def micro(self) -> Sequence[MicroBatch]:
        """The micro-batches, in the order in which they are computed."""

    @property
    def bad(self) -> Sequence[UnusableSample]:
        """Samples that could not be used."""

    @property
    def wait_s(self) -> float:
        """Seconds that the loop waited for it."""


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
