"""What `plait data dedup` does: list the samples of all sources whose picture another sample has, exactly or nearly.

Samples that are held out come first, so that what is left out is always the copy that would be trained on.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.assembly.checked_configuration import open_checked
from plait.assembly.data import open_data
from plait.commands.actions.shard_data import entry
from plait.config.resolved import folder
from plait.config.schema import RunConfig, SourceEntry
from plait.data.selection import copies_file
from plait.data.selection.duplicates import HASHED, HASHES, READ, SEVERAL, Copy, copies
from plait.data.selection.shared_pictures import Picture, hashed, shared_with_held_out
from plait.data.selection.survey import Surveyed, measured
from plait.data.sources.contract import Source
from plait.data.sources.filtered import place_of
from plait.data.sources.open import open_source
from plait.data.sources.part import Part
from plait.errors import BadSample, PlaitError, sample_errors
from plait.training.planning.entries import held_out_entries, training_entries

log = logging.getLogger(__name__)

_READERS = 8
"""Threads that read and hash pictures."""


@dataclass(frozen=True)
class Searched:
    """One source that is searched: opened without filter, and which of its samples are held out. `place`: where it lies."""

    source: Source
    held_out: np.ndarray
    place: str
    cache: str | Path | None


def dedup(what: str, out: Path, *, distance: int, same_text: bool, split: str, settings: Sequence[str] = ()) -> None:
    """Write the copies among the samples of `what` to the file `out`, and tell how many there are.

    `what`: a configuration or run, whose training and held-out data are searched together, or a source as `plait data shard` takes it, of
    `split`, with `settings` such as "limit=100". `distance`: bits of the perceptual hash that may differ; `same_text`: copies have the
    same text too. Raises PlaitError for a wrong argument or source, and for a file `out` that is no such file.
    """
    own = Path(what).suffix in (".yaml", ".yml") or (Path(what) / "config.yaml").is_file()
    searched = list(_of_configuration(Path(what), settings) if own else _of_source(entry(what, settings), split))
    if out.exists() and not copies_file.is_one(out):
        raise PlaitError(f"{out} is there already, and is no file of `plait data dedup`: name a new file")
    rows = [_rows(one) for one in searched]
    held_out = np.concatenate([one.held_out for one in searched])
    numbers = np.repeat(np.arange(len(searched)), [len(one.source) for one in searched])
    indices = np.concatenate([np.arange(len(one.source)) for one in searched])
    order = np.argsort(~held_out, kind="stable")
    every = np.concatenate(rows)[order]
    held_out = held_out[order]
    found = copies(every, distance, same_text=same_text)
    leaked = {copy.row for copy in found if held_out[copy.of]}
    pictures = _pictures(searched, rows, order) if held_out.any() and not held_out.all() else []
    shared = [copy for copy in shared_with_held_out(pictures, every, held_out, distance, same_text=same_text) if copy.row not in leaked]
    if shared:
        left = every.copy()
        left[[copy.row for copy in shared], 0] = 0  # they are left out: no other sample is a copy of one of them
        found = copies(left, distance, same_text=same_text)

    def sample(row: int) -> dict[str, Any]:
        number, index = int(numbers[order[row]]), int(indices[order[row]])
        return {"source": number, "index": index, "id": _id(searched[number].source, index), "held_out": bool(held_out[row])}

    sources = [{"name": one.source.name, "fingerprint": one.source.fingerprint, "samples": len(one.source)} for one in searched]
    header = {"distance": distance, "same_text": same_text, "sources": sources}
    rows_of_file = [{**sample(copy.row), "of": sample(copy.of), "distance": copy.distance} for copy in found]
    rows_of_file += [{**sample(copy.row), "of": sample(copy.of), "distance": copy.distance, "shared": True} for copy in shared]
    copies_file.write(out, header, sorted(rows_of_file, key=lambda row: (row["source"], row["index"])))
    _tell(searched, every, found, held_out, distance)
    if shared:
        same = sum(copy.distance is None for copy in shared)
        log.info(
            f"held out too: {len(shared):,} more training samples have one of the pictures, or the clip, of a held-out sample "
            f"({same:,} exact, {len(shared) - same:,} near)"
        )
    log.info(f"written to {out}; on a source, `filter: {{dedup: {out}}}` leaves its copies out")


def _of_source(row: SourceEntry, split: str) -> Iterator[Searched]:
    source = open_source(_whole(row), seed=0, split=split)
    yield Searched(source, np.zeros(len(source), bool), place_of(row), None)


def _of_configuration(path: Path, settings: Sequence[str]) -> Iterator[Searched]:
    """Yield each source of all stages of a configuration once, those of held-out data too."""
    seen: set[tuple[str, str]] = set()
    for view in open_checked(path, settings).stages:
        config = view.config
        for split, entries in (("train", training_entries(config)), ("validation", held_out_entries(config))):
            for row in entries:
                source = open_data(config, [_whole(row)], split)[0]
                if (source.fingerprint, place_of(row)) not in seen:
                    seen.add((source.fingerprint, place_of(row)))
                    yield Searched(source, _held_out(source, config, split, row), place_of(row), folder(config.data.cache))


def _held_out(source: Source, config: RunConfig, split: str, row: SourceEntry) -> np.ndarray:
    """Return which samples of the source `row` are held out: all of the split validation, of training data a share, if there is one."""
    held_out, share = np.full(len(source), split == "validation"), config.data.share_of(row)
    if split == "train" and share is not None:
        part = Part(source, share, config.seed, held_out=True)
        held_out[part.places(np.arange(len(part)))] = True
    return held_out


def _whole(row: SourceEntry) -> SourceEntry:
    return row.model_copy(update={"filter": None, "rollout": None})


def _rows(searched: Searched) -> np.ndarray:
    surveyed = Surveyed(searched.source, searched.place, searched.cache)
    return measured(surveyed, [HASHES], what_for="its duplicates")[HASHES.name]


def _pictures(searched: Sequence[Searched], rows: Sequence[np.ndarray], order: np.ndarray) -> list[tuple[int, Picture]]:
    """Return (row in `order`, hashes) of each picture of all samples; [] where none has several. `rows`: the HASHES of each source."""
    if not any((one[:, 0] & SEVERAL).any() for one in rows):
        return []
    row_of = np.argsort(order)
    found, first = list[tuple[int, Picture]](), 0
    for one, theirs in zip(searched, rows, strict=True):
        if count := int(np.count_nonzero(theirs[:, 0] & SEVERAL)):
            log.info(f"{one.source.name}: hashing each picture of {count:,} samples of several, which held-out samples may have")
        found += [(int(row_of[first + index]), picture) for index, picture in hashed(one.source, theirs, _READERS)]
        first += len(theirs)
    return found


def _id(source: Source, index: int) -> str:
    try:
        with sample_errors:
            return str(source.peek(index)["id"])
    except BadSample:
        return ""


def _tell(searched: Sequence[Searched], rows: np.ndarray, found: Sequence[Copy], held_out: np.ndarray, distance: int) -> None:
    """Log what was found. `rows`: the hashes of all samples, those held out first, as are `held_out` and the rows of `found`."""
    unread = int(np.count_nonzero(~(rows[:, 0] & READ).astype(bool)))
    by_file = int(np.count_nonzero((rows[:, 0] & READ) & ((rows[:, 0] & HASHED) == 0)))
    exact = sum(copy.distance is None for copy in found)
    names = ", ".join(f"{one.source.name} {len(one.source):,}" for one in searched)
    log.info(f"{names} samples: {exact:,} exact copies, {len(found) - exact:,} near copies ({distance} of 64 bits or fewer differ)")
    if unread:
        log.info(f"{unread:,} samples have no picture that can be read, and are in no group")
    if by_file:
        log.info(f"{by_file:,} samples, of one grey or of several pictures, were compared by their files alone")
    leaked = [copy for copy in found if held_out[copy.of] and not held_out[copy.row]]
    if leaked:
        same = sum(copy.distance is None for copy in leaked)
        log.info(
            f"held out too: {len(leaked):,} training samples are copies of held-out ones ({same:,} exact, {len(leaked) - same:,} near)"
        )
