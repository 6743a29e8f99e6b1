"""The content of a card, which shows one sample: its pictures, text and notes. Also the sizes that PNG and HTML share.

Text is a list of runs: a run is (string, whether it is marked), and marked text (supervised, or a model's answer) gets a coloured
background. Nothing is drawn here: sheet.py makes a PNG of cards (the contact sheet), page.py an HTML page.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from plait.config import secrets

Text = Sequence[tuple[str, bool]]
"""A text as (string, whether it is marked) pieces, called runs."""

CARD_PX, PADDING_PX = 380, 14  # width of a card, and the space inside its border
PICTURES_PX = (CARD_PX - 2 * PADDING_PX, 420)  # width and height that all pictures of a card share
BETWEEN_PX = 4  # between pictures of a card
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Card:
    """One sample to show, under a `title`. `pictures`: (H, W, 3) uint8; `labels`: a name per picture, or empty; `notes`: {name: text}.

    `text`: as [(string, whether it is marked by colour), ...]. `verdict`: whether its answer is right; None if there is none, or it is not
    scored.
    """

    pictures: Sequence[np.ndarray]
    text: Text
    title: str
    verdict: bool | None = None
    notes: dict[str, str] = field(default_factory=dict)
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        for picture in self.pictures:
            assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3, f"{picture.dtype} {picture.shape} is not HWC"


def clean_card(card: Card) -> Card:
    """Return a copy of the card with `clean_text` applied to the sample's text, and `clean_name` to what is said of the sample."""
    notes = {clean_name(name): clean_name(value) for name, value in card.notes.items()}
    text = [(clean_text(run), bool(marked)) for run, marked in card.text]
    return Card(card.pictures, text, clean_name(card.title), card.verdict, notes, [clean_text(label) for label in card.labels])


def clean_text(text: str) -> str:
    """Return the text with control and bidi characters and lone surrogates, which would disturb a page, each replaced by U+FFFD."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def clean_name(text: str) -> str:
    """Return `clean_text(text)` without secrets, and with variables in paths as they were written ($DATA/a.jpg).

    For what is said of a sample (names, paths, reasons), not for its own text.
    """
    return clean_text(secrets.shown(text))


def join_runs(text: Text) -> list[tuple[str, bool]]:
    """Join neighbouring runs of text, (string, whether it is marked), that are both marked or both not, and drop empty ones."""
    joined: list[tuple[str, bool]] = []
    for run, marked in text:
        if joined and joined[-1][1] == marked:
            joined[-1] = (joined[-1][0] + run, marked)
        elif run:
            joined.append((run, marked))
    return joined


def describe_pictures(card: Card) -> list[str]:
    """Return a text per distinct label of a card's pictures, or without labels per distinct size: ["640x480 px", "2 of 336x336 px"]."""
    sizes = list(card.labels) or [f"{picture.shape[1]}x{picture.shape[0]} px" for picture in card.pictures]
    kinds = list(dict.fromkeys(sizes))
    return [f"{sizes.count(kind)} of {kind}" if sizes.count(kind) > 1 else kind for kind in kinds]


def fit_pictures(pictures: Sequence[np.ndarray]) -> tuple[int, float]:
    """Return (number of columns in which a card shows its pictures, their common scale: a whole number, or less than 1).

    The scale fits all of them into PICTURES_PX, the 352 x 420 pixels of a card. Columns are as many as leave a scale of at least three
    quarters of the best, and at least 1 if the best is. `pictures` is not empty.
    """
    tallest, widest = max(p.shape[0] for p in pictures), max(p.shape[1] for p in pictures)

    def scale(columns: int) -> float:
        rows = -(-len(pictures) // columns)
        wide, high = ((px + BETWEEN_PX) / n - BETWEEN_PX for px, n in zip(PICTURES_PX, (columns, rows), strict=True))
        fits = min(wide / widest, high / tallest)
        return float(int(fits)) if fits >= 1 else fits

    scales = [scale(columns + 1) for columns in range(len(pictures))]
    least = max(min(1.0, max(scales)), 0.75 * max(scales))
    columns = max(index + 1 for index, value in enumerate(scales) if value >= least)
    return columns, scales[columns - 1]


def encode_png(picture: Image.Image) -> bytes:
    """Return a picture encoded as PNG. The same pixels give the same bytes."""
    body = io.BytesIO()
    picture.save(body, "PNG")
    return body.getvalue()
