"""Measure samples of a source once, all or some, and keep the numbers in the cache folder.

The numbers are known by the source's fingerprint and what is measured. One process takes them while the others wait; they are written in
parts, so that the same command goes on after a kill.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
_WRITE_S = 10.0  # between files of some samples, each of which has all that are measured
_INDEX = Measure("index", 1, lambda sample: [], "<i8")  # of each row of such a file

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


@runtime_checkable
class SketchedSamples(Protocol):
    """A source that can tell of a sample without drawing its pictures."""

    def sketch(self, index: int) -> Sample:
        """Return sample `index` with blank pictures of the right sizes. Raises BadSample if it is broken."""


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

    def read(self, path: Path, measures: Sequence[Measure], samples: int | None) -> dict[str, np.ndarray] | None:
        """Return the arrays of a file of numbers; None if it is missing, damaged, or of something else. `samples`: None: any number."""
        head = index.read_head(path)
        if head is None or head.facts != self._facts(measures, head.facts.get("samples", 0) if samples is None else samples):
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
        with _alone(source, paths[missing[0].name]):
            if missing := [measure for measure in missing if read(measure) is None]:
                _take(surveyed, missing, paths, what_for)
    arrays: dict[str, np.ndarray] = {}
    for measure in measures:
        rows = read(measure)
        if rows is None:
            raise PlaitError(f"{paths[measure.name]} cannot be read, though it was written just now: mend the disk, or set data.cache")
        arrays |= rows
    return arrays


def kept(surveyed: Surveyed, measures: Sequence[Measure]) -> tuple[np.ndarray | None, Measured]:
    """Return what the cache has of a source: (the sorted indices of its samples, None: all; their numbers by measure)."""
    found = [surveyed.read(surveyed.path([measure], ".idx"), [measure], len(surveyed.source)) for measure in measures]
    whole = {name: rows for each in found if each is not None for name, rows in each.items()}
    if len(whole) == len(measures):
        return None, whole
    some = surveyed.read(surveyed.path(measures, ".some.idx"), [_INDEX, *measures], None)
    if some is None:
        return np.zeros(0, np.int64), {measure.name: np.zeros((0, measure.columns), measure.dtype) for measure in measures}
    return some[_INDEX.name][:, 0], some


def measured_some(
    surveyed: Surveyed, measures: Sequence[Measure], wanted: np.ndarray, *, what_for: str
) -> tuple[np.ndarray | None, Measured]:
    """Return what `kept` does, once samples `wanted`, sorted indices, are among them; those that the cache lacks are measured, and kept.

    `what_for`: as of `measured`. Raises PlaitError if they cannot be written.
    """
    source, path = surveyed.source, surveyed.path(measures, ".some.idx")
    indices, rows = kept(surveyed, measures)
    if indices is None or not len(np.setdiff1d(wanted, indices)):
        return indices, rows
    with _alone(source, path):
        indices, rows = kept(surveyed, measures)
        missing = wanted[:0] if indices is None else np.setdiff1d(wanted, indices)
        progress, written = Progress(source, len(missing), what_for), time.monotonic()
        for start in range(0, len(missing), _AT_ONCE):
            assert indices is not None
            part = missing[start : start + _AT_ONCE]
            more, indices = measure_now(source, part.tolist(), measures), np.concatenate([indices, part])
            rows = {name: np.concatenate([rows[name], more[name]]) for name in more}
            last = start + len(part) == len(missing)
            if last or time.monotonic() - written >= _WRITE_S:
                by_index, written = np.argsort(indices), time.monotonic()
                indices, rows = indices[by_index], {name: values[by_index] for name, values in rows.items()}
                surveyed.write(path, [_INDEX, *measures], {_INDEX.name: indices[:, None], **rows})
            progress.tell(start + len(part))
    return indices, rows


class Progress:
    """Logs how many of a source's `count` samples are measured, where that takes long. `what_for`: ends the line."""

    def __init__(self, source: Samples, count: int, what_for: str) -> None:
        self.source, self.count, self.what_for = source, count, what_for
        self.began = self.told = time.monotonic()

    def tell(self, done: int) -> None:
        """Log a line about `done` samples, unless the last one was written just now."""
        now = time.monotonic()
        if now - self.began >= _FIRST_S and (self.told == self.began or now - self.told >= _REPORT_S):
            self.told = now
            log.info(f"{self.source.name}: {done:,} of {self.count:,} samples are measured for {self.what_for}; this is done once")


@contextlib.contextmanager
def _alone(source: Samples, path: Path) -> Iterator[None]:
    """Hold the lock on what is measured of a source. Raises PlaitError if `path` cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path, f"{source.name}: another process is measuring its samples, which is waited for"):
            yield
    except OSError as error:
        cure = "free space there, or set data.cache to a folder that can be written"
        raise PlaitError(f"cannot write {path}, what was measured of {source.name}: {error.strerror}; {cure}") from error


def _take(surveyed: Surveyed, measures: Sequence[Measure], paths: Mapping[str, Path], what_for: str) -> None:
    """Measure all samples, part by part, and write a file per measure."""
    source, folder = surveyed.source, surveyed.path(measures, ".parts")
    parts: list[dict[str, np.ndarray]] = []
    progress = Progress(source, len(source), what_for)
    for start in range(0, len(source), _AT_ONCE):
        samples = range(start, min(start + _AT_ONCE, len(source)))
        path = folder / f"{start // _AT_ONCE:06d}.idx"
        rows = surveyed.read(path, measures, len(samples))
        if rows is None:
            rows = measure_now(source, samples, measures)
            if len(samples) < len(source):
                surveyed.write(path, measures, rows)
        parts.append(rows)
        progress.tell(samples.stop)
    for measure in measures:
        empty = np.zeros((0, measure.columns), measure.dtype)
        rows = {measure.name: np.concatenate([empty, *(part[measure.name] for part in parts)])}
        surveyed.write(paths[measure.name], [measure], rows)
    remove(folder)


def measure_now(source: Samples, samples: Sequence[int], measures: Sequence[Measure]) -> dict[str, np.ndarray]:
    """Return the numbers of some samples, by the name of each measure; nothing is kept."""

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
    looks = {measure.looks_at for measure in measures}
    whole = _peeked(source.peek if "pixels" in looks else sized(source), i) if looks != {"text"} else None
    text = whole or (_peeked(text_of(source), i) if "text" in looks else None)
    values = []
    for measure in measures:
        unread = [0 if np.dtype(measure.dtype).kind in "ui" else np.nan] * measure.columns
        sample = text if measure.looks_at == "text" else whole
        try:
            with sample_errors:
                values.append(unread if sample is None else measure.of(sample))
        except BadSample:
            values.append(unread)
    return values


def text_of(source: Samples) -> Callable[[int], Sample]:
    """Return what gives a sample of `source` by its index, with empty pictures where the source can do without reading them."""
    return source.peek_text if isinstance(source, TextSamples) else sized(source)


def sized(source: Samples) -> Callable[[int], Sample]:
    """Return what gives a sample of `source` by its index, with blank pictures where the source would have to draw them."""
    return source.sketch if isinstance(source, SketchedSamples) else source.peek


def _peeked(peek: Callable[[int], Sample], i: int) -> Sample | None:
    try:
        with sample_errors:
            return peek(i)
    except BadSample:
        return None
