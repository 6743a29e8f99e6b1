"""Pack rows of samples into one, and tell where the documents of a batch are: `nn/documents.py` attends within them, without masks."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plait.nn.document import Document
from plait.nn.losses import IGNORED


def joined(rows: Sequence[Any]) -> tuple[Any, Tensor]:
    """Return all rows (of sequence.py) as one, and the positions (L,) of its tokens, counted in each document from 0."""
    tensors = {name: torch.cat([vars(row)[name] for row in rows]) for name in ("ids", "kinds", "labels")}
    return replace(rows[0], **tensors, cut=sum(row.cut for row in rows)), torch.cat([torch.arange(len(row)) for row in rows])


def documents_of(rows: Sequence[Any], length: int | None, both_ways: Collection[int], *, left: bool = False) -> list[Document]:
    """Return the document of each row, as indices into the B L positions. `length`: L, one row each, padded on the `left` or
    right; None: packed into one row.

    Runs of one or more of the kinds `both_ways` attend both ways within themselves.
    """
    documents, start = list[Document](), 0
    for i, row in enumerate(rows):
        start = start if length is None else i * length + left * (length - len(row))
        documents.append(Document(start, start + len(row), tuple((start + a, start + b) for a, b in _blocks(row.kinds, both_ways))))
        start += len(row)
    return documents


def of_documents(documents: Sequence[Document], labels_BL: Tensor) -> dict[str, Tensor]:
    """Return {"tokens", "supervised_tokens"} of each document, (B,)."""
    supervised = (labels_BL.flatten() != IGNORED).cumsum(0).tolist()
    counts = [(d.stop - d.start, supervised[d.stop - 1] - supervised[d.start]) for d in documents]  # nothing predicts a first token
    tokens, learned = zip(*counts, strict=True)
    return {"tokens": torch.tensor(tokens), "supervised_tokens": torch.tensor(learned)}


def _blocks(kinds_L: Tensor, both_ways: Collection[int]) -> list[tuple[int, int]]:
    inside = torch.nn.functional.pad(torch.isin(kinds_L, torch.tensor([*both_ways])).int(), (1, 1))
    borders = inside.diff().nonzero()[:, 0].tolist()
    return list(zip(borders[::2], borders[1::2], strict=True))
