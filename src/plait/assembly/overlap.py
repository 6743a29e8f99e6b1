"""Find out whether training samples are held out as well, by hashes of what they hold. As many are compared as can be read quickly.

All samples of small sources are compared, up to thousands evenly over a large one, and some of one whose samples are not read from a local
disk. How many were compared on either side is told beside the result. A source is one dataset.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from plait.data.figures.content import clip_hash, content_hash, picture_hash
from plait.data.sources.contract import Sample, Source, read
from plait.errors import BadSample, sample_errors

_SAMPLES = 2048  # of all sources of one side together
_BYTES = 1 << 29


class Content(NamedTuple):
    """Hashes of what a sample holds: `whole`, of everything as one; `pictures`, of each image; `clip`, of its frames as one."""

    whole: str
    pictures: frozenset[str]
    clip: str | None


@dataclass
class HeldOutContent:
    """What the held-out sources hold: hashes of each sample as one (`wholes`), of each image (`pictures`) and of each clip (`clips`).

    `samples`: how many samples they have; `compared`: how many were hashed.
    """

    samples: int = 0
    compared: int = 0
    wholes: set[str] = field(default_factory=set)
    pictures: set[str] = field(default_factory=set)
    clips: set[str] = field(default_factory=set)

    def add(self, contents: Iterable[Content]) -> None:
        """Add `contents`, the hashes of samples of one held-out source, as the function `contents` yields them."""
        for content in contents:
            self.compared += 1
            self.wholes.add(content.whole)
            self.pictures |= content.pictures
            self.clips |= {content.clip} if content.clip else set()


@dataclass
class Overlap:
    """How the samples of a training source compare with those of all held-out sources, whose hashes are in `held_out`."""

    held_out: HeldOutContent
    compared: int = 0
    """Samples of the training source that were compared."""
    same: int = 0
    """Samples that hold what a held-out one holds."""
    pictures: int = 0
    """Samples with a picture that a held-out one has too, whatever their texts."""
    clips: int = 0
    """Samples with the very frames of a held-out one, whatever their texts."""

    def add(self, content: Content | None) -> None:
        """Compare `content`, the hashes of one more training sample, with all held-out ones; None: it holds nothing to compare."""
        if content is not None and self.held_out.compared:
            self.compared += 1
            self.same += content.whole in self.held_out.wholes
            self.pictures += not content.pictures.isdisjoint(self.held_out.pictures)
            self.clips += content.clip in self.held_out.clips

    @property
    def notable(self) -> bool:
        """Return whether any compared sample, or a picture or clip of it, is held out too, or nothing could be compared."""
        return bool(self.same or self.pictures or self.clips or not self.compared)

    def text(self, samples: int) -> str:
        """Return the result in words, with how many samples were compared. `samples`: number of samples of the training source."""
        if not self.compared:
            return "not compared with the held-out samples, as no picture, clip or text of them or of these can be read"
        sides = f"{self.compared} of {samples} compared with {self.held_out.compared} of {self.held_out.samples} held out"
        found = {"held out too": self.same, "with a held-out picture": self.pictures, "with a held-out clip": self.clips}
        return f"{', '.join(f'{count} {what}' for what, count in found.items() if count) or 'none is held out'} ({sides})"


def count(source: Source, sources: int, least: int) -> int:
    """Return how many samples of `source` to compare. `sources`: how many there are on its side, training or held out.

    `least`: the number for a source that is slow to read (not stored on a local disk), and the minimum for others, which share a fixed
    number (_SAMPLES) evenly.
    """
    return max(least, _SAMPLES // max(1, sources)) if source.stored else least


def contents(source: Source, indices: Sequence[int]) -> Iterator[Content]:
    """Yield the hashes of the samples `indices` of `source`, shuffled; stops early once 512 MB of images and frames are read.

    Samples that cannot be read, or that hold nothing to compare, are left out.
    """
    shuffled = list(indices)
    random.Random(0).shuffle(shuffled)
    left = _BYTES
    for index in shuffled:
        try:
            with sample_errors:
                sample = read(source, index)
        except BadSample:
            continue
        content = content_of(sample)
        if content is not None:
            yield content
        left -= sum(map(len, [*sample["images"], *sample.get("frames", ())]))
        if left < 0:
            return


def content_of(sample: Sample) -> Content | None:
    """Return the hashes of a sample's content; None for one without text, images, frames and arrays, of which nothing can be said."""
    whole = content_hash(sample)
    return None if whole is None else Content(whole, frozenset(map(picture_hash, sample["images"])), clip_hash(sample))
