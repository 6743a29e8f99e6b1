"""Render the HTML page of what was found in sources: figures, histograms, what is wrong, what comes twice, and some samples."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from plait.commands.pages import charts
from plait.commands.pages.card import clean_name, clean_text
from plait.commands.pages.charts import Chart
from plait.commands.pages.page import render

_SIDE = 320  # pixels of a small picture, twice what is shown
_QUALITY = 82
_TEXT = 240  # characters below a small picture


@dataclass(frozen=True)
class Thumb:
    """A sample in small: its pictures, (H, W, 3) uint8, its name, text and a note such as "widest"."""

    pictures: Sequence[np.ndarray]
    name: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Samples in small under a heading, with a line about them."""

    title: str
    line: str
    thumbs: Sequence[Thumb]


@dataclass(frozen=True)
class Section:
    """What is said of one source: figures as (name, text), histograms, tables as (title, columns, rows), and groups of samples."""

    title: str
    details: Sequence[tuple[str, str]]
    charts: Sequence[Chart] = ()
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = ()
    groups: Sequence[Group] = field(default_factory=tuple)


def render_figures(title: str, lines: Sequence[str], sections: Sequence[Section]) -> str:
    """Return the page as HTML text. `lines`: sentences below the title."""
    return render(
        "figures.html.j2",
        title=clean_name(title),
        lines=[clean_name(line) for line in lines],
        sections=[_plain(section) for section in sections],
        box=charts,
    )


def _plain(section: Section) -> dict[str, object]:
    """Return a section as the template has it, its texts cleaned."""
    return {
        "title": clean_name(section.title),
        "details": [(clean_name(name), clean_name(value)) for name, value in section.details],
        "charts": section.charts,
        "tables": [
            (clean_name(title), columns, [[clean_name(cell) for cell in row] for row in rows]) for title, columns, rows in section.tables
        ],
        "groups": [
            {
                "title": clean_name(group.title),
                "line": clean_name(group.line),
                "thumbs": [
                    {
                        "name": clean_name(thumb.name),
                        "note": clean_name(thumb.note),
                        "text": clean_text(thumb.text[:_TEXT] + ("…" if len(thumb.text) > _TEXT else "")),
                        "pictures": [_small(picture) for picture in thumb.pictures[:4]],
                        "more": max(0, len(thumb.pictures) - 4),
                    }
                    for thumb in group.thumbs
                ],
            }
            for group in section.groups
        ],
    }


def _small(picture: np.ndarray) -> dict[str, object]:
    """Return a picture's data: URL and its size in pixels as it is stored."""
    image = Image.fromarray(picture)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    body = io.BytesIO()
    image.save(body, "JPEG", quality=_QUALITY)
    source = f"data:image/jpeg;base64,{base64.b64encode(body.getvalue()).decode()}"
    return {"source": source, "width": image.width, "height": image.height}
