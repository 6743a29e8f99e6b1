"""Write cards (samples to show) as one PNG, the contact sheet (sheet.py), and as one HTML page that can be searched (page.py).

Marked text (supervised, or a model's answer) has a coloured background. The same cards give the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path

from plait.commands.pages.card import Card, clean_card, clean_name, clean_text, encode_png
from plait.commands.pages.page import render_samples
from plait.commands.pages.sheet import draw_sheet
from plait.errors import PlaitError
from plait.files import write_whole


def write(
    folder: Path, title: str, cards: Sequence[Card], *, legend: str = "", details: Sequence[tuple[str, str]] = ()
) -> tuple[Path, Path]:
    """Write the `cards` to `sheet.png` and `page.html` in `folder`; return (path of the sheet, path of the page).

    `legend`: a sentence that says what is shown; `details`: (name, text) about all samples, above the cards.
    Raises PlaitError without cards.
    """
    if not cards:
        raise PlaitError(f"{title!r} has no sample to show: ask for at least one")
    cleaned = [clean_card(card) for card in cards]
    lines = [clean_text(legend)] if legend else []
    rows = [(clean_name(name), clean_name(value)) for name, value in details]
    return write_both(folder, title, lines, cards, render_samples(clean_name(title), lines, rows, cleaned))


def write_both(folder: Path, title: str, lines: Sequence[str], cards: Sequence[Card], html: str) -> tuple[Path, Path]:
    """Write `html` to `page.html` in `folder`, and draw `title`, `lines` of text and `cards` to `sheet.png`.

    Returns (path of the sheet, path of the page).
    """
    sheet, page = folder / "sheet.png", folder / "page.html"
    drawn = draw_sheet(clean_name(title), [clean_text(line) for line in lines], [clean_card(card) for card in cards])
    write_whole(sheet, encode_png(drawn))
    write_whole(page, html)
    return sheet, page
