"""Render the HTML page of a table: figures of several models side by side, with a sentence on what they say."""

from collections.abc import Sequence

from plait.commands.pages.card import clean_name
from plait.commands.pages.page import render


def render_table(title: str, details: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], sentence: str) -> str:
    """Return the page as HTML text. `details`: (name, text) on what was measured; `rows`: of cells, the columns' names first.

    `sentence`: what the figures say, such as which models the measured one beats; a paragraph below the table.
    """
    cleaned = [[clean_name(cell) for cell in row] for row in rows]
    named = [(clean_name(name), clean_name(value)) for name, value in details]
    return render(
        "table.html.j2", title=clean_name(title), details=named, columns=cleaned[0], rows=cleaned[1:], sentence=clean_name(sentence)
    )
