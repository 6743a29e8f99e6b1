"""Refuse training samples of which `data.max_tokens` would cut a part, for `data.truncate: refuse`. Families themselves only cut them."""

from typing import Any, TypeVar

from plait.config.schema import Data
from plait.data.loading.micro_batch import Inputs, collated
from plait.data.sources.contract import Sample
from plait.errors import BadSample, PlaitError

T = TypeVar("T", bound=Inputs)


class Whole:
    """Inputs of a family (kind of model) that refuse a sample of which `data.max_tokens` would cut a part; all else is theirs.

    `encode` raises NotTold for a family whose batches do not tell what was cut.
    """

    def __init__(self, inputs: Inputs, max_tokens: int) -> None:
        self.inputs, self.max_tokens = inputs, max_tokens

    def __getattr__(self, name: str) -> Any:
        """Return the member `name` of the family's inputs. Raises AttributeError for one that they do not have."""
        if name.startswith("__") or name == "inputs":
            raise AttributeError(name)
        return getattr(self.inputs, name)

    def encode(self, sample: Sample, key: int, /) -> Any:
        """Return a sample's training example. Raises BadSample where its answer would be cut, and NotTold if that cannot be known."""
        example = self.inputs.encode(sample, key)
        batch = collated(self.inputs, [example])
        if "cut" not in batch:
            raise NotTold("data.truncate is refuse, and the batches of this family do not tell what is cut: set it to cut")
        if cut := int(sum(batch["cut"])):
            raise BadSample(f"{cut} supervised tokens are beyond data.max_tokens {self.max_tokens} (data.truncate: refuse)")
        return example

    def collate(self, examples: list[Any], /) -> dict[str, Any]:
        """Return the batch that the family's inputs make of examples."""
        return self.inputs.collate(examples)


def inputs_of(inputs: T, data: Data, *, train: bool) -> T:
    """Return inputs that refuse longer samples where the settings `data` say so and they are for training, else `inputs` themselves."""
    return Whole(inputs, data.max_tokens) if train and data.max_tokens is not None and data.truncate == "refuse" else inputs  # type: ignore[return-value]


class NotTold(PlaitError):
    """Raised where a family does not tell what it cuts: that is no fault of one sample, so the run ends."""

    of_one_sample = False
