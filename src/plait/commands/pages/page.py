"""Render HTML pages: what all of them share (templates, security policy, pictures), and the page of cards (samples to show).

A page is one file that loads nothing else. Its look is defined in the folder templates, which escape all text. The page of an evaluation's
answers is in answers.py.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from plait.commands.pages.card import Card, describe_pictures, encode_png, fit_pictures, join_runs

_FOLDER = Path(__file__).parent / "templates"
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
"""The jinja2 templates of the pages. Every value is escaped, and a missing value raises jinja2.UndefinedError."""
TEMPLATES.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
_JPEG_QUALITY = 88
_TWICE = 2  # pixels stored per pixel shown, for displays of double density


class PagePicture(NamedTuple):
    """A picture on a page. `size`: its own, as "640x480 px"; `width`, `height`: shown, in pixels; `source`: its data as a data: URL.

    `exact`: whether it is shown at its own size or enlarged by a whole factor.
    """

    label: str
    size: str
    width: int
    height: int
    exact: bool
    whole: bool
    """Whether it is shown smaller than its own size; a click on it then shows it whole."""
    source: str


class _PageCard(NamedTuple):
    """What the template shows of a card."""

    title: str
    pictures: list[PagePicture]
    text: list[tuple[str, bool]]
    notes: list[tuple[str, str]]


def render(template: str, script: str | None = None, styles: Sequence[str] = (), **values: Any) -> str:
    """Render `template`, a file of the folder templates, to HTML text, with `values` by name; the same arguments give the same text.

    Values are plain text, which is escaped here; only markupsafe.Markup is not. `script`: a JavaScript file of that folder, the only one
    that the page may run, or None. `styles`: CSS files of that folder besides page.css.
    """
    code = Markup((_FOLDER / script).read_text(encoding="utf-8")) if script else Markup()
    allowed = f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" if script else ""
    return TEMPLATES.get_template(template).render(
        style=Markup("".join((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", *styles))),
        script=code,
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'{allowed}",
        **values,
    )


def render_samples(title: str, lines: Sequence[str], details: Sequence[tuple[str, str]], cards: Sequence[Card]) -> str:
    """Return the HTML page of `cards`: `title`, `lines` of text below it, `details` (name, text) grouped by name, an article per card."""
    by_name: dict[str, list[str]] = {}
    for name, value in details:
        by_name.setdefault(name.strip(), []).append(value)
    return render("samples.html.j2", title=title, lines=lines, details=by_name, cards=[_page_card(card) for card in cards])


def page_pictures(pictures: Sequence[np.ndarray], labels: Sequence[str], *, lossless: bool) -> list[PagePicture]:
    """Return pictures (H, W, 3) uint8 as a page shows them, at one scale. They are PNG; shrunk ones are small JPEG unless `lossless`.

    The scale makes all of them fit a card. `labels`: names of the first pictures; others have none.
    """
    scale = fit_pictures(pictures)[1] if pictures else 1.0
    names = [*labels, *[""] * (len(pictures) - len(labels))]
    return [_page_picture(picture, label, scale, lossless) for picture, label in zip(pictures, names, strict=True)]


def _page_card(card: Card) -> _PageCard:
    sizes = [("pictures" if len(card.pictures) > 1 else "picture", ", ".join(describe_pictures(card)))]
    notes = [*(sizes if card.pictures and not card.labels else []), *card.notes.items()]
    return _PageCard(card.title, page_pictures(card.pictures, card.labels, lossless=True), join_runs(card.text), notes)


def _page_picture(picture: np.ndarray, label: str, scale: float, lossless: bool) -> PagePicture:
    height, width = picture.shape[:2]
    shown_width, shown_height = max(1, round(width * scale)), max(1, round(height * scale))
    if lossless or scale >= 1:
        kind, data = "png", encode_png(Image.fromarray(picture))
    else:
        kind, data = "jpeg", _encode_jpeg(Image.fromarray(picture), (_TWICE * shown_width, _TWICE * shown_height))
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return PagePicture(
        label=label, size=f"{width}x{height} px", width=shown_width, height=shown_height, exact=scale >= 1, whole=scale < 1, source=source
    )


def _encode_jpeg(picture: Image.Image, size: tuple[int, int]) -> bytes:
    """Encode a picture as JPEG, shrunk to `size` where that is smaller."""
    body = io.BytesIO()
    (picture.resize(size, Image.Resampling.LANCZOS) if size[0] < picture.width else picture).save(body, "JPEG", quality=_JPEG_QUALITY)
    return body.getvalue()
