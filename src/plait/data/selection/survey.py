"""Measure every sample of a source once, and keep the numbers in the cache folder, beside the indices of its files.

The numbers are known by the source's fingerprint and what is measured. One process takes them while the others wait; they are written in
parts, so that the same command goes on after a kill.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from plait.data.formats import index
from plait.data.remote_files import one_at_a_time
from plait.data.selection.measures import Measure, Sample
from plait.errors import BadSample, PlaitError, sample_errors
from plait.files import remove, write_whole
from plait.keys import key

log = logging.getLogger(__name__)

_AT_ONCE = 4096  # samples of a part
_READERS = 16  # threads that read a source which may wait for a network
_FIRST_S, _REPORT_S = 5.0, 60.0  # until the first line about one survey, and between further ones

Measured = Mapping[str, np.ndarray]
"""Numbers by the name of the measure, each (samples, columns). A row of NaN (of whole numbers: zeros): the sample cannot be measured."""


class Samples(Protocol):
    """What is measured: a source (data/sources/contract.py)."""

    name: str
    fingerprint: str
    may_wait: bool

    def __len__(self) -> int: ...

    def peek(self, index: int) -> Sample:
        """Return sample `index`, a dict. Raises BadSample if it is broken."""


@runtime_checkable
class TextSamples(Protocol):
    """A source that can tell of a sample without reading its pictures."""

    def peek_text(self, index: int) -> Sample:
        """Return sample `index` with empty pictures. Raises BadSample if it is broken."""


@dataclass(frozen=True)
class Surveyed:
    """The source whose samples are measured, and where it lies: two copies of a list may have one fingerprint and other pictures."""

    source: Samples
    place: str
    cache: str | Path | None
    """The folder for the numbers; None: the user's."""

    def path(self, measures: Sequence[Measure], ending: str) -> Path:
        """Return the path of the numbers of these measures together, whose name is a hash of what decides them."""
        names = [f"{measure.name} {measure.dtype}" for measure in measures]
        hashed = key(self.source.fingerprint, self.place, len(self.source), *names)
        return index.cache_folder(self.cache) / "measured" / f"{hashed:016x}{ending}"

    def read(self, path: Path, measures: Sequence[Measure], samples: int) -> dict[str, np.ndarray] | None:
        """Return the arrays of a file of numbers; None if it is missing, damaged, or of something else."""
        head = index.read_head(path)
        if head is None or head.facts != self._facts(measures, samples):
            return None
        try:
            arrays = index.map_arrays(head)
        except PlaitError:
            return None
        return {measure.name: arrays[str(number)].reshape(-1, measure.columns) for number, measure in enumerate(measures)}

    def write(self, path: Path, measures: Sequence[Measure], rows: Mapping[str, np.ndarray]) -> None:
        """Write a file of numbers, whole or not at all."""
        arrays = {str(number): rows[measure.name].reshape(-1) for number, measure in enumerate(measures)}
        write_whole(path, index.pack({}, self._facts(measures, len(rows[measures[0].name])), arrays))

    def _facts(self, measures: Sequence[Measure], samples: int) -> dict[str, Any]:
        return {"source": self.source.fingerprint, "measures": [measure.name for measure in measures], "samples": samples}


def measured(surveyed: Surveyed, measures: Sequence[Measure], *, what_for: str) -> Measured:
    """Return the numbers of each measure for all samples of a source, memory-mapped; they are taken unless the cache has them.

    `what_for`: ends the log line about a long survey, such as "its filter (expr)". Raises PlaitError if they cannot be written.
    """
    source = surveyed.source
    paths = {measure.name: surveyed.path([measure], ".idx") for measure in measures}

    def read(measure: Measure) -> dict[str, np.ndarray] | None:
        return surveyed.read(paths[measure.name], [measure], len(source))

    if missing := [measure for measure in measures if read(measure) is None]:
        first = paths[missing[0].name]
        try:
            first.parent.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(first, f"{source.name}: another process is measuring its samples, which is waited for"):
                if missing := [measure for measure in missing if read(measure) is None]:
                    _take(surveyed, missing, paths, what_for)
        except OSError as error:
            cure = "free space there, or set data.cache to a folder that can be written"
            raise PlaitError(f"cannot write {first}, what was measured of {source.name}: {error.strerror}; {cure}") from error
    arrays: dict[str, np.ndarray] = {}
    for measure in measures:
        rows = read(measure)
        if rows is None:
            raise PlaitError(f"{paths[measure.name]} cannot be read, though it was written just now: mend the disk, or set data.cache")
        arrays |= rows
    return arrays


def _take(surveyed: Surveyed, measures: Sequence[Measure], paths: Mapping[str, Path], what_for: str) -> None:
    """Measure all samples, part by part, and write a file per measure."""
    source, folder = surveyed.source, surveyed.path(measures, ".parts")
    parts: list[dict[str, np.ndarray]] = []
    began = told = time.monotonic()
    for start in range(0, len(source), _AT_ONCE):
        samples = range(start, min(start + _AT_ONCE, len(source)))
        path = folder / f"{start // _AT_ONCE:06d}.idx"
        rows = surveyed.read(path, measures, len(samples))
        if rows is None:
            rows = _measure(source, samples, measures)
            if len(samples) < len(source):
                surveyed.write(path, measures, rows)
        parts.append(rows)
        now = time.monotonic()
        if now - began >= _FIRST_S and (told == began or now - told >= _REPORT_S):
            told = now
            log.info(f"{source.name}: {samples.stop:,} of {len(source):,} samples are measured for {what_for}; this is done once")
    for measure in measures:
        empty = np.zeros((0, measure.columns), measure.dtype)
        rows = {measure.name: np.concatenate([empty, *(part[measure.name] for part in parts)])}
        surveyed.write(paths[measure.name], [measure], rows)
    remove(folder)


def _measure(source: Samples, samples: range, measures: Sequence[Measure]) -> dict[str, np.ndarray]:
    """Return the numbers of some samples, by the name of each measure."""

    def row(i: int) -> list[Sequence[float]]:
        return _row(source, i, measures)

    if source.may_wait:
        with ThreadPoolExecutor(_READERS) as readers:
            rows = list(readers.map(row, samples))
    else:
        rows = list(map(row, samples))
    return {measure.name: _array(measure, (each[number] for each in rows)) for number, measure in enumerate(measures)}


def _array(measure: Measure, rows: Iterable[Sequence[float]]) -> np.ndarray:
    return np.array(list(rows), measure.dtype).reshape(-1, measure.columns)


def _row(source: Samples, i: int, measures: Sequence[Measure]) -> list[Sequence[float]]:
    """Return the numbers of one sample, for each measure; those that cannot be had are NaN, or 0 where they are whole numbers.

    A measure that looks into no picture is taken although the pictures cannot be read.
    """
    whole = _peeked(source.peek, i) if any(measure.pictures for measure in measures) else None
    text = whole or _peeked(text_of(source), i)
    values = []
    for measure in measures:
        unread = [0 if np.dtype(measure.dtype).kind in "ui" else np.nan] * measure.columns
        sample = whole if measure.pictures else text
        try:
            with sample_errors:
                values.append(unread if sample is None else measure.of(sample))
        except BadSample:
            values.append(unread)
    return values


def text_of(source: Samples) -> Callable[[int], Sample]:
    """Return what gives a sample of `source` by its index, with empty pictures where the source can do without reading them."""
    return source.peek_text if isinstance(source, TextSamples) else source.peek


def _peeked(peek: Callable[[int], Sample], i: int) -> Sample | None:
    try:
        with sample_errors:
            return peek(i)
    except BadSample:
        return None
