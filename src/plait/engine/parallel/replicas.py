"""A check that all replicas hold the same weights: checksums of each weight's bits, compared between ranks.

DDP keeps replicas equal as long as nothing else changes them. A wrong kernel, a faulty device or memory, or an update outside of the loop
makes one of them diverge, which no loss shows.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from plait.engine.parallel.distributed import Ranks
from plait.errors import Stopped, first_names

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def checksums(weights: Mapping[str, Tensor]) -> list[int]:
    """Return a checksum per weight, which changes with any single value: the sum of its bit patterns as integers, modulo 2^64."""
    sums = [value.detach().contiguous().view(_INTEGERS[value.element_size()]).sum(dtype=torch.int64) for value in weights.values()]
    return torch.stack(sums).tolist() if sums else []


def check(step: int, weights: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Compare the weights of all ranks after step number `step`. Raises Stopped, a PlaitError, on every rank when they differ.

    The message names the weights, and the ranks that differ from the majority (from rank 0 in a tie).
    """
    by_rank = ranks.gather(checksums(weights))
    majority = [Counter(column).most_common(1)[0][0] for column in zip(*by_rank, strict=True)]
    differences = {rank: [i for i, value in enumerate(sums) if value != majority[i]] for rank, sums in enumerate(by_rank)}
    differing = [rank for rank, indices in differences.items() if indices]
    if differing:
        names = list(weights)
        shown = first_names([names[i] for i in sorted({i for rank in differing for i in differences[rank]})])
        raise Stopped(
            f"replicas differ after step {step}: {shown} on rank {', '.join(map(str, differing))} is not what the other ranks have; "
            "that device or its memory may be faulty. Checkpoints since the last check (guard.replica_check_steps) are of rank 0"
        )
