"""A contact sheet: pictures with the text that belongs to them, as one PNG to look at and one HTML page to search and to send on.

Small pictures are enlarged by a whole factor without smoothing, so that every pixel of theirs can be judged; large ones are shrunk to fit.
Marked text (what is supervised, or what a model answered) stands on colour. The PNG uses Pillow's own font, which knows little more than
ASCII: other letters appear as boxes there, and right in the page. The same cards give the same bytes.
"""

import base64
import html
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from plait.errors import PlaitError
from plait.files import write_whole

Text = Sequence[tuple[str, bool]]
"""Pieces of text, each with whether it is marked."""

_CARD_PX, _PADDING_PX, _GAP_PX = 380, 14, 14  # width of a card, inside its border, between cards
_PICTURES_PX = (_CARD_PX - 2 * _PADDING_PX, 420)  # width and height that all pictures of a card share
_BETWEEN_PX = 4  # between pictures of a card
_PICTURES_MAX = 24  # of one card, in the PNG
_COLUMNS_MAX = 4
_LINES_MAX = 14
_CHARACTERS_MAX = 640
_RUN_MAX = 256  # characters measured at once
_NOTE_CHARACTERS, _NO_BREAK = 48, "\u00a0"  # a note this short stays on one line
_TEXT_PX, _NOTE_PX, _HEAD_PX = 15, 12, 24
_INK, _FAINT, _PAPER, _CARD, _BORDER, _MARK = "#1c1f24", "#646b75", "#eef0f3", "#ffffff", "#d5d9df", "#ffe08a"
_RIGHT, _WRONG = "#1a7f43", "#c62f2f"
_PLAIN_FONT = frozenset(map(chr, range(32, 127))) | set("·…“”‘’±£§")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Card:
    """One sample: its pictures (H, W, 3 uint8), its text, whether it came out right (None: nobody asked), and facts about it."""

    pictures: Sequence[np.ndarray]
    text: Text
    title: str
    verdict: bool | None = None
    notes: dict[str, str] = field(default_factory=dict)


def write(folder: Path, title: str, cards: Sequence[Card], *, legend: str = "", facts: Sequence[tuple[str, str]] = ()) -> tuple[Path, Path]:
    """Write `sheet.png` and `page.html` into `folder` and return their paths.

    `legend` says what marked text means; `facts` are rows about all samples, shown above the cards. Raises PlaitError without cards.
    """
    if not cards:
        raise PlaitError(f"{title!r} has no sample to show: ask for at least one")
    for card in cards:
        for picture in card.pictures:
            assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3, f"{picture.dtype} {picture.shape} is not HWC"
    cards = [_clean_card(card) for card in cards]
    lines = [_clean(line) for line in (count(cards), legend) if line]
    sheet, page = folder / "sheet.png", folder / "page.html"
    write_whole(sheet, _png(_sheet(_clean(title), lines, cards)))
    write_whole(page, _page(_clean(title), lines, [(_clean(name), _clean(value)) for name, value in facts], cards))
    return sheet, page


def count(cards: Sequence[Card]) -> str:
    """How many cards there are, and how many are right."""
    judged = [card.verdict for card in cards if card.verdict is not None]
    return f"{len(cards)} cards" + (f", {sum(judged)} of {len(judged)} right" if judged else "")


def _clean_card(card: Card) -> Card:
    notes = {_clean(name): _clean(value) for name, value in card.notes.items()}
    return Card(card.pictures, [(_clean(piece), bool(marked)) for piece, marked in card.text], _clean(card.title), card.verdict, notes)


def _clean(text: str) -> str:
    """Text that any font and any file can hold: lone surrogates and control characters become the replacement character."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def _png(picture: Image.Image | np.ndarray) -> bytes:
    body = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(body, "PNG")
    return body.getvalue()


# The PNG.


@lru_cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size_px)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


@dataclass(frozen=True)
class _Drawn:
    """A card before it is drawn: its pictures with their places, its lines of text and notes, and its height."""

    card: Card
    pictures: list[tuple[int, int, Image.Image]]
    text: list[list[tuple[str, bool]]]
    notes: list[str]
    text_y: int
    height_px: int


def _sheet(title: str, lines: Sequence[str], cards: Sequence[Card]) -> Image.Image:
    columns = -(-len(cards) // -(-len(cards) // _COLUMNS_MAX))  # rows of equal length, as far as possible
    drawn = [_lay_out(card) for card in cards]
    rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    width = max(columns, 2) * (_CARD_PX + _GAP_PX) + _GAP_PX
    below = [part for line in lines for part in _plain_lines(line, _NOTE_PX + 2, width - 2 * _GAP_PX)]
    if any(letter not in _PLAIN_FONT for card in cards for letter in _all_text(card)):
        below.append("A box stands for a letter that this picture's font lacks; the page shows it.")
    heads = _plain_lines(title, _HEAD_PX, width - 2 * _GAP_PX)[:2]
    top = _GAP_PX + len(heads) * (_HEAD_PX + 8) + len(below) * (_NOTE_PX + 8) + _GAP_PX
    sheet = Image.new("RGB", (width, top + sum(max(one.height_px for one in row) + _GAP_PX for row in rows)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = _GAP_PX
    for size, ink, line in [(_HEAD_PX, _INK, head) for head in heads] + [(_NOTE_PX + 2, _FAINT, line) for line in below]:
        draw.text((_GAP_PX, y), line, ink, _font(size))
        y += size + (8 if size == _HEAD_PX else 6)
    y = top
    for row in rows:
        height = max(one.height_px for one in row)
        for column, one in enumerate(row):
            _draw_card(sheet, draw, one, _GAP_PX + column * (_CARD_PX + _GAP_PX), y, height)
        y += height + _GAP_PX
    return sheet


def _all_text(card: Card) -> Iterable[str]:
    everything = [card.title, *(piece for piece, _ in card.text), *card.notes, *card.notes.values()]
    return (letter for text in everything for letter in text if letter not in "\n\t")


def _lay_out(card: Card) -> _Drawn:
    inner = _PICTURES_PX[0]
    pictures, height = _place(card.pictures[:_PICTURES_MAX])
    text = fewer(wrap(shorten(card.text, _CHARACTERS_MAX), _font(_TEXT_PX).getlength, inner), _LINES_MAX)
    stated = (_middle_out(f"{name} {value}", _CHARACTERS_MAX // 2) for name, value in card.notes.items())
    facts = [*_sizes(card.pictures), *_factor(card.pictures[:_PICTURES_MAX]), *stated]
    whole = [fact.replace(" ", _NO_BREAK) if len(fact) <= _NOTE_CHARACTERS else fact for fact in facts]
    notes = [line.replace(_NO_BREAK, " ") for line in _plain_lines("  ·  ".join(whole), _NOTE_PX, inner)]
    text_y = _PADDING_PX + _NOTE_PX + 12 + (height + 12 if height else 0)
    return _Drawn(card, pictures, text, notes, text_y, text_y + len(text) * (_TEXT_PX + 6) + 8 + len(notes) * (_NOTE_PX + 5) + _PADDING_PX)


def _sizes(pictures: Sequence[np.ndarray]) -> list[str]:
    """Width x height of the pictures as they are, equal ones counted."""
    sizes = [f"{picture.shape[1]}x{picture.shape[0]} px" for picture in pictures]
    kinds = list(dict.fromkeys(sizes))
    return [f"{sizes.count(kind)} of {kind}" if sizes.count(kind) > 1 else kind for kind in kinds]


def _factor(pictures: Sequence[np.ndarray]) -> list[str]:
    """How much larger or smaller than they are the pictures are drawn."""
    scale = _scale(pictures)[1] if pictures else 1.0
    return [] if scale == 1 else [f"shown {scale:.0f} times larger" if scale > 1 else f"shown at {scale:.0%}"]


def _scale(pictures: Sequence[np.ndarray]) -> tuple[int, float]:
    """In how many columns the pictures are drawn, and at what scale: a whole number, or less than 1.

    As many columns as still show them at three quarters of the best scale, and not shrunk needlessly: rows stay together.
    """
    tallest, widest = max(p.shape[0] for p in pictures), max(p.shape[1] for p in pictures)

    def scale(columns: int) -> float:
        rows = -(-len(pictures) // columns)
        wide, high = ((px + _BETWEEN_PX) / n - _BETWEEN_PX for px, n in zip(_PICTURES_PX, (columns, rows), strict=True))
        fits = min(wide / widest, high / tallest)
        return float(int(fits)) if fits >= 1 else fits

    scales = [scale(columns + 1) for columns in range(len(pictures))]
    least = max(min(1.0, max(scales)), 0.75 * max(scales))
    columns = max(place + 1 for place, one in enumerate(scales) if one >= least)
    return columns, scales[columns - 1]


def _place(pictures: Sequence[np.ndarray]) -> tuple[list[tuple[int, int, Image.Image]], int]:
    """(x, y, picture as shown) of each, and the height of all."""
    if not pictures:
        return [], 0
    columns, scale = _scale(pictures)
    placed, y = [], 0
    for start in range(0, len(pictures), columns):
        x, row = 0, [enlarge(picture, scale) for picture in pictures[start : start + columns]]
        for picture in row:
            placed.append((x, y, picture))
            x += picture.width + _BETWEEN_PX
        y += max(picture.height for picture in row) + _BETWEEN_PX
    return placed, y - _BETWEEN_PX


def enlarge(picture: np.ndarray, scale: float) -> Image.Image:
    """A picture at `scale`: whole factors repeat pixels, factors below 1 average them."""
    height, width = picture.shape[:2]
    kind = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return Image.fromarray(picture).resize((max(1, round(width * scale)), max(1, round(height * scale))), kind)


def shorten(text: Text, most: int) -> list[tuple[str, bool]]:
    """Neighbours of one kind joined, and the whole cut to about `most` characters: what is not marked loses its middles first."""
    joined: list[tuple[str, bool]] = []
    for piece, marked in text:
        if joined and joined[-1][1] == marked:
            joined[-1] = (joined[-1][0] + piece, marked)
        elif piece:
            joined.append((piece, marked))
    kept = sum(min(len(piece), most * 2 // 3) for piece, marked in joined if marked)
    plain = max(48, (most - kept) // max(1, sum(not marked for _, marked in joined)))
    marks = max(48, most * 2 // 3 // max(1, sum(marked for _, marked in joined)))
    if sum(len(piece) for piece, _ in joined) <= most:
        return joined
    return [(piece[:marks] + "…" * (len(piece) > marks) if marked else _middle_out(piece, plain), marked) for piece, marked in joined]


def _middle_out(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most * 2 // 3]} … {text[len(text) - most // 3 :]}"


def wrap(text: Text, length_px: Callable[[str], float], width_px: float) -> list[list[tuple[str, bool]]]:
    """Lines of (run, marked) no wider than `width_px`: broken at spaces and line ends, inside a word only when it is wider than a line."""
    lines: list[list[tuple[str, bool]]] = [[]]
    x = 0.0
    for piece, marked in text:
        for word in re.findall(r"\n| +|[^ \n]+", piece.replace("\t", "    ")):
            if word == "\n":
                if marked:
                    lines[-1].append((" ", True))
                lines.append([])
                x = 0.0
                continue
            for run in _fitting(word, length_px, width_px):
                if x + length_px(run) > width_px and x > 0:
                    lines.append([])
                    x = 0.0
                    if run.isspace():
                        continue
                lines[-1].append((run, marked))
                x += length_px(run)
    while len(lines) > 1 and not any(run.strip() or marked for run, marked in lines[-1]):
        lines.pop()
    return lines


def fewer(lines: list[list[tuple[str, bool]]], most: int) -> list[list[tuple[str, bool]]]:
    """At most `most` lines: the middle of the longest stretch without marks goes first, the end last."""
    while len(lines) > most:
        without = "".join("-" if any(marked for _, marked in line) else "0" for line in lines)
        longest = max(re.finditer("0*", without), key=lambda found: len(found[0]))
        spare = min(len(longest[0]) - 2, len(lines) - most + 1)  # its first and last line stay
        if spare < 2:
            return [*lines[: most - 1], [*lines[most - 1], ("…", False)]]
        start = longest.start() + (len(longest[0]) - spare) // 2
        lines = [*lines[:start], [("…", False)], *lines[start + spare :]]
    return lines


def _fitting(word: str, length_px: Callable[[str], float], width_px: float) -> Iterable[str]:
    while word:
        end = min(len(word), _RUN_MAX)
        while end > 1 and length_px(word[:end]) > width_px:
            end = max(1, min(end - 1, int(end * width_px / length_px(word[:end]))))
        yield word[:end]
        word = word[end:]


def _plain_lines(text: str, size_px: int, width_px: int) -> list[str]:
    return ["".join(run for run, _ in line) for line in wrap([(text, False)], _font(size_px).getlength, width_px)] if text else []


def _draw_card(sheet: Image.Image, draw: ImageDraw.ImageDraw, one: _Drawn, x: int, y: int, height: int) -> None:
    draw.rounded_rectangle((x, y, x + _CARD_PX - 1, y + height - 1), 6, _CARD, _BORDER)
    left, verdict = x + _PADDING_PX, one.card.verdict
    if verdict is not None:
        _draw_verdict(draw, left, y + _PADDING_PX - 2, verdict)
    room = _PICTURES_PX[0] - (24 if verdict is not None else 0)
    title = _plain_lines(one.card.title, _NOTE_PX + 1, room) or [""]
    place = (left + (24 if verdict is not None else 0), y + _PADDING_PX - 1)
    draw.text(place, title[0].rstrip() + ("…" if len(title) > 1 else ""), _FAINT, _font(_NOTE_PX + 1))
    for right, down, picture in one.pictures:
        sheet.paste(picture, (left + right, y + _PADDING_PX + _NOTE_PX + 12 + down))
    at = y + one.text_y
    for line in one.text:
        across = float(left)
        for run, marked in line:
            wide = _font(_TEXT_PX).getlength(run)
            if marked:
                draw.rectangle((across, at - 1, across + wide, at + _TEXT_PX + 3), _MARK)
            draw.text((across, at), run, _INK, _font(_TEXT_PX))
            across += wide
        at += _TEXT_PX + 6
    at += 8
    for note in one.notes:
        draw.text((left, at), note, _FAINT, _font(_NOTE_PX))
        at += _NOTE_PX + 5


def _draw_verdict(draw: ImageDraw.ImageDraw, x: int, y: int, right: bool) -> None:
    """A disc with a tick or a cross: the shape says it to those who cannot tell the colours."""
    draw.ellipse((x, y, x + 17, y + 17), _RIGHT if right else _WRONG)
    strokes = [[(4, 9), (8, 13), (13, 5)]] if right else [[(5, 5), (12, 12)], [(12, 5), (5, 12)]]
    for stroke in strokes:
        draw.line([(x + across, y + down) for across, down in stroke], "white", 2)


# The page.


def _page(title: str, lines: Sequence[str], facts: Sequence[tuple[str, str]], cards: Sequence[Card]) -> str:
    name, style = html.escape(title), Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    rows = "".join(f"<tr><th>{html.escape(what)}</th><td>{html.escape(value)}</td></tr>\n" for what, value in facts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{style}</style>\n</head>\n<body>\n<header>\n<h1>{name}</h1>\n"
        + "".join(f"<p>{html.escape(line)}</p>\n" for line in lines)
        + (f"<table>\n{rows}</table>\n" if rows else "")
        + "</header>\n<main>\n"
        + "".join(map(_article, cards))
        + "</main>\n</body>\n</html>\n"
    )


def _article(card: Card) -> str:
    verdict = {None: "", True: '<span class="right">✓ right</span> ', False: '<span class="wrong">✗ wrong</span> '}[card.verdict]
    notes = [("pictures" if len(card.pictures) > 1 else "picture", ", ".join(_sizes(card.pictures)))] if card.pictures else []
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in [*notes, *card.notes.items()])
    scale = _scale(card.pictures)[1] if card.pictures else 1.0
    pictures = "".join(_image(picture, scale) for picture in card.pictures)
    text = "".join(f"<mark>{_lines_shown(piece)}</mark>" if marked else html.escape(piece) for piece, marked in shorten(card.text, 1 << 62))
    return (
        f"<article>\n<h2>{verdict}{html.escape(card.title)}</h2>\n"
        + (f"<figure>{pictures}</figure>\n" if pictures else "")
        + f'<p class="text">{text}</p>\n'
        + (f"<dl>{rows}</dl>\n" if rows else "")
        + "</article>\n"
    )


def _image(picture: np.ndarray, scale: float) -> str:
    height, width = picture.shape[:2]
    kind = ' class="small"' if scale >= 1 else ""
    shown = f'width="{max(1, round(width * scale))}" height="{max(1, round(height * scale))}"'
    data = base64.b64encode(_png(picture)).decode()
    image = f'<img{kind} alt="{width} x {height} pixels" {shown} src="data:image/png;base64,{data}">'
    return image if scale >= 1 else f'<label title="show whole"><input type="checkbox" aria-label="show whole">{image}</label>'


def _lines_shown(piece: str) -> str:
    return html.escape(piece).replace("\n", '<span class="end">\n</span>')
