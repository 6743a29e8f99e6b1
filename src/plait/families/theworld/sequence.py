"""Build the token sequence of one sample, with the places of images and world tokens, for training and generation.

Row:  <bos> [start of world] world ... [end of world] <start_of_turn>user ... <start_of_image> image ... <end_of_image> ... <end_of_turn>
Image and world positions are placeholders into which the model puts features of the vision tower and of the world encoder. Labels are made
here, with the text; never from input ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from plait.errors import BadSample, PlaitError
from plait.nn.losses import IGNORED


class Kind(IntEnum):
    """What a position of the sequence holds: TEXT, IMAGE or WORLD; WORLD_START and WORLD_END are the brackets of the world block."""

    TEXT = 0
    IMAGE = 1
    WORLD = 2
    WORLD_START = 3
    WORLD_END = 4


BOTH_WAYS = (Kind.IMAGE, Kind.WORLD)
"""Kinds whose runs attend both ways within themselves."""


@dataclass(frozen=True)
class Span:
    """A run of tokens (`ids`) of one kind; if `supervised`, the loss counts them. WORLD and IMAGE are placeholders of features."""

    ids: Sequence[int]
    kind: Kind = Kind.TEXT
    supervised: bool = False


@dataclass(frozen=True)
class Row:
    """The sequence of one sample: ids, kinds and labels, int64 (L,). A label is the token at its position, or -100; the loss shifts.

    `cut`: number of supervised tokens cut off.
    """

    ids: Tensor
    kinds: Tensor
    labels: Tensor
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)


def fuse(spans: Sequence[Span], world_tokens: int, *, pad_id: int, max_tokens: int | None = None) -> Row:
    """Concatenate spans into a row, with `world_tokens` placeholders (0: none) and their brackets right after BOS, the first span.

    A row over `max_tokens` is truncated. `pad_id`: the placeholders' token id. Raises BadSample if that would cut a block, or leave
    nothing to learn.
    """
    first, *rest = spans
    assert len(first.ids) == 1, "the first span is BOS alone"
    block: list[Span] = []
    if world_tokens:
        kinds = [(1, Kind.WORLD_START), (world_tokens, Kind.WORLD), (1, Kind.WORLD_END)]
        block = [Span([pad_id] * count, kind) for count, kind in kinds]
    ids: list[int] = []
    kinds_L: list[int] = []
    labels: list[int] = []
    for span in (first, *block, *rest):
        ids += span.ids
        kinds_L += [span.kind] * len(span.ids)
        labels += span.ids if span.supervised else [IGNORED] * len(span.ids)
    if max_tokens is not None and len(ids) > max_tokens:
        _check_truncation(kinds_L, labels, max_tokens)
    cut = sum(label != IGNORED for label in labels[max_tokens:]) if max_tokens is not None else 0
    ids_L, kinds_of_L, labels_L = (torch.tensor(values[:max_tokens], dtype=torch.int64) for values in (ids, kinds_L, labels))
    return Row(ids_L, kinds_of_L, labels_L, cut)


def _check_truncation(kinds: list[int], labels: list[int], max_tokens: int) -> None:
    if any(kind != Kind.TEXT for kind in kinds[max_tokens:]):
        raise BadSample(f"{len(kinds)} tokens: data.max_tokens {max_tokens} would cut an image or world block: raise it")
    if all(label == IGNORED for label in labels[:max_tokens]) and any(label != IGNORED for label in labels):
        raise BadSample(f"{len(kinds)} tokens: data.max_tokens {max_tokens} would leave no token of the answer: raise it")


def pad_rows(
    rows: Sequence[Row], *, pad_id: int, pad: str = "longest", max_tokens: int | None = None, left: bool = False
) -> dict[str, Any]:
    """Pad rows to one batch of int64 tensors (B, L): `ids`, `kinds`, `labels`, `attention_mask`, `token_types`, `positions`.

    `pad`: "longest", "to_128" (a multiple) or "to_max" (`max_tokens`); `left`: pad before the tokens; `pad_id`: padding's token id.
    `token_types` is 1 where a position attends both ways within its block; brackets, and the marks around images, keep blocks apart.
    `positions` count each row's tokens from 0; `places`: as of `places_of`. Raises PlaitError for "to_max" without `max_tokens`.
    """
    length = _padded_length([len(row) for row in rows], pad, max_tokens)
    fill = {"ids": pad_id, "kinds": int(Kind.TEXT), "labels": IGNORED, "attention_mask": 0, "positions": 0}
    batch: dict[str, Any] = {name: torch.full((len(rows), length), value, dtype=torch.int64) for name, value in fill.items()}
    for i, row in enumerate(rows):
        columns = slice(length - len(row), length) if left else slice(len(row))
        parts = {"ids": row.ids, "kinds": row.kinds, "labels": row.labels, "attention_mask": 1, "positions": torch.arange(len(row))}
        for name, values in parts.items():
            batch[name][i, columns] = values
    batch["token_types"] = ((batch["kinds"] == Kind.IMAGE) | (batch["kinds"] == Kind.WORLD)).to(torch.int64)
    return {**batch, "places": places_of(batch["kinds"], batch["labels"])}


def places_of(kinds_BL: Tensor, labels_BL: Tensor | None = None) -> dict[str, Tensor]:
    """Return indices into the B L positions: those of "image" and "world" features, and of "loss", whose next token is supervised."""
    chosen = {"image": kinds_BL == Kind.IMAGE, "world": kinds_BL >= Kind.WORLD}
    if labels_BL is not None:
        chosen["loss"] = torch.nn.functional.pad(labels_BL[:, 1:] != IGNORED, (0, 1))
    return {name: marks_BL.flatten().nonzero()[:, 0] for name, marks_BL in chosen.items()}


def _padded_length(lengths: list[int], pad: str, max_tokens: int | None) -> int:
    if pad == "to_max":
        if max_tokens is None:
            raise PlaitError("data.pad is to_max, but data.max_tokens is not set: set it, or pad to_128 or longest")
        return max_tokens
    if pad == "to_128":
        return min(-(-max(lengths) // 128) * 128, max_tokens or 1 << 62)
    return max(lengths)
