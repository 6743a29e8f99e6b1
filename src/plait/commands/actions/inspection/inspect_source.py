"""What `plait data inspect SOURCE` does: measure the data at a path or address, without a model or a configuration."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from plait import files
from plait.commands.actions.inspection import link_figures, source_figures
from plait.commands.actions.shard_data import entry, show_progress
from plait.commands.pages.figures import Section, render_figures
from plait.data import addresses
from plait.data.figures import measure
from plait.data.figures.measure import CountTokens, Figures
from plait.data.link_lists.refusal import LinkList
from plait.data.sources.contract import Source
from plait.data.sources.open import open_source
from plait.engine.checkpoints import folders
from plait.engine.monitoring.json_output import finite, show_json
from plait.errors import PlaitError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InspectOptions:
    """How a source is measured. `split`: of it; `figures`: samples to measure at most (None: measure.py says how many).

    `headers_only`: do not decode pictures; `tokenizer`: a tokenizer.json, or a folder with one, that counts tokens. `held_out`: another
    source, which is compared with it. `as_json`: print one JSON object. `out`: a new folder for the page, None: `inspect`, ...
    """

    split: str = "train"
    figures: int | None = None
    headers_only: bool = False
    tokenizer: Path | None = None
    held_out: str | None = None
    as_json: bool = False
    out: Path | None = None


def page_folder(out: Path | None) -> Path:
    """Return the folder of a page: `out`, else `inspect` or the first of inspect-2, ... that there is not.

    Raises PlaitError for one that is not empty.
    """
    if out is not None and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise PlaitError(f"{out} is not empty; give --out a new folder" if out.is_dir() else f"{out} is no folder; give --out a new one")
    return out or folders.unused(Path("inspect"))


def inspect(what: str, settings: Sequence[str], options: InspectOptions) -> None:
    """Measure the source `what`, with `settings` of it such as "limit=100"; print figures and write a page.

    A list of links is measured as such. Raises PlaitError for a source that cannot be opened, and a folder that is not empty.
    """
    out = page_folder(options.out)
    row = entry(what, settings)
    try:
        source = open_source(row, seed=0, split=options.split)
    except PlaitError as error:
        if not isinstance(error.__cause__, LinkList) or row.path is None:  # of a list on the Hub, nothing is fetched
            raise
        section, told = link_figures.measure(what, row, options.figures)
        _finish(out, f"{section.title}: a list of links", [str(error.__cause__)], replace(section, title=""), told, options)
        return
    count = None if options.tokenizer is None else _tokens(options.tokenizer)
    figures = measured(source, options, count)
    rows, told = source_figures.details(figures, source), source_figures.as_dict(figures, source)
    if options.held_out is not None:
        other = open_source(entry(options.held_out, ()), seed=0, split="validation")
        theirs = measured(other, InspectOptions(figures=options.figures, headers_only=options.headers_only), None)
        rows += source_figures.shared(figures, theirs)
        told["held_out"] = {
            "name": other.name,
            "compared": theirs.usable,
            "samples": figures.same_samples.shared(theirs.same_samples)[0],
            "pictures": figures.same_pictures.shared(theirs.same_pictures)[0],
            "clips": figures.same_clips.shared(theirs.same_clips)[0],
            "near_copies": len(figures.alike.like(theirs.alike)),
        }
    section = source_figures.section(figures, source, rows)
    _finish(out, f"{addresses.shown(what)}: what is in it", [], replace(section, details=rows), told, options)


def _finish(out: Path, title: str, sentences: Sequence[str], section: Section, told: Mapping[str, Any], options: InspectOptions) -> None:
    """Write page and figures, and print these. `sentences`: below the title; `told`: the figures as JSON values."""
    page = out / "page.html"
    shown = replace(section, details=[row for row in section.details if row[0]])  # others are in its tables
    files.write_whole(page, render_figures(title, sentences, [shown]))
    if not write_json(out, [told], pages=[page], shown=options.as_json):
        log.info("\n".join([title, *lines(section.details), *sentences, f"written to {page} and {out / 'figures.json'}"]))


def write_json(
    out: Path,
    sources: Sequence[Mapping[str, Any]],
    *,
    pages: Sequence[Path],
    shown: bool,
    look: Sequence[Mapping[str, Any]] = (),
    refused: Sequence[str] = (),
) -> bool:
    """Write `out`/figures.json, and print the same object where it is to be `shown`. Returns whether it was.

    `sources`: the figures of each; `look`: what a run would say of them before its first step; `refused`: why it would not start.
    """
    told = {"sources": list(sources), "look": list(look), "refused": list(refused), "pages": [str(page) for page in pages]}
    files.write_json(out / "figures.json", finite(told))
    if shown:
        show_json(told)
    return shown


def measured(source: Source, options: InspectOptions, count: CountTokens | None) -> Figures:
    """Measure a source, with a progress bar on standard error."""
    with show_progress() as report:
        return measure.measure(
            source,
            measure.chosen(source, options.figures),
            threads=max(2, os.cpu_count() or 1),
            headers_only=options.headers_only,
            count_tokens=count,
            report=report,
        )


def lines(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return (name, text) pairs as indented lines in two columns."""
    wide = max(len(name) for name, _ in rows)
    return [f"  {name:<{wide}}  {text}" for name, text in rows]


def _tokens(path: Path) -> CountTokens:
    """Return a function that counts the tokens of a text. Raises PlaitError where there is no tokenizer."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise PlaitError(f"--tokenizer={path}: there is no {file}")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        raise PlaitError(f"--tokenizer={path}: {file} is no tokenizer: {str(error).splitlines()[0]}") from error
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
