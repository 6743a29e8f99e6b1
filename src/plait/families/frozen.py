"""The contract of an encoder that can be frozen: its features of a picture are kept, and not computed again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class FrozenEncoder:
    """A part of a model that turns pictures or clips into features. Its functions are picklable: they stand at the top of a module.

    `name`: of the batch's entry that holds the features in place of the pictures: those of all, joined along their first dimension.
    """

    name: str
    pictures: Callable[[Mapping[str, Any]], Sequence[Tensor]]
    """From a batch to its uint8 inputs, one for each picture or clip, in the order in which the features are joined."""
    modules: Callable[[nn.Module], Sequence[nn.Module]]
    """From the model to the modules whose weights the features depend on."""
    encode: Callable[[nn.Module, Tensor], Tensor]
    """From (model, (n, ...) inputs of one shape) to (n, ...) features, contiguous."""
    settings: Mapping[str, Any]
    """What else the features depend on, such as sizes and activations: anything that `json` encodes."""
    changes: str | None = None
    """The setting that makes other pictures of a sample in each epoch, such as model.augment; None: a sample has one picture."""

    def trains(self, model: nn.Module) -> bool:
        """Return whether any weight that the features depend on trains now."""
        return any(parameter.requires_grad for module in self.modules(model) for parameter in module.parameters())
