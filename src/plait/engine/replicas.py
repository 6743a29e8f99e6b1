"""Whether all replicas still hold the same weights: sums over the bits of each weight, compared between ranks every so many steps.

DDP keeps replicas equal as long as nothing else moves them. A wrong kernel, a bad device or memory, or an update outside of the loop makes
one of them learn something else, which no loss shows.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from plait.engine.nonfinite import some
from plait.engine.parallel.distributed import Ranks
from plait.errors import Stopped

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def checksums(weights: Mapping[str, Tensor]) -> list[int]:
    """The sum of each weight's bits as whole numbers, modulo 2^64, on its device and in one transfer: any one changed value changes it."""
    sums = [value.detach().contiguous().view(_WORDS[value.element_size()]).sum(dtype=torch.int64) for value in weights.values()]
    return torch.stack(sums).tolist() if sums else []


def check(step: int, weights: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Raise Stopped on all ranks when they differ, naming the weights and the ranks that most others disagree with (rank 0 wins a tie)."""
    everywhere = ranks.gather(checksums(weights))
    usual = [Counter(column).most_common(1)[0][0] for column in zip(*everywhere, strict=True)]
    apart = {rank: [i for i, value in enumerate(own) if value != usual[i]] for rank, own in enumerate(everywhere)}
    differing = [rank for rank, names in apart.items() if names]
    if differing:
        names = list(weights)
        shown = some([names[i] for i in sorted({i for rank in differing for i in apart[rank]})])
        raise Stopped(
            f"replicas differ after step {step}: {shown} on rank {', '.join(map(str, differing))} is not what the other ranks have; "
            "that device or its memory may be faulty. Checkpoints since the last check (guard.replica_check_steps) are of rank 0"
        )
