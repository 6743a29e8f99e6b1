"""The contract of a loss: numerators and denominators per named term, never divided here. The loop divides once, over the whole batch.

Also what the engine knows of a batch, which `plait.data.loading` makes: ids of samples, never their content. A stage is a part of a run.
"""

import abc
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, cast

from torch import Tensor, nn

from plait.errors import PlaitError

Batch = Mapping[str, Any]
"""What `Inputs.collate` returns: tensors by name, on the host until the loop moves them to the device."""


class SampleId(Protocol):
    """The identity of a sample. It has the number of its source (data set), its index there, and the epoch of that source (all from 0)."""

    @property
    def source(self) -> int:
        """Return the position of the sample's source (data set) in the stage's list of sources, from 0."""

    @property
    def index(self) -> int:
        """Return the sample's index within its source, from 0."""

    @property
    def epoch(self) -> int:
        """Return how many complete passes over its source were drawn before this sample."""


class UnusableSample(Protocol):
    """A sample that could not be used, and the one that took its place."""

    @property
    def id(self) -> SampleId:
        """Return the id of the sample that could not be used."""

    @property
    def name(self) -> str:
        """Return the sample's name in messages: its source and index, such as coco[17]."""

    @property
    def reason(self) -> str:
        """Return why the sample could not be used, in one line."""

    @property
    def replaced_by(self) -> SampleId:
        """Return the id of the sample that was tried in its place."""

    @property
    def attempt(self) -> int:
        """Return 0 for a sample that the step was to use. It is n for the n-th replacement that was tried for it and is bad too."""


class MicroBatch(Protocol):
    """The input of one forward pass. A `padding` one contributes nothing: a rank with fewer of them runs it to join in collectives."""

    @property
    def batch(self) -> Batch:
        """Return what the model and the loss get: tensors by name, on the host."""

    @property
    def ids(self) -> Sequence[SampleId]:
        """Return the samples' ids, in the order in which they were collated."""

    @property
    def padding(self) -> bool:
        """Return whether this is only padding, whose loss and gradient are dropped."""


class StepBatch(Protocol):
    """The part of a step's global batch that one rank computes. `wait_s`: how long the loop waited for it."""

    @property
    def step(self) -> int:
        """Return the step of the stage, from 0, that this batch is for."""

    @property
    def micro(self) -> Sequence[MicroBatch]:
        """Return the micro-batches of this rank, whose gradients are accumulated; none where it has no data: all ranks stop then."""

    @property
    def bad(self) -> Sequence[UnusableSample]:
        """Return the samples of this rank's part that could not be used, with their replacements."""

    @property
    def wait_s(self) -> float:
        """Return the seconds that the loop waited for data loading to deliver this batch."""

    def following(self) -> MicroBatch | None:
        """Return the next step's first micro-batch if it can be copied to a GPU already; None if not."""


class Loss(abc.ABC):
    """Terms of a loss as sums (differentiable numerators) over weights (denominators, known without the model).

    The loss of a global batch is sum over terms of `coefficients[term] * sums[term] / weights[term]`, with sums and weights added over all
    micro-batches and ranks first. A subclass sets `coefficients` before it is used.
    """

    coefficients: Mapping[str, float]
    """Factor of each term by name; a term with factor 0 is only logged."""
    counts: Sequence[str] = ()
    """Names that `weights` returns besides the terms: totals that are logged, saved, and can be the unit of a schedule (`tokens`)."""
    may_idle: Sequence[str] = ()
    """Components that a batch may have no input for, such as vision without pictures; a gradient of zeros does not update them."""
    amounts: Sequence[str] = ()
    """Names of the weights and counts that `by_sample` splits; with several sources, each one's share of them is logged."""

    positions: str | None = None
    """Name of an entry of batches that has a value for each position of the model, padding included, where `counts` has `tokens`."""

    @abc.abstractmethod
    def weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return {name: float64 host scalar} of a micro-batch: each term's denominator, such as its supervised tokens, and each count."""

    @abc.abstractmethod
    def sums(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Run the model on this micro-batch; return {term: numerator}, differentiable scalars on the model's device."""

    def by_sample(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return what each sample adds to `weights`, for each name in `amounts`: {name: (B,) host tensor in the batch's order of ids}."""
        return {}


def has_targets(loss: Loss, loss_weights: Mapping[str, float]) -> bool:
    """Return whether a term that counts in the loss has weight. `loss_weights`: the denominators by name; other names do not matter."""
    return any(loss_weights[name] for name, coefficient in loss.coefficients.items() if coefficient)


def weights_of(loss: Loss, batch: Batch) -> Mapping[str, Tensor]:
    """Return `loss.weights(batch)`. Raises PlaitError unless it is a scalar for each term and count, and nothing else."""
    return _checked(loss, "weights(batch)", loss.weights(batch), [*loss.coefficients, *loss.counts], ())


def sums_of(loss: Loss, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    """Return `loss.sums(model, batch)`. Raises PlaitError unless it is a scalar for each term, and nothing else."""
    return _checked(loss, "sums(model, batch)", loss.sums(model, batch), loss.coefficients, ())


def by_sample_of(loss: Loss, batch: Batch, samples: int) -> Mapping[str, Tensor]:
    """Return `loss.by_sample(batch)`. Raises PlaitError unless it holds a tensor of length `samples` for each name in `loss.amounts`."""
    return _checked(loss, "by_sample(batch)", loss.by_sample(batch), loss.amounts, (samples,))


def _checked(loss: Loss, call: str, returned: Any, names: Collection[str], shape: tuple[int, ...]) -> Mapping[str, Tensor]:
    """Return what a method of a loss returned, if it is tensors of this shape by exactly these names. Raises PlaitError if not."""
    if isinstance(returned, Mapping) and returned.keys() == set(names):
        wrong = [name for name, value in returned.items() if not isinstance(value, Tensor) or value.shape != shape]
        if not wrong:
            return cast("Mapping[str, Tensor]", returned)
        fault = f"{wrong[0]} as {_form(returned[wrong[0]])}"
    elif isinstance(returned, Mapping):
        fault = f"the names {', '.join(map(str, returned))}" if returned else "no names"
    else:
        fault = f"a {type(returned).__name__}"
    where = f"{type(loss).__module__}.{type(loss).__qualname__}.{call}"
    raise PlaitError(f"{where} returned {fault}: it is to return {_form_of(shape)} for each of {', '.join(names) or 'no names'}")


def _form(value: Any) -> str:
    """Return what a value is, as a tensor of its shape or by its type."""
    return _form_of(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _form_of(shape: tuple[int, ...]) -> str:
    return f"a tensor of shape {shape}" if shape else "a scalar tensor"
