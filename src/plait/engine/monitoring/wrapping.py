"""Wrap lines at the words to the width of a terminal. Files and pipes are given whole lines, for programs to read.

Commands are never broken: what is copied from the screen is to run.
"""

import os
import re
import unicodedata
from typing import IO

_FALLBACK, _NARROWEST = 80, 20
"""Columns of a terminal that does not tell; fewest columns that lines are wrapped to: below, the terminal does it."""
_INDENT = 4
"""Columns by which the parts of a line after the first are further in than the line."""
_CELL = re.compile(r"( *)([^ ]+(?: [^ ]+)*)")
"""A cell of a table's row, between two blanks or more, and the blanks before it."""
_WORD = re.compile(r"(?:(?:^|(?<=: ))plait [a-z][^;]*?(?=; |, |$)|`[^`]+`|[^ ]|(?<=[0-9]) (?=%))+")
"""A word of a cell, or what is broken no more than a word: `something in backticks`, 5 %, and a command."""


def columns(stream: IO[str] | None) -> int | None:
    """Return the width of the terminal that a stream writes to, in columns. None where it is a file, a pipe or closed.

    The environment variable COLUMNS goes before the terminal's own word; where there is neither, it is 80.
    """
    try:
        if stream is None or not stream.isatty():
            return None
        told = os.environ.get("COLUMNS", "")
        return int(told if told.isdecimal() else 0) or os.get_terminal_size(stream.fileno()).columns or _FALLBACK
    except (OSError, ValueError):  # closed; or it has no descriptor
        return None if stream is None or stream.closed else _FALLBACK


def wrapped(text: str, width: int | None) -> str:
    """Wrap each line of `text` to `width` columns, with a hanging indent. None, or fewer than 20 columns: return it as it is.

    Parts after the first begin below the second cell of a table's row, or below the one that is too wide, if that is in the left half of
    the terminal, else four columns further in than the line.
    """
    return text if width is None or width < _NARROWEST else "\n".join(_wrapped(line, width) for line in text.split("\n"))


def _wrapped(line: str, width: int) -> str:
    if _columns_of(line) <= width:
        return line
    cells = list(_CELL.finditer(line))
    starts = [cell.start(2) for cell in cells[1:2]]
    starts += [cell.start(2) for cell in cells[1:] if cell.end() > width and starts[0] + _columns_of(cell[2]) > width][:1]
    indent = " " * max([start for start in starts if start <= width // 2], default=min(cells[0].start(2) + _INDENT, width // 3))
    parts = [""]
    for blanks, cell in (match.groups() for match in cells):
        words = [cell] if _columns_of(indent + cell) <= width else _WORD.findall(cell)
        for word, gap in zip(words, [blanks, *" " * len(words)], strict=False):
            if parts[-1] and len(parts[-1] + gap) > len(indent) and _columns_of(parts[-1] + gap + word) > width:
                parts.append(indent + word)
            else:
                parts[-1] += gap + word
    return "\n".join(parts)


def _columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes: characters of East Asian scripts take two."""
    return len(text) if text.isascii() else sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)
