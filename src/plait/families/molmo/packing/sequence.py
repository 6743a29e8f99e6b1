"""Build token sequences: a prefix shared by all annotations of an image, the annotations after it, and the attention mask.

Row (one sample):  <bos> image tokens | annotation 1 | annotation 2 | ...   An annotation is one conversation about the image; it attends to
the prefix and itself, and its positions continue those of the prefix. A document is one of several rows packed into a row of a batch.
Labels are shifted here: a position's label is the token after it in its annotation, with that token's weight. B rows, L positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plait.errors import BadSample, PlaitError
from plait.families.molmo.hf.sizes import PATCH

SHARED = 0  # annotation number of the prefix, which all annotations of a document see
PADDING = -1  # document number of padding


@dataclass(frozen=True)
class Annotation:
    """Tokens (`ids`) of one conversation about the image, with the loss weight of each in `loss_weights` (0: not supervised)."""

    ids: Sequence[int]
    loss_weights: Sequence[float]


@dataclass(frozen=True)
class Row:
    """One sample's sequence, tensors (L,). A label is the token after its position; `loss_weights`: that label's (0: not supervised).

    `annotations`: the number of each token's conversation, from 1; 0: the prefix. `positions`: from 0; those of each conversation continue
    the prefix. `cut`: supervised tokens cut off.
    """

    ids: Tensor
    labels: Tensor
    loss_weights: Tensor
    annotations: Tensor
    positions: Tensor
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)


def build_row(prefix: Sequence[int], annotations: Sequence[Annotation], *, max_tokens: int | None = None, text_rows: int) -> Row:
    """Build the row of one sample from its prefix and annotations. Ids from `text_rows` on are image tokens.

    If it exceeds `max_tokens`, the last annotations are left out, and a single one is truncated. Raises BadSample if that would cut an
    image or leave nothing supervised, or if one of several annotations has no prompt (one position would need two labels).
    """
    kept, cut = _truncate(prefix, annotations, max_tokens, text_rows)
    if len(kept) > 1 and any(a.loss_weights[0] > 0 for a in kept):
        raise BadSample(f"{len(kept)} annotations share an image, so each needs a prompt before its answer")
    ids, labels, loss_weights, numbers = list(prefix), [0] * len(prefix), [0.0] * len(prefix), [SHARED] * len(prefix)
    positions = list(range(len(prefix)))
    for number, annotation in enumerate(kept, start=1):
        if len(kept) == 1 and prefix:
            labels[-1], loss_weights[-1] = annotation.ids[0], annotation.loss_weights[0]
        ids += annotation.ids
        labels += [*annotation.ids[1:], 0]
        loss_weights += [*annotation.loss_weights[1:], 0.0]
        numbers += [number] * len(annotation.ids)
        positions += range(len(prefix), len(prefix) + len(annotation.ids))
    ids_L, labels_L, numbers_L, positions_L = (torch.tensor(values, dtype=torch.int64) for values in (ids, labels, numbers, positions))
    return Row(ids_L, labels_L, torch.tensor(loss_weights, dtype=torch.float32), numbers_L, positions_L, cut)


def _truncate(
    prefix: Sequence[int], annotations: Sequence[Annotation], max_tokens: int | None, text_rows: int
) -> tuple[list[Annotation], int]:
    """Return the annotations that fit into `max_tokens`, and how many supervised tokens were lost."""
    room = (1 << 62) if max_tokens is None else max_tokens - len(prefix)
    if room <= 0:
        raise BadSample(f"the image alone takes {len(prefix)} tokens: raise data.max_tokens {max_tokens}, or lower model.max_crops")
    kept = list(annotations)
    while len(kept) > 1 and sum(len(a.ids) for a in kept) > room:
        kept.pop()
    if len(kept) == 1 and len(kept[0].ids) > room:
        lost = kept[0].ids[room:]
        if any(token >= text_rows for token in lost):
            raise BadSample(f"{len(prefix) + len(kept[0].ids)} tokens: data.max_tokens {max_tokens} would cut an image: raise it")
        kept[0] = Annotation(kept[0].ids[:room], kept[0].loss_weights[:room])
        if not any(kept[0].loss_weights) and any(annotations[0].loss_weights):
            raise BadSample(
                f"{len(prefix) + room + len(lost)} tokens: data.max_tokens {max_tokens} would leave no token of the answer: raise it"
            )
    supervised = [sum(weight > 0 for a in group for weight in a.loss_weights) for group in (annotations, kept)]
    return kept, supervised[0] - supervised[1]


def attention_mask(segments_BL2: Tensor) -> Tensor:
    """Return the mask (B, L, L), True where position i attends to j. That is j <= i, same document, and j in the prefix or i's annotation.

    `segments_BL2`: (document, annotation) of each position. Padding attends to itself: a row of the mask without any True gives NaN.
    """
    document_BL, annotation_BL = segments_BL2.unbind(-1)
    same = document_BL[:, :, None] == document_BL[:, None, :]
    visible = (annotation_BL[:, None, :] == SHARED) | (annotation_BL[:, :, None] == annotation_BL[:, None, :])
    causal = torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril()
    itself = torch.eye(same.shape[1], dtype=torch.bool, device=same.device)
    return (same & visible & causal & (document_BL != PADDING)[:, None, :]) | itself


def batch_rows(rows: Sequence[Row], *, pad_id: int, pad: str, max_tokens: int | None = None, left: bool = False) -> dict[str, Tensor]:
    """Collate rows to one batch: `ids`, `labels`, `loss_weights`, `positions` (B, L) and `segments` (B, L, 2) = (document, annotation).

    `pad`: "longest", "to_128" (a multiple), "to_max" (`max_tokens`), or "none": all rows packed into one, none attending to another.
    `pad_id`: the token of padding. `left`: pad before the tokens, for generation. Raises PlaitError for "to_max" without `max_tokens`.
    """
    packed = [list(rows)] if pad == "none" and not left else [[row] for row in rows]
    length = _padded_length([sum(map(len, group)) for group in packed], pad, max_tokens)
    shape = (len(packed), length)
    batch = {name: torch.zeros(shape, dtype=torch.int64) for name in ("ids", "labels", "positions")}
    batch["ids"] += pad_id
    batch["loss_weights"] = torch.zeros(shape)
    batch["segments"] = torch.full((*shape, 2), PADDING)
    for i, group in enumerate(packed):
        start = length - sum(map(len, group)) if left else 0
        for document, row in enumerate(group):
            columns = slice(start, start + len(row))
            for name in ("ids", "labels", "positions", "loss_weights"):
                batch[name][i, columns] = vars(row)[name]
            batch["segments"][i, columns, 0] = document
            batch["segments"][i, columns, 1] = row.annotations
            start += len(row)
    return batch


def places_of(batch: Mapping[str, Tensor], text_rows: int, *, prompts: bool) -> dict[str, Tensor]:
    """Return indices into the B L positions: of "image" features, "loss" (learned tokens), and, with `prompts`, "prompt" (all others)."""
    chosen = {"image": batch["ids"] == text_rows + PATCH, "loss": batch["loss_weights"] > 0}
    chosen |= {"prompt": batch["loss_weights"] <= 0} if prompts else {}
    return {name: marks_BL.flatten().nonzero()[:, 0] for name, marks_BL in chosen.items()}


def _padded_length(lengths: list[int], pad: str, max_tokens: int | None) -> int:
    if pad == "to_max":
        if max_tokens is None:
            raise PlaitError("data.pad is to_max, but data.max_tokens is not set: set it, or pad to_128, longest or none")
        return max_tokens
    return -(-max(lengths) // 128) * 128 if pad == "to_128" else max(lengths)
