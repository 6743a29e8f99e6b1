"""Out of memory: noticed by all ranks before any waits for another, answered by half the micro-batch and twice the accumulation.

A micro-batch is a cut of the global batch, never part of the answer, so the gradient is the same. What fits is found in micro_batch.py.
"""

import contextlib
from collections.abc import Iterator

import torch

from plait.engine.parallel.distributed import Ranks


class Exceeded(Exception):
    """Memory ran out on some rank, before the ranks met in this step: raised on all of them."""


class Waited(Exception):
    """Memory ran out on this rank while the others wait for it in a collective, where it cannot tell them."""


@contextlib.contextmanager
def guarded(ranks: Ranks, *, meet: bool = False, waited: bool = False) -> Iterator[None]:
    """Around a pass of one rank. Running out of memory there becomes Exceeded, on every rank, or Waited.

    `meet`: the last pass of a step that is this rank's alone, after which the ranks tell each other. `waited`: the pass is a collective.
    """
    said = None
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = str(error).splitlines()[0]
    if said is not None and waited and ranks.size > 1:
        raise Waited(said)
    if said is not None:
        ranks.any(True)
        raise Exceeded(said)
    if meet and not waited and ranks.any(False):
        raise Exceeded("another rank ran out of memory")
