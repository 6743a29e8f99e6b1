"""The fused sequence: what stands at each position, in one place for training, prefill and tests.

Row:  <bos> [start of world] world ... [end of world] <start_of_turn>user ... <start_of_image> image ... <end_of_image> ... <end_of_turn>
Image and world positions are placeholders: the model puts features there. Labels are decided here, with the text; never read off input ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from plait.errors import BadSample, PlaitError
from plait.nn.losses import IGNORED


class Kind(IntEnum):
    """What stands at a position."""

    TEXT = 0
    IMAGE = 1
    WORLD = 2
    WORLD_START = 3
    WORLD_END = 4


@dataclass(frozen=True)
class Piece:
    """A run of tokens of one kind; `supervised` if the model shall learn to say them."""

    ids: Sequence[int]
    kind: Kind = Kind.TEXT
    supervised: bool = False


@dataclass(frozen=True)
class Row:
    """One sample's positions: ids, kinds and labels, each (L,). A label is the position's own token, or -100."""

    ids: Tensor
    kinds: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)


def fuse(pieces: Sequence[Piece], world_tokens: int, *, pad_id: int, max_tokens: int | None = None) -> Row:
    """The pieces in order, with the world block right after the first token (BOS), outside every turn.

    A row over `max_tokens` loses its end; BadSample if that would cut a block or leave nothing to learn.
    """
    first, *rest = pieces
    assert len(first.ids) == 1, "the first piece is BOS alone"
    block = []
    if world_tokens:
        kinds = [(1, Kind.WORLD_START), (world_tokens, Kind.WORLD), (1, Kind.WORLD_END)]
        block = [Piece([pad_id] * count, kind) for count, kind in kinds]
    ids: list[int] = []
    kinds_L: list[int] = []
    labels: list[int] = []
    for piece in (first, *block, *rest):
        ids += piece.ids
        kinds_L += [piece.kind] * len(piece.ids)
        labels += piece.ids if piece.supervised else [IGNORED] * len(piece.ids)
    if max_tokens is not None and len(ids) > max_tokens:
        _check_cut(kinds_L, labels, max_tokens)
    return Row(*(torch.tensor(values[:max_tokens], dtype=torch.int64) for values in (ids, kinds_L, labels)))


def _check_cut(kinds: list[int], labels: list[int], max_tokens: int) -> None:
    if any(kind != Kind.TEXT for kind in kinds[max_tokens:]):
        raise BadSample(f"{len(kinds)} tokens: max_tokens {max_tokens} would cut an image or world block")
    if all(label == IGNORED for label in labels[:max_tokens]) and any(label != IGNORED for label in labels):
        raise BadSample(f"{len(kinds)} tokens: max_tokens {max_tokens} would leave no token of the answer")


def pad_rows(
    rows: Sequence[Row], *, pad_id: int, pad: str = "longest", max_tokens: int | None = None, left: bool = False
) -> dict[str, Tensor]:
    """Rows to one batch (B, L): ids, kinds, labels, attention_mask, token_types, positions.

    token_types is 1 where a position attends both ways within its block. The brackets, and the marks around images, keep blocks apart.
    positions count each row's own tokens from 0, wherever its padding is.
    """
    length = _length([len(row) for row in rows], pad, max_tokens)
    fill = {"ids": pad_id, "kinds": int(Kind.TEXT), "labels": IGNORED}
    batch = {name: torch.full((len(rows), length), value, dtype=torch.int64) for name, value in fill.items()}
    batch["attention_mask"] = torch.zeros(len(rows), length, dtype=torch.int64)
    for place, row in enumerate(rows):
        here = slice(length - len(row), length) if left else slice(len(row))
        for name in fill:
            batch[name][place, here] = getattr(row, name)
        batch["attention_mask"][place, here] = 1
    batch["token_types"] = ((batch["kinds"] == Kind.IMAGE) | (batch["kinds"] == Kind.WORLD)).to(torch.int64)
    batch["positions"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0) * batch["attention_mask"]
    return batch


def _length(lengths: list[int], pad: str, max_tokens: int | None) -> int:
    if pad == "to_max":
        if max_tokens is None:
            raise PlaitError("data.pad is to_max, but data.max_tokens is not set: set it, or pad to_128 or longest")
        return max_tokens
    if pad == "to_128":
        return min(-(-max(lengths) // 128) * 128, max_tokens or 1 << 62)
    if pad == "none" and len(set(lengths)) > 1:
        raise PlaitError(f"data.pad is none, but a micro-batch has rows of {min(lengths)} to {max(lengths)} tokens: pad to longest")
    return max(lengths)
