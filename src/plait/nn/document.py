"""Documents: where the sequences of samples lie in packed rows. Attention within them is in documents.py and gpu_documents.py."""

import itertools
from array import array
from collections.abc import Iterator, Sequence
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


def numbers_of(documents: Sequence[Document]) -> Tensor:
    """Return `documents` as one int64 tensor on the host: how many, then of each where it lies, and its blocks and branches.

    Of these first how many. Made without an operator of torch, so that no device is waited for.
    """
    numbers = array("q", [len(documents)])
    for start, stop, *parts in documents:
        numbers.extend((start, stop))
        for ranges in parts:
            numbers.extend((len(ranges), *itertools.chain.from_iterable(ranges)))
    return torch.frombuffer(numbers, dtype=torch.int64)


def told_by(numbers: Sequence[int]) -> list[Document]:
    """Return the documents of which `numbers_of` made these numbers."""
    count, *rest = numbers
    values = iter(rest)
    return [Document(next(values), next(values), _ranges(values), _ranges(values)) for _ in range(count)]


def _ranges(values: Iterator[int]) -> tuple[Range, ...]:
    return tuple((next(values), next(values)) for _ in range(next(values)))


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
