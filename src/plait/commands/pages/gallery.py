"""A gallery: cards (samples to show) written as one PNG to look at (sheet.py) and one HTML page to search and to send on (page.py).

Marked text (what is supervised, or what a model answered) stands on colour in both. The same cards give the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plait.commands.pages.card import Card, clean_card, clean_text, count_cards, encode_png
from plait.commands.pages.page import render_page
from plait.commands.pages.sheet import draw_sheet
from plait.errors import PlaitError
from plait.files import write_whole


def write(folder: Path, title: str, cards: Sequence[Card], *, legend: str = "", facts: Sequence[tuple[str, str]] = ()) -> tuple[Path, Path]:
    """Write the `cards` to `sheet.png` and `page.html` in `folder`, and return both paths.

    `legend` says what marked text means; `facts`: (name, text) about all samples, above the cards. Raises PlaitError without cards.
    """
    if not cards:
        raise PlaitError(f"{title!r} has no sample to show: ask for at least one")
    for card in cards:
        for picture in card.pictures:
            assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3, f"{picture.dtype} {picture.shape} is not HWC"
    cards = [clean_card(card) for card in cards]
    title = clean_text(title)
    lines = [clean_text(line) for line in (count_cards(cards), legend) if line]
    rows = [(clean_text(name), clean_text(value)) for name, value in facts]
    sheet, page = folder / "sheet.png", folder / "page.html"
    write_whole(sheet, encode_png(draw_sheet(title, lines, cards)))
    write_whole(page, render_page(title, lines, rows, cards))
    return sheet, page
