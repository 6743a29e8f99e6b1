"""Tell where the documents of a batch are, with their annotations: `nn/documents.py` attends within them, without masks."""

import itertools
from collections.abc import Sequence

from plait.families.molmo.packing.sequence import SHARED, Row
from plait.nn.document import Document


def documents_of(rows: Sequence[Row], length: int | None, *, left: bool = False) -> list[Document]:
    """Return the document of each row, as indices into the B L positions. `length`: L, one row each, padded on the `left` or
    right; None: packed into one row.

    Of several annotations, each attends to the prefix and to itself, so each is a branch.
    """
    documents, start = list[Document](), 0
    for i, row in enumerate(rows):
        start = start if length is None else i * length + left * (length - len(row))
        borders = [start, *((row.annotations.diff().nonzero()[:, 0] + (1 + start)).tolist()), start + len(row)]
        runs = list(itertools.pairwise(borders))
        branches = runs[1:] if int(row.annotations[0]) == SHARED else runs
        documents.append(Document(start, start + len(row), branches=tuple(branches) if len(branches) > 1 else ()))
        start += len(row)
    return documents
