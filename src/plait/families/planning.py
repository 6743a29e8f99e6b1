"""What a family's optional module `planning.py` tells `plait plan`: batches without data, and learning rates that have worked."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from plait.config import plugins
from plait.errors import PlaitError
from plait.families import registry

_CALLS = {"assumed_batch": "assumed_batch(config, *, samples, tokens, picture)", "usual_rates": "usual_rates(config)"}


@dataclass(frozen=True)
class Planner:
    """The functions of a family's module `planning`; `config` is the `model:` section."""

    assumed_batch: Callable[..., dict[str, Tensor]]
    """(config, *, samples, tokens, picture): a batch such as `Inputs.collate` makes, of samples at their usual size, without any data.

    `tokens`: the longest sequence, `data.max_tokens`, or None; `picture`: width and height in pixels of the largest bucket, or None.
    """
    usual_rates: Callable[[Any], Mapping[str, float]]
    """From config to {component: peak learning rate with which it has been trained well}; a part that is not listed has none."""


def planner(family: str) -> Planner | None:
    """Return the functions of a family's module `planning`; None if it has no such module.

    Raises PlaitError for an unknown family, and where a function is missing or has another signature.
    """
    registry.model_config(family)
    name = f"{registry.packages()[family]}.planning"
    if importlib.util.find_spec(name) is None:
        return None
    members = vars(importlib.import_module(name))
    if faults := plugins.function_faults(members, _CALLS):
        raise PlaitError(f"family {family!r} ({name}) does not fulfil the contract: {'; '.join(faults)}")
    return Planner(members["assumed_batch"], members["usual_rates"])
