"""Render the page of one run, or of several beside each other: charts as inline SVG, tables, and answers. One file that loads nothing.

What is on it is chosen in actions/report; here it is laid out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from plait.commands.pages.card import clean_name, clean_text
from plait.commands.pages.chart import SMALL, WIDE, Chart, Drawing, Frame, draw
from plait.commands.pages.page import PagePicture, render


@dataclass(frozen=True)
class Table:
    """A table of text. `head`: names of the columns; `figures`: which columns, by their places, hold figures, and are aligned right.

    `colours`: the palette's number for the first cell of each row, for rows that stand for lines of charts; () for none.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: frozenset[int] = frozenset()
    note: str = ""
    colours: Sequence[int] = ()


class Part(NamedTuple):
    """A part of a whole: its name, its share of it, from 0 to 1, and its size as text."""

    name: str
    share: float
    text: str


class Tile(NamedTuple):
    """A figure shown large: its name, its value, and a few words on it."""

    name: str
    value: str
    about: str


class Shot(NamedTuple):
    """Pictures or answers of one moment. `title`: such as "step 400"; `pairs`: (name, text, kind), kind as of an answer."""

    title: str
    pictures: Sequence[PagePicture]
    pairs: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Block:
    """What stands below one heading, in this order. `anchor`: its name in links. `wide`: one chart over the whole width.

    `parts`: shares of a whole, drawn as one bar; `details`: (name, text); `text`: as it is, folded away under `summary`.
    """

    title: str
    anchor: str
    note: str = ""
    wide: Chart | None = None
    charts: Sequence[Chart] = ()
    parts: Sequence[Part] = ()
    details: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    shots: Sequence[Shot] = ()
    summary: str = ""
    text: str = ""


@dataclass(frozen=True)
class RunPart:
    """One run's part of a page. `lines`: sentences below its name; `folded`: only its name is shown at first; `colour`: of its lines."""

    name: str
    anchor: str
    lines: Sequence[str]
    tiles: Sequence[Tile]
    frame: Frame
    blocks: Sequence[Block]
    folded: bool = False
    colour: int | None = None


@dataclass(frozen=True)
class _Laid:
    """A block whose charts are laid out. `wide`: for wide and for narrow screens."""

    block: Block
    wide: tuple[Drawing, Drawing] | None
    charts: Sequence[Drawing]
    tables: Sequence[Table]


@dataclass(frozen=True)
class _LaidRun:
    run: RunPart
    blocks: Sequence[_Laid] = field(default_factory=list)


def render_report(title: str, lines: Sequence[str], above: RunPart | None, runs: Sequence[RunPart]) -> str:
    """Return the page as HTML text. `lines`: sentences below the title; `above`: what compares the runs, None for one run alone."""
    return render(
        "report.html.j2",
        styles=("report.css",),
        title=clean_name(title),
        lines=[clean_text(line) for line in lines],
        above=None if above is None else _laid_run(above),
        runs=[_laid_run(run) for run in runs],
    )


def _laid_run(run: RunPart) -> _LaidRun:
    laid = [_laid(block, run.frame) for block in run.blocks]
    return _LaidRun(run, [one for one in laid if one is not None])


def _laid(block: Block, frame: Frame) -> _Laid | None:
    """Lay out the charts of a block and clean its text; None where nothing would be below its heading."""
    wide = (draw(block.wide, frame, WIDE), draw(block.wide, frame, SMALL)) if block.wide else (None, None)
    charts = [drawing for chart in block.charts if (drawing := draw(chart, frame)) is not None]
    pair = (wide[0], wide[1]) if wide[0] is not None and wide[1] is not None else None
    if not (pair or charts or block.parts or block.details or block.tables or block.shots or block.text):
        return None
    return _Laid(block, pair, charts, [_clean(table) for table in block.tables])


def _clean(table: Table) -> Table:
    """Return a table with control characters escaped."""
    rows = [[clean_name(cell) for cell in row] for row in table.rows]
    return Table(table.title, table.head, rows, table.figures, clean_text(table.note), table.colours)
