"""What is done to a model block by block: recomputing it in the backward pass, compiling it."""

import functools
from collections.abc import Sequence

from torch import nn
from torch.utils.checkpoint import checkpoint

from plait.schema import Distributed


def prepare(blocks: Sequence[nn.Module], settings: Distributed) -> None:
    """Apply `activation_checkpointing` and `compile` to each block, in place; parameter names stay as they are.

    Checkpointing is the non-reentrant kind: the reentrant one fails with frozen embeddings.
    """
    for block in blocks:
        block.__dict__.pop("forward", None)  # what an earlier stage put over the class's own
        if settings.activation_checkpointing == "full":
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        if settings.compile:
            block.compile()
