"""The contract of token lengths: how many tokens the rows of samples have, told without decoding their pictures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plait.data.selection.measures import Measure
from plait.families.signatures import Sample


@dataclass(frozen=True)
class TokenLengths:
    """The lengths of a family's rows. `of`: from a sample to the tokens of its row, not truncated; it raises BadSample as `encode` does.

    `fingerprint`: a hash of what decides them: the tokenizer and the settings of the model. Where training draws among prompts, they are
    the lengths of one of them. `pixels`: from a sample to the pixels that the encoders are given; None: unknown, and taken as none.
    """

    fingerprint: str
    of: Callable[[Sample], int]
    pixels: Callable[[Sample], int] | None = None

    def measure(self) -> Measure:
        """Return what is measured and kept of each sample of a source."""
        return Measure(f"tokens 1 {self.fingerprint}", 1, lambda sample: [float(self.of(dict(sample)))], looks_at="sizes")

    def measure_pixels(self) -> Measure:
        """Return what is measured of each sample for `data.pack_tokens`, beside its tokens."""
        pixels = self.pixels

        def of(sample: Mapping[str, Any]) -> list[float]:
            return [0.0 if pixels is None else float(pixels(dict(sample)))]

        return Measure(f"pixels 1 {self.fingerprint}", 1, of, looks_at="sizes")
