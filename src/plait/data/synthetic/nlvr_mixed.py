"""Augment NLVR: compose pictures of boxes of three others, each mirrored or not, so that few pictures give very many.

A picture of NLVR is three boxes of items, which its record lists. A mixed record lists them too, so the same questions can be made from
it. It has no human-written sentence, because those describe the original pictures.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from plait.data import image_files
from plait.data.records import Record
from plait.data.synthetic.nlvr_record import BOX, BOXES, PITCH, SIZE, order_of
from plait.errors import BadSample


def boxes_of(name: str, rows: Sequence[Record], mirrored: Sequence[bool]) -> dict[str, Any]:
    """Return {"boxes": three lists of items} of a mixed record. Its picture has the left box of `rows[0]`, the middle one of `rows[1]`, ...

    An item is a dict as in NLVR's JSON (`type`, `color`, `size`, `x_loc`, `y_loc` in pixels of its box). `mirrored`: whether each box is
    flipped left to right. `name`: of the mixed record; its ending, -0 to -5, says which of the lists is the left, the middle and the right
    box. Raises BadSample for a name of it or of a row without such an ending.
    """
    boxes = [row.fields["boxes"][order_of(row.id)[column]] for column, row in enumerate(rows)]
    flipped = [[_mirrored(entry) for entry in box] if mirror else box for box, mirror in zip(boxes, mirrored, strict=True)]
    order = order_of(name)
    return {"boxes": [flipped[order.index(box)] for box in range(len(BOXES))]}


def mixed(name: str, rows: Sequence[Record], mirrored: Sequence[bool]) -> Record:
    """Return a record whose picture, a PNG, is composed of the left, the middle and the right box of three others.

    `rows`: the other records, whose pictures give the left, the middle and the right box in this order. `name`: of the new record; the
    ending, -0 to -5, says in which order its `boxes` are listed. `mirrored`: which boxes are flipped left to right. Raises BadSample if a
    row's picture is missing, unreadable or of another size than NLVR's.
    """
    sources = [_pixels(row) for row in rows]
    picture = sources[0].copy()
    for column, (pixels, mirror) in enumerate(zip(sources, mirrored, strict=True)):
        left = PITCH * column
        box = pixels[:, left : left + BOX]
        picture[:, left : left + BOX] = box[:, ::-1] if mirror else box
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return Record(name, boxes_of(name, rows, mirrored), [file.getvalue()], [])


def _mirrored(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "x_loc": BOX - float(entry["size"]) - float(entry["x_loc"])}


def _pixels(record: Record) -> np.ndarray:
    """Decode a record's picture, (H, W, 3) uint8."""
    pixels = image_files.decode_rgb(record.images[0]) if record.images else np.empty((0, 0, 3), np.uint8)
    if pixels.shape != (SIZE[1], SIZE[0], 3):
        raise BadSample(f"{record.id} has a picture of {pixels.shape[1]} x {pixels.shape[0]} pixels, not {SIZE[0]} x {SIZE[1]}")
    return pixels
