"""Refuse to train inside an autocast of the caller."""

import torch

from plait.errors import PlaitError


def refuse(who: str) -> None:
    """Raise PlaitError where an autocast is open in this thread, of whatever device and type, on or off. `who`: what refuses.

    torch keeps 16-bit copies of weights until the outermost autocast ends, so a run inside one would compute with those of its first step.
    """
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    if depth > 1:
        raise PlaitError(
            f"{who} runs outside of torch.autocast alone, which would keep 16-bit copies of weights over updates: call it outside of the "
            "`with`, and say the precision in the configuration (train.precision)"
        )
