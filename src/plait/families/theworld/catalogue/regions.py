"""SpatialRGPT-Bench (Cheng et al. 2024, arXiv:2406.01584): questions about regions of a picture, and lengths in it.

Its authors' model is given the regions' masks. Here each region is a box with its number, drawn into the picture before any encoder sees
it, which is how its authors ask models that take no masks; a sentence before the question says so.
"""

import ast
import io
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from plait.errors import BadSample
from plait.families.published_openers import either, in_json, in_json_lines, in_parquet
from plait.families.published_rows import PICTURES, ChangedRows, Conversation, DatasetFiles, Random, Row, Rows, Size, Spec
from plait.families.theworld.benchmarks.judge import GROUP, REGIONS
from plait.families.theworld.benchmarks.regions import read, task_of

SPATIAL_HUB = "a8cheng/SpatialRGPT-Bench"
_MARKED = "Each region is marked in the image by a box with its number. "
_COLOURS = ("red", "blue", "lime", "yellow", "magenta", "cyan")
_FIELDS = ("text_q", "conversations", "bbox", "qa_info")
_JSON = "SpatialRGPT-Bench_v1.json"
_THICKNESS = 200  # the longer side of a picture is so many line widths
_TEXT = 20  # and so many letter heights


def _value(cell: Any) -> Any:
    """Return the value of a cell, which the parquet files spell as Python does. Raises BadSample for a text that is none."""
    if not isinstance(cell, str):
        return cell
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError) as error:
        raise BadSample(f"{cell[:40]!r} is no value") from error


def draw_regions(picture: bytes, boxes: list[list[float]]) -> bytes:
    """Return a picture as PNG with a numbered box for each region.

    `boxes`: (left, top, right, bottom) in pixels, numbered from 0. Raises BadSample for what is no picture.
    """
    try:
        with Image.open(io.BytesIO(picture)) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise BadSample(f"not a readable image: {error}") from error
    pen, side = ImageDraw.Draw(image), max(image.size)
    font, width = ImageFont.load_default(size=max(side // _TEXT, 10)), max(side // _THICKNESS, 1)
    for number, (left, top, right, bottom) in enumerate(boxes):
        colour = _COLOURS[number % len(_COLOURS)]
        pen.rectangle([min(left, right), min(top, bottom), max(left, right), max(top, bottom)], outline=colour, width=width)
        label, corner = f"[{number}]", (max(left, 0), max(top, 0))
        pen.rectangle(pen.textbbox(corner, label, font=font), fill="black")
        pen.text(corner, label, font=font, fill=colour)
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


def _marked(files: DatasetFiles, row: Row) -> Row:
    """Return a row whose picture has its regions drawn in. Raises BadSample where it has no picture, or its boxes are none."""
    boxes = _value(row["bbox"])
    if not isinstance(boxes, list) or not all(isinstance(box, list | tuple) and len(box) == 4 for box in boxes):
        raise BadSample("`bbox` is no list of boxes, four numbers each")
    pictures = row.get(PICTURES) or [_file_of(files, row)]
    return {**row, PICTURES: [draw_regions(pictures[0], [[float(side) for side in box] for box in boxes])]}


def _file_of(files: DatasetFiles, row: Row) -> bytes:
    """Return the picture that a row names, in the folder images/, or where its authors have Omni3D's."""
    name = str((_value(row.get("image_info")) or {}).get("file_path") or "")
    if not name:
        raise BadSample("a row without a picture: neither `image` nor `image_info.file_path`")
    return files.image(f"images/{name}", name, f"omni3d/{name}").read_bytes()


def _rows(files: DatasetFiles) -> Rows:
    """Return the rows of the parquet files, else of the published JSON; their regions are drawn as they are read."""
    local = either(in_parquet(SPATIAL_HUB, "val"), in_json_lines("*.jsonl", fields=_FIELDS), in_json(_JSON))
    return ChangedRows(local(files), lambda row: _marked(files, row))


def _spatial(row: Row, random: Random, size: Size) -> list[Conversation]:
    """Return the question of a row. Raises BadSample for an unknown category, and a right answer in which nothing can be read."""
    told, turns = _value(row["qa_info"]), _value(row["conversations"])
    category, question = str(told["category"]), str(row["text_q"])
    if len(turns) != 2:
        raise BadSample(f"`conversations` has {len(turns)} turns, and not a question and its answer")
    answer = str(turns[1]["value"]).strip()
    try:
        task = task_of(category)
    except KeyError as error:
        raise BadSample(f"the category {category!r} is unknown") from error
    if read(answer, category, question) is None:
        raise BadSample(f"its right answer cannot be read by rule: {answer!r}")
    return [Conversation(_MARKED + question, answer, "spatial", {"task": task, GROUP: str(told["type"]), REGIONS: category})]


SPATIAL: dict[str, Spec] = {
    "spatial_rgpt": Spec(
        "spatial_rgpt",
        {"validation": _rows, "val": _rows},
        _spatial,
        f"the parquet files of {SPATIAL_HUB} (also from the Hub: options {{hub: true}}, --data=hub), or its {_JSON} and Omni3D's pictures",
        "accuracy",
    )
}
"""The benchmark by its name."""
