"""Documents: where the sequences of samples lie in packed rows. Attention within them is in documents.py and gpu_documents.py."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Range = tuple[int, int]
"""The first index, and the one after the last."""


class Document(NamedTuple):
    """One document: indices from `start` up to, not including, `stop` into the B L positions, and its `blocks` and `branches`, in order."""

    start: int
    stop: int
    blocks: tuple[Range, ...] = ()
    branches: tuple[Range, ...] = ()


def borders_of(documents: Sequence[Document], total: int) -> list[int]:
    """Return where documents and the padding between them begin, and the end; of what is empty, too."""
    return [0, *(border for document in documents for border in (document.start, document.stop)), total]


def positions_of(documents: Sequence[Document], total: int) -> dict[str, Tensor]:
    """Return what decides which positions see each other, each (N,).

    `document`: its number, which rises with each document and each run of padding. `place`: the position in its sequence, as that of a
    branch goes on from what precedes the first branch. `branch`, `block`: their numbers, -1 outside. `reach`: the last position seen, but
    for those before it.
    """
    borders = borders_of(documents, total)
    sizes = torch.tensor([stop - start for start, stop in itertools.pairwise(borders)])
    index = torch.arange(total)
    number = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    place = index - torch.repeat_interleave(torch.tensor(borders[:-1]), sizes)
    branch, block, reach = torch.full_like(index, -1), torch.full_like(index, -1), index.clone()
    for document in documents:
        for i, (start, stop) in enumerate(document.branches):
            prefix = document.branches[0][0] - document.start
            branch[start:stop], place[start:stop] = i, torch.arange(prefix, prefix + stop - start)
        for i, (start, stop) in enumerate(document.blocks):
            block[start:stop], reach[start:stop] = i, stop - 1
    return {"document": number, "place": place, "branch": branch, "block": block, "reach": reach}
