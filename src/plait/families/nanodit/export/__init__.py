"""What `plait export` writes of a model, by layout, and what it reads back."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from plait.families.nanodit.export.checks import checks
from plait.families.nanodit.export.write import write_diffusers

__all__ = ["checks", "exports", "imported"]

exports: dict[str, Callable[..., list[str]]] = {"diffusers": write_diffusers}
"""Writers by layout, as in `--to diffusers`: functions from (model, `model:` section, run's assets, new folder) to lines to print."""


def imported(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return weights, whose names in an export are the model's own."""
    return dict(weights)
