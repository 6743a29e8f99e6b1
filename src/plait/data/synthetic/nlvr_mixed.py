"""A picture of NLVR put together from the boxes of three others, each mirrored or not, so that few scenes give very many.

Records hold what the picture shows, as those of the data do, so all that is made of a record can be made of a mixed one. A human sentence
is of its own picture, and is left out.
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
    """Fields of a record called `name`: its left box is that of the first row, its middle box that of the second, and so on."""
    placed = [row.fields["boxes"][order_of(row.id)[place]] for place, row in enumerate(rows)]
    turned = [[_turned(one) for one in inside] if turn else inside for inside, turn in zip(placed, mirrored, strict=True)]
    written = order_of(name)
    return {"boxes": [turned[written.index(place)] for place in range(len(BOXES))]}


def mixed(name: str, rows: Sequence[Record], mirrored: Sequence[bool]) -> Record:
    """That record with its picture, as a PNG."""
    shown = [_pixels(row) for row in rows]
    whole = shown[0].copy()
    for place, (pixels, turn) in enumerate(zip(shown, mirrored, strict=True)):
        left = PITCH * place
        box = pixels[:, left : left + BOX]
        whole[:, left : left + BOX] = box[:, ::-1] if turn else box
    file = io.BytesIO()
    Image.fromarray(whole).save(file, "PNG", compress_level=1)
    return Record(name, boxes_of(name, rows, mirrored), [file.getvalue()], [])


def _turned(one: dict[str, Any]) -> dict[str, Any]:
    return {**one, "x_loc": BOX - float(one["size"]) - float(one["x_loc"])}


def _pixels(record: Record) -> np.ndarray:
    """(H, W, 3) uint8."""
    pixels = image_files.decode_rgb(record.images[0]) if record.images else np.empty((0, 0, 3), np.uint8)
    if pixels.shape != (SIZE[1], SIZE[0], 3):
        raise BadSample(f"{record.id} has a picture of {pixels.shape[1]} x {pixels.shape[0]} pixels, not {SIZE[0]} x {SIZE[1]}")
    return pixels
