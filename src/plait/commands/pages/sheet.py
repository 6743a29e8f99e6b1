"""Draw the contact sheet of cards (samples to show): one picture with every card's pictures, text and notes.

Small pictures are enlarged by a whole factor without smoothing, so that their pixels can be seen; large ones are shrunk to fit. Long texts
are abbreviated. Text is a list of (string, whether it is marked), called runs; marked text (supervised, or a model's answer) has a coloured
background. Pillow's font has little more than ASCII: other letters appear as boxes.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from plait.commands.pages.card import BETWEEN_PX, CARD_PX, PADDING_PX, PICTURES_PX, Card, Text, describe_pictures, fit_pictures, join_runs

_GAP_PX = 14  # between cards
_PICTURES_MAX = 24  # of one card
_COLUMNS_MAX = 4
_LINES_MAX = 14
_CHARACTERS_MAX = 640
_RUN_MAX = 256  # characters measured at once
_NOTE_CHARACTERS, _NO_BREAK = 48, "\u00a0"  # a note this short stays on one line
_TEXT_PX, _NOTE_PX, _HEAD_PX = 15, 12, 24
_VERDICT_PX = 24  # width of the tick or cross with the space after it
_INK, _FAINT, _PAPER, _CARD, _BORDER = "#1c1f24", "#646b75", "#eef0f3", "#ffffff", "#d5d9df"
_RIGHT, _WRONG = "#1a7f43", "#c62f2f"
_MARKS = {None: "#ffe08a", True: "#c9ecd5", False: "#f8d3d0"}
"""The background colour of marked text, by whether the card's answer is right (None: not scored)."""
_PLAIN_FONT = frozenset(map(chr, range(32, 127))) | set("·…“”‘’±£§")

Line = list[tuple[str, bool]]
"""One line of text as (string, whether it is marked) pieces."""


@dataclass(frozen=True)
class _Layout:
    """A card before it is drawn: its resized pictures with their positions, its lines of text and notes, and its height."""

    card: Card
    pictures: list[tuple[int, int, Image.Image]]
    text: list[Line]
    notes: list[str]
    text_y: int
    height_px: int


def draw_sheet(title: str, lines: Sequence[str], cards: Sequence[Card]) -> Image.Image:
    """Draw the contact sheet as an image. It has `title`, the `lines` of text below it, then the cards in rows of at most four."""
    columns = -(-len(cards) // -(-len(cards) // _COLUMNS_MAX))  # rows of equal length, as far as possible
    layouts = [_lay_out(card) for card in cards]
    rows = [layouts[start : start + columns] for start in range(0, len(layouts), columns)]
    width = max(columns, 2) * (CARD_PX + _GAP_PX) + _GAP_PX
    below = [part for line in lines for part in _plain_lines(line, _NOTE_PX + 2, width - 2 * _GAP_PX)]
    if any(letter not in _PLAIN_FONT for card in cards for letter in _letters(card)):
        below.append("A box stands for a letter that this picture's font lacks; the page shows it.")
    heads = _plain_lines(title, _HEAD_PX, width - 2 * _GAP_PX)[:2]
    top = _GAP_PX + len(heads) * (_HEAD_PX + 8) + len(below) * (_NOTE_PX + 8) + _GAP_PX
    sheet = Image.new("RGB", (width, top + sum(max(layout.height_px for layout in row) + _GAP_PX for row in rows)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = _GAP_PX
    for size, ink, line in [(_HEAD_PX, _INK, head) for head in heads] + [(_NOTE_PX + 2, _FAINT, line) for line in below]:
        draw.text((_GAP_PX, y), line, ink, _font(size))
        y += size + (8 if size == _HEAD_PX else 6)
    y = top
    for row in rows:
        height = max(layout.height_px for layout in row)
        for column, layout in enumerate(row):
            _draw_card(sheet, draw, layout, _GAP_PX + column * (CARD_PX + _GAP_PX), y, height)
        y += height + _GAP_PX
    return sheet


def resize(picture: np.ndarray, scale: float) -> Image.Image:
    """Return the picture (H, W, 3) uint8 resized by `scale`: factors from 1 repeat pixels, factors below 1 average them."""
    height, width = picture.shape[:2]
    kind = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return Image.fromarray(picture).resize((max(1, round(width * scale)), max(1, round(height * scale))), kind)


def abbreviate(text: Text, most: int) -> Line:
    """Cut a card's text to about `most` characters. "…" replaces the middle of long unmarked runs and the end of long marked ones.

    Text and result are lists of runs, (string, whether it is marked).
    """
    joined = join_runs(text)
    if sum(len(run) for run, _ in joined) <= most:
        return joined
    kept = sum(min(len(run), most * 2 // 3) for run, marked in joined if marked)
    plain = max(48, (most - kept) // max(1, sum(not marked for _, marked in joined)))
    marks = max(48, most * 2 // 3 // max(1, sum(marked for _, marked in joined)))
    return [(run[:marks] + "…" * (len(run) > marks) if marked else _elide_middle(run, plain), marked) for run, marked in joined]


def break_lines(text: Text, length_px: Callable[[str], float], width_px: float) -> list[Line]:
    """Break text into lines no wider than `width_px`, at spaces and line ends. A word is broken only if it is wider than a line.

    Text and lines are lists of runs, (string, whether it is marked). `length_px`: function from a string to its width in pixels.
    """
    lines: list[Line] = [[]]
    x = 0.0
    for run, marked in text:
        for word in re.findall(r"\n| +|[^ \n]+", run.replace("\t", "    ")):
            if word == "\n":
                if marked:
                    lines[-1].append((" ", True))
                lines.append([])
                x = 0.0
                continue
            for part in _fitting(word, length_px, width_px):
                if x + length_px(part) > width_px and x > 0:
                    lines.append([])
                    x = 0.0
                    if part.isspace():
                        continue
                lines[-1].append((part, marked))
                x += length_px(part)
    while len(lines) > 1 and not any(part.strip() or marked for part, marked in lines[-1]):
        lines.pop()
    return lines


def drop_middle_lines(lines: list[Line], most: int) -> list[Line]:
    """Replace lines by "…" until at most `most` are left. The middle of the longest stretch of lines without marked text goes first.

    If that is not enough, the end is cut. `most` is at least 1.
    """
    while len(lines) > most:
        unmarked = "".join("-" if any(marked for _, marked in line) else "0" for line in lines)
        longest = max(re.finditer("0*", unmarked), key=lambda stretch: len(stretch[0]))
        spare = min(len(longest[0]) - 2, len(lines) - most + 1)  # its first and last line stay
        if spare < 2:
            return [*lines[: most - 1], [*lines[most - 1], ("…", False)]]
        start = longest.start() + (len(longest[0]) - spare) // 2
        lines = [*lines[:start], [("…", False)], *lines[start + spare :]]
    return lines


@lru_cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size_px)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def _letters(card: Card) -> Iterable[str]:
    texts = [card.title, *(run for run, _ in card.text), *card.notes, *card.notes.values()]
    return (letter for text in texts for letter in text if letter not in "\n\t")


def _lay_out(card: Card) -> _Layout:
    width = PICTURES_PX[0]
    pictures, height = _arrange(card.pictures[:_PICTURES_MAX])
    text = drop_middle_lines(break_lines(abbreviate(card.text, _CHARACTERS_MAX), _font(_TEXT_PX).getlength, width), _LINES_MAX)
    own_notes = (_elide_middle(f"{name} {value}", _CHARACTERS_MAX // 2) for name, value in card.notes.items())
    details = [*describe_pictures(card), *_scale_note(card.pictures[:_PICTURES_MAX]), *own_notes]
    unbroken = [fact.replace(" ", _NO_BREAK) if len(fact) <= _NOTE_CHARACTERS else fact for fact in details]
    notes = [line.replace(_NO_BREAK, " ") for line in _plain_lines("  ·  ".join(unbroken), _NOTE_PX, width)]
    text_y = PADDING_PX + _NOTE_PX + 12 + (height + 12 if height else 0)
    return _Layout(card, pictures, text, notes, text_y, text_y + len(text) * (_TEXT_PX + 6) + 8 + len(notes) * (_NOTE_PX + 5) + PADDING_PX)


def _scale_note(pictures: Sequence[np.ndarray]) -> list[str]:
    """Say how much larger or smaller than stored the pictures are drawn; nothing where they are drawn as they are."""
    scale = fit_pictures(pictures)[1] if pictures else 1.0
    return [] if scale == 1 else [f"shown {scale:.0f} times larger" if scale > 1 else f"shown at {scale:.0%}"]


def _arrange(pictures: Sequence[np.ndarray]) -> tuple[list[tuple[int, int, Image.Image]], int]:
    """Return (x, y, resized picture) of each, and the height of all."""
    if not pictures:
        return [], 0
    columns, scale = fit_pictures(pictures)
    arranged, y = [], 0
    for start in range(0, len(pictures), columns):
        x, row = 0, [resize(picture, scale) for picture in pictures[start : start + columns]]
        for picture in row:
            arranged.append((x, y, picture))
            x += picture.width + BETWEEN_PX
        y += max(picture.height for picture in row) + BETWEEN_PX
    return arranged, y - BETWEEN_PX


def _elide_middle(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most * 2 // 3]} … {text[len(text) - most // 3 :]}"


def _fitting(word: str, length_px: Callable[[str], float], width_px: float) -> Iterable[str]:
    while word:
        end = min(len(word), _RUN_MAX)
        while end > 1 and length_px(word[:end]) > width_px:
            end = max(1, min(end - 1, int(end * width_px / length_px(word[:end]))))
        yield word[:end]
        word = word[end:]


def _plain_lines(text: str, size_px: int, width_px: int) -> list[str]:
    lines = break_lines([(text, False)], _font(size_px).getlength, width_px) if text else []
    return ["".join(run for run, _ in line) for line in lines]


def _draw_card(sheet: Image.Image, draw: ImageDraw.ImageDraw, layout: _Layout, x: int, y: int, height: int) -> None:
    draw.rounded_rectangle((x, y, x + CARD_PX - 1, y + height - 1), 6, _CARD, _BORDER)
    left = x + PADDING_PX
    _draw_title(draw, layout.card, left, y + PADDING_PX - 1)
    for right, down, picture in layout.pictures:
        sheet.paste(picture, (left + right, y + PADDING_PX + _NOTE_PX + 12 + down))
    line_y = y + layout.text_y
    for line in layout.text:
        run_x = float(left)
        for run, marked in line:
            wide = _font(_TEXT_PX).getlength(run)
            if marked:
                draw.rectangle((run_x, line_y - 1, run_x + wide, line_y + _TEXT_PX + 3), _MARKS[layout.card.verdict])
            draw.text((run_x, line_y), run, _INK, _font(_TEXT_PX))
            run_x += wide
        line_y += _TEXT_PX + 6
    line_y += 8
    for note in layout.notes:
        draw.text((left, line_y), note, _FAINT, _font(_NOTE_PX))
        line_y += _NOTE_PX + 5


def _draw_title(draw: ImageDraw.ImageDraw, card: Card, x: int, y: int) -> None:
    if card.verdict is not None:
        _draw_verdict(draw, x, y - 1, card.verdict)
    indent = 0 if card.verdict is None else _VERDICT_PX
    lines = _plain_lines(card.title, _NOTE_PX + 1, PICTURES_PX[0] - indent) or [""]
    draw.text((x + indent, y), lines[0].rstrip() + ("…" if len(lines) > 1 else ""), _FAINT, _font(_NOTE_PX + 1))


def _draw_verdict(draw: ImageDraw.ImageDraw, x: int, y: int, right: bool) -> None:
    """Draw a disc with a tick or a cross: the shape serves those who cannot tell the colours apart."""
    draw.ellipse((x, y, x + 17, y + 17), _RIGHT if right else _WRONG)
    strokes = [[(4, 9), (8, 13), (13, 5)]] if right else [[(5, 5), (12, 12)], [(12, 5), (5, 12)]]
    for stroke in strokes:
        draw.line([(x + across, y + down) for across, down in stroke], "white", 2)
