"""Conditions of samples (features of a caption and of a reference image), packed for the network, and a sample's noise.

An export holds a copy of this code.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plait.families.nanodit.network.shape import Shape
from plait.keys import key, rng

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Conditions:
    """Conditions of one sample; None: absent. `text`: features (T, F), or ids (T,) with model.text `words`; `image`: features (F,).

    `cut`: number of text tokens that `data.max_tokens` cut off.
    """

    text: Tensor | None = None
    image: Tensor | None = None
    cut: int = 0

    def only(self, *, text: bool, image: bool) -> "Conditions":
        """Return a copy without the text if `text` is False, and without the image if `image` is False."""
        return Conditions(self.text if text else None, self.image if image else None, self.cut if text else 0)


def word_ids(text: str, rows: int, limit: int | None) -> tuple[Tensor | None, int]:
    """Return ids (T,) of the first `limit` words of a text, None without any, and how many words were cut off.

    An id is a word's hash modulo `rows`, those of the table of words.
    """
    found = _WORD.findall(text.lower())
    ids = [key("word", word) % rows for word in found[:limit]]
    return torch.tensor(ids, dtype=torch.int64) if ids else None, len(found) - len(ids)


def pack(rows: Sequence[Conditions], shape: Shape, length: int | None = None) -> dict[str, Tensor]:
    """Pack the conditions of B samples: the T valid text tokens of all, one after another, and image features with null flags.

    Returns `text` (T,), or (T, features) of the rows' type, `text_index` (T,): their indices in the flattened `text_mask` (B, L),
    `text_null` (T,); `image` (B, features), `image_null` (B,). A row without text has one null token: the caption's own mask would leak
    its length.
    `length`: L to pad to, where padding is packed too, so that shapes never change; None: that of the longest text.
    """
    lengths = [1 if row.text is None else len(row.text) for row in rows]
    longest = length or max(lengths)
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    null = torch.zeros(len(rows), longest, dtype=torch.bool)
    null[:, 0] = torch.tensor([row.text is None for row in rows])
    kinds = {row.text.dtype for row in rows if row.text is not None} or {torch.int64 if shape.text == "words" else torch.float32}
    blank = torch.zeros((1,) if shape.text == "words" else (1, shape.text_dim), dtype=functools.reduce(torch.promote_types, kinds))
    text = torch.cat([blank if row.text is None else row.text for row in rows])
    index = mask.flatten().nonzero()[:, 0]
    if length is not None:
        text = blank.new_zeros(len(rows) * longest, *blank.shape[1:]).index_copy(0, index, text)
        index = torch.arange(len(rows) * longest)
    batch = {"text": text, "text_index": index, "text_null": null.flatten()[index], "text_mask": mask}
    if shape.image_dim:
        blank = torch.zeros(shape.image_dim)
        batch["image"] = torch.stack([blank if row.image is None else row.image for row in rows])
        batch["image_null"] = torch.tensor([row.image is None for row in rows])
    return batch


def noise(shape: Sequence[int], key: int) -> Tensor:
    """Return standard normal noise of `shape` (C, H, W), float32, that depends on `key` alone."""
    return torch.from_numpy(rng(key, "noise").standard_normal(tuple(shape), dtype=np.float32))
