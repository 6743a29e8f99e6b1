"""The contract of a bench: rows of predictions for samples, and figures from all rows. A family lists its benches by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Row = dict[str, Any]
"""What a bench says of one sample: JSON values, with its `id`; `bad` with a reason where the sample could not be used."""


class Predict(Protocol):
    """Predict a row per sample, in order."""

    def __call__(self, model: Any, samples: Sequence[Any], inputs: Any, *, batch: int, moment: str) -> list[Row]:
        """Return one row per sample.

        `batch`: samples at a time. `moment`: name of the step, such as `step-00000100`, for a bench that writes files as it predicts.
        """


@dataclass(frozen=True)
class Bench:
    """One bench of a family.

    `summarise` turns the rows of all samples into figures by name. `pictures`, for a bench that draws, returns pictures by name (uint8,
    H x W x 3) from the same rows.
    """

    predict: Predict
    summarise: Callable[[Sequence[Mapping[str, Any]]], dict[str, float]]
    pictures: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]] | None = None


Benches = Mapping[str, Bench]
