"""What a source of samples is: the one interface that the loader, the orders of data and the readers of files agree on.

How a `data:` entry becomes a source is in kind.py and open.py; neither is needed to use one.
"""

import abc
from collections.abc import Mapping
from typing import Any, Protocol

from plait.data.records import Record
from plait.errors import PlaitError

Sample = dict[str, Any]
"""`id`, `images` (encoded files), `messages` ({"role", "content"}), `fields` (the record); of some `frames`, `annotations`, `arrays`."""


class Source(abc.ABC):
    """A map-style dataset: `source[i]` in any order, from any thread or process, so it must pickle.

    `source[i]` raises BadSample for a sample that cannot be used; the loader replaces it by another one.
    """

    name: str
    """A short title for reports and error messages."""

    fingerprint: str
    """A hash of the content: names, sizes, counts and template; not of times, nor of the folder that the files are in."""

    groups: tuple[int, ...] = ()
    """The lengths of the source's buckets, consecutive ranges of indices that never share a batch. Empty: the source is one bucket."""

    has_template: bool = False
    """Whether the text comes from the entry's template rather than from the record."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int, /) -> Sample: ...

    def draw(self, index: int, sample_key: int) -> Sample:
        """Return sample `index` for training; a source that varies it from epoch to epoch takes its randomness from `sample_key` alone."""
        return self[index]

    def table(self, global_batch: int) -> list[Mapping[str, Any]]:
        """Return a row per bucket: `bucket` (its name), `samples`, `tokens`, `batches` of an epoch, `left_over` samples. Default: none."""
        return []


class Absent(PlaitError):
    """A known dataset whose files are in none of the places that were searched."""


class Reader(Protocol):
    """Random access to the records of a file format; `digest` is a hash of what it reads."""

    digest: str

    def __len__(self) -> int: ...

    def read(self, index: int, /) -> Record:
        """Read one record. Raises BadSample for one that is broken."""
