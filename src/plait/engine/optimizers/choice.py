"""The optimizers besides AdamW, by `optim.name`: what makes them of AdamW's groups, and what they keep of each parameter."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plait.config.schema import Optim
from plait.engine.optimizers import eight_bit, muon

log = logging.getLogger(__name__)

KINDS = ("exp_avg", muon.MOMENT, "exp_avg_codes")
"""What tells the moments of a parameter in a checkpoint, "PARAMETER.exp_avg": the first one of each optimizer, of the parameter's shape."""


OF_OWN_FORM = ("step", *eight_bit.SCALES)
"""Those that have another shape than the parameter, and are float32: counts of updates, and scales of blocks of 8 bits."""


def make(groups: Sequence[dict[str, Any]], settings: Optim, blocks: Iterable[nn.Module]) -> torch.optim.Optimizer:
    """Build the optimizer that `settings` names, another than AdamW, from AdamW's groups. `blocks`: the model's repeated layers.

    Raises PlaitError where it has nothing to update, for one that needs a package which is missing, or weights that are not sharded.
    """
    return muon.make(groups, settings, blocks) if settings.name == "muon" else eight_bit.make(groups, settings)


def check(decaying: Mapping[str, Mapping[str, Tensor]], settings: Optim, blocks: Iterable[nn.Module]) -> None:
    """Raise PlaitError where Muon has nothing to update, or a package is missing.

    `decaying`: {component: {name: parameter}} of what trains and has weight decay.
    """
    if settings.name == "adamw8bit":
        eight_bit.torchao()
    elif not muon.matrices(decaying, settings, blocks):
        raise muon.nothing_for_it(list(decaying))


def tell_dropped(names: Sequence[str]) -> None:
    """Log that the saved moments of these parameters are left behind, as they are of another optimizer."""
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    log.info(f"moments of {len(names)} parameters are of another optimizer than theirs now, and begin anew: {some}")
