"""The HTML page of cards: whole pictures and whole texts, to search and to send on. One file that loads nothing else.

What it looks like is in templates/page.html.j2 and templates/page.css. All text is escaped by the template.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from plait.commands.pages.card import Card, encode_png, fit_pictures, join_runs, picture_sizes

_FOLDER = Path(__file__).parent / "templates"
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
"""The folder's templates. Every value is escaped, and a name that is not given raises jinja2.UndefinedError."""


class _PagePicture(NamedTuple):
    """A picture as the page shows it: its size as stored, its size on the page, and its PNG in base64."""

    width: int
    height: int
    shown_width: int
    shown_height: int
    shrunk: bool
    data: str


class _PageCard(NamedTuple):
    """What the template shows of a card."""

    title: str
    verdict: bool | None
    pictures: list[_PagePicture]
    text: list[tuple[str, bool]]
    notes: list[tuple[str, str]]


def render_page(title: str, lines: Sequence[str], facts: Sequence[tuple[str, str]], cards: Sequence[Card]) -> str:
    """Return the HTML page of `cards`: `title`, the `lines` below it, a table of `facts` (name, text), and an article per card.

    The same arguments give the same text.
    """
    return TEMPLATES.get_template("page.html.j2").render(
        title=title,
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        lines=lines,
        facts=facts,
        cards=[_page_card(card) for card in cards],
    )


def _page_card(card: Card) -> _PageCard:
    sizes = [("pictures" if len(card.pictures) > 1 else "picture", ", ".join(picture_sizes(card.pictures)))] if card.pictures else []
    scale = fit_pictures(card.pictures)[1] if card.pictures else 1.0
    pictures = [_page_picture(picture, scale) for picture in card.pictures]
    return _PageCard(card.title, card.verdict, pictures, join_runs(card.text), [*sizes, *card.notes.items()])


def _page_picture(picture: np.ndarray, scale: float) -> _PagePicture:
    height, width = picture.shape[:2]
    shown_width, shown_height = max(1, round(width * scale)), max(1, round(height * scale))
    data = base64.b64encode(encode_png(Image.fromarray(picture))).decode()
    return _PagePicture(width, height, shown_width, shown_height, scale < 1, data)
