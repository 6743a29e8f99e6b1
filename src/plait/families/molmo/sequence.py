"""Sequences: a prefix that all annotations of an image share, the annotations after it, and who may see whom.

Row:  <bos> image tokens | annotation 1 | annotation 2 | ...   Each annotation sees the prefix and itself; positions go on from the prefix.
Labels are shifted here: the label of a position is the token that follows it in its own annotation, and its weight is that token's.
Legend: B rows, L positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plait.errors import BadSample, PlaitError

SHARED = 0  # number of the prefix among a document's annotations
PADDING = -1  # document number of padding


@dataclass(frozen=True)
class Annotation:
    """Tokens of one conversation, with the loss weight of each (0: not supervised)."""

    ids: Sequence[int]
    weights: Sequence[float]


@dataclass(frozen=True)
class Row:
    """One sample's positions, each (L,). `cut` counts the supervised tokens that the length limit took away."""

    ids: Tensor
    labels: Tensor
    weights: Tensor
    annotations: Tensor
    positions: Tensor
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)


def arrange(prefix: Sequence[int], annotations: Sequence[Annotation], *, max_tokens: int | None = None, text_rows: int) -> Row:
    """The row of one image. Ids from `text_rows` on belong to images.

    Over `max_tokens`, the last annotations are left out, and a lone one loses its end. BadSample where that would cut an image, leave
    nothing supervised, or where annotations that share an image lack a prompt (their first tokens would need one position's two labels).
    """
    kept, cut = _within(prefix, annotations, max_tokens, text_rows)
    if len(kept) > 1 and any(a.weights[0] > 0 for a in kept):
        raise BadSample(f"{len(kept)} annotations share an image, so each needs a prompt before its answer")
    ids, labels, weights, numbers = list(prefix), [0] * len(prefix), [0.0] * len(prefix), [SHARED] * len(prefix)
    positions = list(range(len(prefix)))
    for number, annotation in enumerate(kept, start=1):
        if len(kept) == 1 and prefix:
            labels[-1], weights[-1] = annotation.ids[0], annotation.weights[0]
        ids += annotation.ids
        labels += [*annotation.ids[1:], 0]
        weights += [*annotation.weights[1:], 0.0]
        numbers += [number] * len(annotation.ids)
        positions += range(len(prefix), len(prefix) + len(annotation.ids))
    whole = [torch.tensor(values, dtype=torch.int64) for values in (ids, labels, numbers, positions)]
    return Row(whole[0], whole[1], torch.tensor(weights, dtype=torch.float32), whole[2], whole[3], cut)


def _within(
    prefix: Sequence[int], annotations: Sequence[Annotation], max_tokens: int | None, text_rows: int
) -> tuple[list[Annotation], int]:
    room = (1 << 62) if max_tokens is None else max_tokens - len(prefix)
    if room <= 0:
        raise BadSample(f"the image alone takes {len(prefix)} tokens: raise data.max_tokens {max_tokens}, or lower model.max_crops")
    kept = list(annotations)
    while len(kept) > 1 and sum(len(a.ids) for a in kept) > room:
        kept.pop()
    if len(kept) == 1 and len(kept[0].ids) > room:
        lost = kept[0].ids[room:]
        if any(token >= text_rows for token in lost):
            raise BadSample(f"{len(prefix) + len(kept[0].ids)} tokens: data.max_tokens {max_tokens} would cut an image")
        kept[0] = Annotation(kept[0].ids[:room], kept[0].weights[:room])
        if not any(kept[0].weights) and any(annotations[0].weights):
            raise BadSample(f"{len(prefix) + room + len(lost)} tokens: data.max_tokens {max_tokens} would leave no token of the answer")
    supervised = [sum(weight > 0 for a in group for weight in a.weights) for group in (annotations, kept)]
    return kept, supervised[0] - supervised[1]


def see(segments_BL2: Tensor) -> Tensor:
    """(B, L, L) bool: position i sees j, not later, of the same document, if j is shared or of the same annotation. Padding sees itself."""
    document_BL, annotation_BL = segments_BL2.unbind(-1)
    same = document_BL[:, :, None] == document_BL[:, None, :]
    own = (annotation_BL[:, None, :] == SHARED) | (annotation_BL[:, :, None] == annotation_BL[:, None, :])
    causal = torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril()
    itself = torch.eye(same.shape[1], dtype=torch.bool, device=same.device)
    return (same & own & causal & (document_BL != PADDING)[:, None, :]) | itself


def batch_rows(rows: Sequence[Row], *, pad_id: int, pad: str, max_tokens: int | None = None, left: bool = False) -> dict[str, Tensor]:
    """Rows to one batch: ids, labels, weights, positions (B, L) and segments (B, L, 2) = (document, annotation).

    `pad` none packs all rows into one, without padding: a layout, in which no row sees another.
    """
    packed = [list(rows)] if pad == "none" and not left else [[row] for row in rows]
    length = _length([sum(map(len, group)) for group in packed], pad, max_tokens)
    shape = (len(packed), length)
    batch = {name: torch.zeros(shape, dtype=torch.int64) for name in ("ids", "labels", "positions")}
    batch["ids"] += pad_id
    batch["weights"] = torch.zeros(shape)
    batch["segments"] = torch.full((*shape, 2), PADDING)
    for place, group in enumerate(packed):
        start = length - sum(map(len, group)) if left else 0
        for document, row in enumerate(group):
            here = slice(start, start + len(row))
            for name in ("ids", "labels", "positions", "weights"):
                batch[name][place, here] = getattr(row, name)
            batch["segments"][place, here, 0] = document
            batch["segments"][place, here, 1] = row.annotations
            start += len(row)
    return batch


def _length(lengths: list[int], pad: str, max_tokens: int | None) -> int:
    if pad == "to_max":
        if max_tokens is None:
            raise PlaitError("data.pad is to_max, but data.max_tokens is not set: set it, or pad to_128, longest or none")
        return max_tokens
    return -(-max(lengths) // 128) * 128 if pad == "to_128" else max(lengths)


def unsupervised(row: Row) -> Row:
    """The row with nothing to learn from: a prompt."""
    return replace(row, weights=torch.zeros_like(row.weights))
