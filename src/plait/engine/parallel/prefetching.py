"""Have each sharded block gather the next one's weights before it computes (FSDP2), so that they travel meanwhile.

Only one ahead, as much as the memory estimate counts, and within one tower: a vision tower, which a micro-batch without pictures may not
run, and the language model are orders of their own. In the backward pass FSDP2 gathers one ahead by itself, in the reverse order of the
forward pass that there was, which also knows what did not run.
"""

import itertools
from collections.abc import Sequence

from torch import nn
from torch.distributed.fsdp import FSDPModule


def gather_ahead(model: nn.Module, units: Sequence[nn.Module]) -> None:
    """Have each sharded unit gather the next one of its tower ahead.

    `units`: modules of `model` that are sharded, in the order of the forward pass.
    """
    names = {id(module): name for name, module in model.named_modules()}
    for unit, following in itertools.pairwise(units):
        if names[id(unit)].rpartition(".")[0] == names[id(following)].rpartition(".")[0]:
            assert isinstance(unit, FSDPModule) and isinstance(following, FSDPModule)
            unit.set_modules_to_forward_prefetch([following])
