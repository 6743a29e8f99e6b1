"""The interface of a source (one data set), which the loader, the orders of data and the readers of files agree on.

How an item of the configuration's `data:` section, an entry, becomes a source is in kind.py and open.py; neither is needed to use one.
"""

import abc
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, Self

from plait.data.records import Record
from plait.errors import PlaitError

if TYPE_CHECKING:
    from plait.data.streaming.block_shuffle import Stream

Sample = dict[str, Any]
"""Keys: `id`, `images` (encoded), `messages` ({"role", "content"}), `fields` (the record); optional `frames`, `annotations`, `arrays`."""

_KEYS = ("id", "images", "messages", "fields")


class Source(abc.ABC):
    """A map-style dataset: `source[i]` in any order, from any thread or process, so it must pickle.

    `source[i]` returns a Sample, a dict, or raises BadSample for one that cannot be used, which the loader replaces by another.
    """

    name: str
    """A short title for reports and error messages."""

    fingerprint: str
    """A hash of the content: names, sizes, counts and template; not of times, nor of the folder that the files are in."""

    groups: tuple[int, ...] = ()
    """The lengths of the source's buckets, consecutive ranges of indices that never share a batch. Empty: the source is one bucket."""

    has_template: bool = False
    """Whether the text comes from the template in the configuration rather than from the data."""

    allow_blank: bool = False
    """Whether samples with blank text are trained on, rather than refused."""

    may_wait: bool = False
    """Whether a read may wait for a network or a user's code; such a source is never read in the training thread, so that it can stop."""

    stored: bool = False
    """Whether samples are read as they lie on a local disk, so that very many of them can be looked at before a run."""

    stream: "Stream | None" = None
    """How the source is read shard by shard in training, which decides its order; None for one that is read at random."""

    left_out: Mapping[str, int] = MappingProxyType({})
    """Counts of what is found among the samples but not read, by description, such as {".heic: a format that is not read": 3}."""

    filtered: Mapping[str, int] = MappingProxyType({})
    """How many samples a `filter:` leaves out, by the first part of it that they fail, such as {"min_side 256": 120}."""

    unfiltered: int = 0
    """How many samples there are before that filter, of the whole source; 0 without one."""

    def __new__(cls, *_: object, **__: object) -> Self:
        """Make an instance. Raises PlaitError, in place of TypeError, for a class without `__len__` or `__getitem__`."""
        if missing := sorted(cls.__abstractmethods__):
            raise PlaitError(f"{cls.__module__}.{cls.__qualname__} lacks {' and '.join(missing)}: a source has len(source) and source[i]")
        return super().__new__(cls)

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int, /) -> Sample: ...

    def draw(self, index: int, sample_key: int) -> Sample:
        """Return sample `index` for training. All randomness (such as which caption) comes from the 64-bit `sample_key`."""
        return self[index]

    def worded(self, index: int) -> Sample:
        """Return what `read` does, for its text alone: a source that draws its pictures may leave them out."""
        return read(self, index)

    def peek(self, index: int) -> Sample:
        """Return sample `index` for what is measured of it; of `messages` none where they are unfit. Raises BadSample if it is broken."""
        return self[index]

    def sketch(self, index: int) -> Sample:
        """Return what `peek` does, where the sizes of pictures are enough: blank ones may stand for pictures that are drawn."""
        return self.peek(index)

    def places(self, indices: Any) -> Any:
        """Return the indices (an array) that samples have before a `filter:`; the share that is held out depends on those alone."""
        return indices

    @property
    def maker(self) -> str:
        """Return the import path of the class that makes the samples, for messages about its code."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def table(self, global_batch: int) -> list[Mapping[str, Any]]:
        """Return a dict per bucket: `bucket` (name), `samples`, `tokens`, `batches` of `global_batch`, `left_over`; [] without buckets."""
        return []


class BrokenSource(PlaitError):
    """Raised where a source's code returns something else than a sample: every sample of it is suspect, so the run ends."""

    of_one_sample = False


def read(source: Source, index: int, sample_key: int | None = None) -> Sample:
    """Return sample `index`, with its random choices (such as which caption) drawn from `sample_key`; None: without any, as held-out ones.

    Raises BrokenSource unless it is a dict with `id`, `images`, `messages` and `fields`, and what the source raises.
    """
    sample = source[index] if sample_key is None else source.draw(index, sample_key)
    if not isinstance(sample, dict) or not ("id" in sample and "images" in sample and "messages" in sample and "fields" in sample):
        lacking = [name for name in _KEYS if not isinstance(sample, dict) or name not in sample]
        what = f"made by {source.maker}, is a {type(sample).__name__} without {' and '.join(map(repr, lacking))}"
        raise BrokenSource(f"{source.name}: sample {index}, {what}: a sample is a dict of {', '.join(_KEYS)}")
    return sample


class Absent(PlaitError):
    """Raised for a dataset that is known by name, but whose files are in none of the places searched.

    `commands`: what fetches them, with sizes and times in parentheses; `estimate`: what those come from.
    """

    def __init__(self, message: str, commands: Sequence[str] = (), estimate: str = "") -> None:
        super().__init__(message)
        self.commands, self.estimate = tuple(commands), estimate


class Reader(Protocol):
    """Random access to the records (raw samples) of files. `digest`: hash of their content; `left_out`: {what is not read: count}."""

    digest: str
    left_out: Mapping[str, int]

    def __len__(self) -> int: ...

    def read(self, index: int, /) -> Record:
        """Return record `index` (from 0). Raises BadSample if it is broken."""
