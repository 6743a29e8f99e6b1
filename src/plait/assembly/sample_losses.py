"""The held-out loss as a bench, a metric with a row per sample, to compare the same samples shown in different ways."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from plait.config.schema import Evaluate, RunConfig
from plait.data.loading.micro_batch import collated
from plait.engine.evaluation import LOSS, Bench, Row, usable
from plait.engine.held_out_loss import NoUsableSample
from plait.engine.loss import Batch, Loss, has_targets, sums_of, weights_of
from plait.engine.parallel import distributed
from plait.errors import BadSample, sample_errors
from plait.keys import key

KEY = "loss_key"
"""In a sample: the key of its random numbers. Copies of it in which an input is left out or exchanged have the same."""


def seed_of(entry: Evaluate, config: RunConfig) -> int | None:
    """Return the seed of the keys that the held-out loss gives samples; None for benches other than `loss`."""
    return config.seed if entry.bench == LOSS else None


def bench(loss: Loss) -> Bench:
    """Return a bench of a family's loss. Each sample goes through the model by itself, with the random numbers of its KEY.

    Rows have {"sums": {term: numerator}, "weights": {term: denominator}}; figures are `loss/TERM` (sum of numerators / sum of weights; only
    where several terms count), `loss` (coefficient x that, summed over terms), `samples`, and `bad_samples` if there are any.
    """

    def predict(model: Any, samples: Sequence[Any], inputs: Any, *, batch: int, moment: str) -> list[Row]:
        return [_row(loss, model, sample, inputs) for sample in samples]

    def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        used = usable([dict(row) for row in rows])
        weights = {term: sum(row["weights"][term] for row in used) for term in loss.coefficients}
        if not has_targets(loss, weights):
            raise NoUsableSample("the held-out samples have nothing to predict: every loss weight is 0")
        terms = {term: sum(row["sums"][term] for row in used) / weight for term, weight in weights.items() if weight > 0}
        total = sum(loss.coefficients[term] * value for term, value in terms.items())
        counts = {"samples": float(len(used))} | ({"bad_samples": float(len(rows) - len(used))} if len(used) < len(rows) else {})
        parts = {f"loss/{term}": value for term, value in terms.items() if loss.coefficients[term]}
        return {"loss": total, **(parts if len(parts) > 1 else {}), **counts}

    return Bench(predict, summarise, means=True, lower=True, independent=True)


def _row(loss: Loss, model: Any, sample: Any, inputs: Any) -> Row:
    """Return the numerators and denominators of a sample's loss, or why it cannot be encoded."""
    try:
        batch = encoded(sample, inputs)
    except BadSample as error:
        return {"id": sample["id"], "bad": str(error)}
    return {"id": sample["id"], **row(loss, model, batch)}


def encoded(sample: Any, inputs: Any) -> Batch:
    """Return a batch of one sample, encoded by `inputs` with the random numbers of its KEY, else id. Raises BadSample if it cannot."""
    with sample_errors:
        return collated(inputs, [inputs.encode(sample, sample[KEY] if KEY in sample else key("sample loss", sample["id"]))])


def row(loss: Loss, model: Any, batch: Batch) -> Row:
    """Return {"sums": {term: numerator}, "weights": {term: denominator}} of the loss of a batch, without gradients."""
    weights = {name: float(value) for name, value in weights_of(loss, batch).items()}
    with torch.no_grad():
        sums = sums_of(loss, model, distributed.to_device(batch, next(model.parameters()).device))
    of_terms = {term: weights[term] for term in loss.coefficients}
    return {"sums": {term: float(value) for term, value in sums.items()}, "weights": of_terms}
