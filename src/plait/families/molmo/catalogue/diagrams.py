"""AI2D: questions about diagrams, a JSON file per diagram. Some ask for letters, which are drawn over the labels of the diagram.

As the published model was trained and evaluated: such a question comes twice, with its labels covered by boxes with letters, and with
boxes that the labels show through. Options that are letters of the picture are answered as they stand, others by the letter of their line.
"""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from plait.data.sources.contract import Absent
from plait.errors import PlaitError
from plait.families.published_openers import read_json
from plait.families.published_rows import PICTURES, DatasetFiles, Opener, Row, RowList, Rows

_HELD_OUT = 384
_HELD_OUT_SHARE = 5  # of fewer diagrams than the published ones, at most one in so many is held out
_SHUFFLE_SEED = 5961
_COLOUR = (25, 249, 255)
_OPACITY = 127
_LETTER_PX, _OUTSIDE_PX = 22, (16, 32)
"""Font size of a letter in its box, at most; and beside a transparent one, from and to."""
_OUTSIDE_AT = (12, 10)
"""How far left of and above its box's corner a letter beside it begins, in pixels."""

Box = tuple[tuple[float, float, float, float], str]
"""((left, top, right, bottom) in pixels, the letter that takes the place of the label there)."""


def diagrams(split: str) -> Opener:
    """Return an opener (DatasetFiles -> Rows) of AI2D's questions, in `questions/*.json`, with the test set's ids in `ai2d_test_ids.csv`.

    `split`: test, validation (the published 384 diagrams of the others) or train. Rows have `picture`, the image file, or hold the picture
    that letters were drawn on, by the labels' places in `annotations/*.json`. The opener raises Absent if such files are missing.
    """

    def opened(files: DatasetFiles) -> Rows:
        (test_ids,) = files.find("ai2d_test_ids.csv")
        question_files = sorted((files.folder / "questions").glob("*.json"))
        if not question_files:
            raise Absent(f"no questions/*.json in {files.folder}")
        test = {row[0].strip() for row in csv.reader(test_ids.read_text(encoding="utf-8").splitlines()) if row}
        chosen = _diagrams_of_split(split, [file.name.partition(".")[0] for file in question_files], test)
        of_split = [file for file in question_files if file.name.partition(".")[0] in chosen]
        rows = [row for file in of_split for row in _questions(files, read_json(file))]
        return LetteredRows(rows, RowList.of_files(rows, [test_ids]).digest, files)

    return opened


def _diagrams_of_split(split: str, names: Sequence[str], test: set[str]) -> set[str]:
    """Return the names of the diagrams of a split. Those held out are the first of a shuffle, as for the published model."""
    others = sorted((name for name in names if name not in test), key=lambda name: (int(name) if name.isdigit() else 0, name))
    np.random.RandomState(_SHUFFLE_SEED).shuffle(others)  # NumPy's older generator, by which the published diagrams were chosen
    count = min(_HELD_OUT, len(others) // _HELD_OUT_SHARE)
    return {"test": test, "validation": set(others[:count])}.get(split, set(others[count:]))


class LetteredRows(RowList):
    """Rows held in memory; those with `boxes` get their picture with the letters drawn on it when they are read."""

    def __init__(self, rows: list[Row], digest: str, files: DatasetFiles) -> None:
        super().__init__(rows, digest)
        self.files = files

    def __getitem__(self, i: int) -> Row:
        row = self.rows[i]
        if not row["boxes"]:
            return row
        with Image.open(self.files.image(row["picture"])) as image:
            drawn = draw_letters(image.convert("RGB"), row["boxes"], transparent=row["task"] == "transparent")
        buffer = io.BytesIO()
        drawn.save(buffer, "PNG")
        return {**row, PICTURES: [buffer.getvalue()]}


def _questions(files: DatasetFiles, diagram: dict[str, Any]) -> list[Row]:
    """Return the rows of a diagram: one for each question, two where its options are letters that stand in the picture."""
    lettered = any(question["abcLabel"] for question in diagram["questions"].values())
    boxes = _boxes(files, diagram["imageName"]) if lettered else []
    letters = {letter for _, letter in boxes}
    rows = []
    for text, question in diagram["questions"].items():
        given = question["answerTexts"]
        options = [option for option in dict.fromkeys(given) if option != "{}"]  # "{}" is no option, and some stand there twice
        named = [option.upper() in letters for option in options]
        row = {"id": question["questionId"], "picture": f"images/{diagram['imageName']}", "question": text, "boxes": [], "task": "plain"}
        row |= {"options": options, "answer": options.index(given[question["correctAnswer"]]), "as_they_stand": False}
        if not question["abcLabel"]:
            rows.append(row | {"shown": row["picture"]})
            continue
        if sum(named) >= len(options) - 1:
            row |= {"as_they_stand": True, "options": [o.upper() if letter else o for o, letter in zip(options, named, strict=True)]}
        for task, suffix in (("opaque", ""), ("transparent", "_transparent")):
            rows.append(row | {"id": row["id"] + suffix, "boxes": boxes, "task": task, "shown": f"{row['picture']} {task}"})
    return rows


def _boxes(files: DatasetFiles, name: str) -> list[Box]:
    (file,) = files.find(f"annotations/{name}.json")
    try:
        labels = [(label["rectangle"], label["replacementText"]) for label in read_json(file)["text"].values()]
        return [((float(x1), float(y1), float(x2), float(y2)), str(letter)) for ((x1, y1), (x2, y2)), letter in labels]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlaitError(f"{file} does not say where labels are and by what they are replaced: is it the published file?") from error


def draw_letters(image: Image.Image, boxes: Sequence[Box], *, transparent: bool) -> Image.Image:
    """Draw boxes with letters over a diagram's labels, in place (RGB), and return it.

    `transparent`: labels show through, and letters stand beside the boxes. The font is Pillow's own; the published model's was Arial.
    """
    draw = ImageDraw.Draw(image, "RGBA" if transparent else "RGB")
    for (x1, y1, x2, y2), letter in boxes:
        if y1 == y2:
            continue
        draw.rectangle([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)], fill=(*_COLOUR, _OPACITY) if transparent else _COLOUR)
        if transparent:
            size = min(max(_OUTSIDE_PX[0], min(image.size) // 50), _OUTSIDE_PX[1])
            at, font = (max(x1 - _OUTSIDE_AT[0], 0), max(y1 - _OUTSIDE_AT[1], 0)), ImageFont.load_default(size)
            draw.rectangle(draw.textbbox(at, letter, font=font), fill="white")
        else:
            at, font = _centred(draw, letter, (x1, y1, x2, y2))
        draw.text(at, letter, fill="black", font=font)
    return image


def _centred(draw: ImageDraw.ImageDraw, letter: str, box: tuple[float, float, float, float]) -> tuple[tuple[float, float], Any]:
    """Return where a letter in the middle of a box begins, and its font, small enough for the box's height if that is over 4 px."""
    x1, y1, x2, y2 = box
    for size in range(_LETTER_PX, 0, -1):
        font = ImageFont.load_default(size)
        left, top, right, bottom = draw.textbbox((0, 0), letter, font=font)
        if y2 - y1 <= 4 or bottom - top <= y2 - y1:
            break
    return ((x1 + x2) / 2 - (right - left) / 2, y1 - top + (y2 - y1 - (bottom - top)) / 2), font
