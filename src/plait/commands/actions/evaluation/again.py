"""Ask a bench again about samples that could not be used: what was wrong may have been mended since."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plait import files
from plait.engine.evaluation import Bench, Row
from plait.engine.held_out_loss import NoUsableSample

Ask = Callable[[Sequence[int]], Sequence[Row]]
"""Answers the samples at these positions; returns a row for each."""


def wanting(row: Row) -> bool:
    """Return whether a row is asked for again: it is `bad` and has no answer. One whose answer alone cannot be scored is kept."""
    return "bad" in row and not row.get("answer")


def kept(bench: Bench, done: Sequence[Row], count: int, portion: int) -> list[Row]:
    """Return the rows of `done` to go on from, of `count` samples that are answered `portion` at a time.

    Where rows depend on the samples beside them, an unfinished last portion with one that could not be used is left out: it gets others.
    """
    last = len(done) // portion * portion
    regroup = not bench.independent and len(done) < count and any(map(wanting, done[last:]))
    return list(done[:last] if regroup else done)


def ask_again(bench: Bench, done: Sequence[Row], portion: int, ask: Ask) -> Iterator[list[Row]]:
    """Ask again for the rows that are wanting, `portion` samples at a time; yields all rows after each.

    Samples whose rows depend on those beside them are asked with all of their portion.
    """
    rows = list(done)
    bad = [position for position, row in enumerate(rows) if wanting(row)]
    if bench.independent:
        groups = [bad[start : start + portion] for start in range(0, len(bad), portion)]
    else:
        starts = sorted({position // portion * portion for position in bad})
        groups = [list(range(start, min(start + portion, len(rows)))) for start in starts]
    for group in groups:
        for position, row in zip(group, ask(group), strict=True):
            rows[position] = row
        yield list(rows)


def raw_rows(run: Callable[[Callable[[Sequence[Row]], None]], object]) -> list[Row]:
    """Return the rows that `run(keep)` hands to `keep`, also where none of their samples can be used."""
    rows: list[Row] = []
    with contextlib.suppress(NoUsableSample):
        run(rows.extend)
    return rows


def rewrite(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` to a `.jsonl` file in place of what it holds, whole or not at all."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    files.write_whole(path, text.encode("utf-8", "backslashreplace"))
