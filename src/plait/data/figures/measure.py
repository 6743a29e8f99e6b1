"""Measure the samples of a source: pictures, clips, texts, what is broken, and what comes more than once.

Read are all samples, or a random part of a large source. Only numbers are kept of each, so memory hardly grows with the data; a picture,
and each frame of a clip, is decoded, small, to find out whether it is whole, unless headers are enough.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import xxhash

from plait.config.secrets import masked
from plait.data import image_files
from plait.data.figures import languages, reasons
from plait.data.figures.alike import Alike
from plait.data.figures.content import clip_hash, content_hash
from plait.data.figures.scripts import script_of
from plait.data.figures.series import Hashes, Series
from plait.data.order import permute
from plait.data.selection.duplicates import perceptual_hash
from plait.data.shard_sets import encoding
from plait.data.sources.contract import Sample, Source, read
from plait.errors import BadSample, sample_errors

STORED, OTHERS = 20_000, 512
"""How many samples are measured at most, unless it is said: of a source on disk, and of one that is on a network, drawn or computed."""
_DECODED = (32, 32)  # a JPEG is decoded at an eighth, if it stays four times as large
_CHUNK = 256
_EXAMPLES = 5

CountTokens = Callable[[str], int]
"""Returns the number of tokens of a text."""


@dataclass
class _Picture:
    size: tuple[int, int]
    bytes: int
    kind: str
    hash: int
    seen: int | None = None
    """Its perceptual hash (data/selection/duplicates.py); None of one that is nearly one grey, or not decoded."""


@dataclass
class _Clip:
    """What is measured of the frames of a sample; `size`: of its first frame, `hash`: of all of them."""

    frames: int
    size: tuple[int, int]
    bytes: int
    kinds: Counter[str]
    hash: int


@dataclass
class _One:
    """What is measured of one sample; `fault`: why it cannot be used."""

    index: int
    name: str = ""
    fault: str | None = None
    pictures: list[_Picture] = field(default_factory=list)
    clip: _Clip | None = None
    answers: list[str] = field(default_factory=list)
    turns: int = 0
    tokens: int | None = None
    whole: int | None = None
    """A hash of all that it holds; None: it holds nothing."""


@dataclass
class Figures:
    """What was found in a source of `samples` samples, of which `read` were read. Numbers of samples are their indices in the source."""

    name: str
    samples: int
    read: int = 0
    headers_only: bool = False
    pictures: int = 0
    with_pictures: int = 0
    with_several: int = 0
    clips: int = 0
    without_either: int = 0
    """Samples without pictures and without a clip."""
    width: Series = field(default_factory=lambda: Series("px", logarithmic=True))
    height: Series = field(default_factory=lambda: Series("px", logarithmic=True))
    shorter: Series = field(default_factory=lambda: Series("px", logarithmic=True))
    aspect: Series = field(default_factory=lambda: Series("width / height", logarithmic=True, whole=False))
    file_bytes: Series = field(default_factory=lambda: Series("bytes", logarithmic=True))
    frames: Series = field(default_factory=lambda: Series("frames"))
    clip_width: Series = field(default_factory=lambda: Series("px", logarithmic=True))
    clip_height: Series = field(default_factory=lambda: Series("px", logarithmic=True))
    clip_bytes: Series = field(default_factory=lambda: Series("bytes", logarithmic=True))
    clip_formats: Counter[str] = field(default_factory=Counter)
    """Frames of clips, by format."""
    words: Series = field(default_factory=lambda: Series("words", logarithmic=True))
    characters: Series = field(default_factory=lambda: Series("characters", logarithmic=True))
    tokens: Series = field(default_factory=lambda: Series("tokens", logarithmic=True))
    turns: Series = field(default_factory=lambda: Series("turns"))
    formats: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    without_text: int = 0
    empty: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    broken_examples: dict[str, list[str]] = field(default_factory=dict)
    same_pictures: Hashes = field(default_factory=Hashes)
    same_clips: Hashes = field(default_factory=Hashes)
    same_texts: Hashes = field(default_factory=Hashes)
    same_samples: Hashes = field(default_factory=Hashes)
    alike: Alike = field(default_factory=Alike)
    extremes: dict[str, tuple[float, int]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def usable(self) -> int:
        """Return how many of the samples read can be used."""
        return self.read - self.broken.total()

    def add(self, one: _One) -> None:
        """Count one sample."""
        self.read += 1
        if one.fault is not None:
            reason = reasons.kind(one.fault)
            self.broken[reason] += 1
            examples = self.broken_examples.setdefault(reason, [])
            examples += [one.name] if len(examples) < _EXAMPLES else []
            return
        self.pictures += len(one.pictures)
        self.with_pictures += bool(one.pictures)
        self.with_several += len(one.pictures) > 1
        self.without_either += not one.pictures and one.clip is None
        for picture in one.pictures:
            self._add_picture(picture, one.index)
        if one.clip is not None:
            self._add_clip(one.clip, one.index)
        self._add_text(one)
        if one.whole is not None:
            self.same_samples.add(one.whole, one.index)

    def _add_picture(self, picture: _Picture, index: int) -> None:
        width, height = picture.size
        self.width.add(width)
        self.height.add(height)
        self.shorter.add(min(width, height))
        self.aspect.add(width / height)
        self.file_bytes.add(picture.bytes)
        self.formats[picture.kind] += 1
        self.same_pictures.add(picture.hash, index)
        self.alike.add(picture.hash, picture.seen, index)
        self._extreme("smallest", -width * height, index)
        self._extreme("largest", width * height, index)
        self._extreme("widest", width / height, index)
        self._extreme("tallest", height / width, index)

    def _add_clip(self, clip: _Clip, index: int) -> None:
        self.clips += 1
        self.frames.add(clip.frames)
        self.clip_width.add(clip.size[0])
        self.clip_height.add(clip.size[1])
        self.clip_bytes.add(clip.bytes)
        self.clip_formats += clip.kinds
        self.same_clips.add(clip.hash, index)

    def _add_text(self, one: _One) -> None:
        self.turns.add(one.turns)
        if not one.answers:
            self.without_text += 1
        elif not any(answer.strip() for answer in one.answers):
            self.empty += 1
        else:
            text = "\n".join(one.answers)
            self.words.add(len(text.split()))
            self.characters.add(len(text))
            self.scripts[script_of(text)] += 1
            languages.count(self.languages, text)
            self.same_texts.add(xxhash.xxh3_64_intdigest(" ".join(text.split()).encode("utf-8", "surrogatepass")), one.index)
            self._extreme("longest text", len(text), one.index)
        if one.tokens is not None:
            self.tokens.add(one.tokens)

    def _extreme(self, name: str, value: float, index: int) -> None:
        if name not in self.extremes or value > self.extremes[name][0]:
            self.extremes[name] = (value, index)


def chosen(source: Source, most: int | None) -> np.ndarray:
    """Return the indices of the samples to measure, in order: all, or `most` at random, always the same ones.

    None: as many as STORED or OTHERS says. Of a streamed source they are those of a few shards drawn at random, so that no more are read.
    """
    limit = most if most is not None else STORED if source.stored else OTHERS
    if len(source) <= limit:
        return np.arange(len(source))
    if source.stream is not None:
        return np.sort(source.stream.first(limit, (0, "figures", 0, 0)))
    drawn = permute(np.arange(limit), len(source), 0, "figures")
    assert isinstance(drawn, np.ndarray)
    return np.sort(drawn)


def measure(
    source: Source,
    indices: Sequence[int] | np.ndarray,
    *,
    threads: int,
    headers_only: bool = False,
    count_tokens: CountTokens | None = None,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> Figures:
    """Read and measure these samples of a source, with `threads` threads. `headers_only`: do not decode pictures.

    `count_tokens`: counts the tokens of a sample's texts, None: they are not counted. `report`: called with ("read", done, of how many).
    Raises PlaitError where the source cannot be read at all.
    """
    figures = Figures(source.name, len(source), headers_only=headers_only, left_out=dict(source.left_out))
    one = partial(_measure, source, headers_only, count_tokens)
    with ThreadPoolExecutor(max(1, threads)) as readers:
        for start in range(0, len(indices), _CHUNK):
            for found in readers.map(one, (int(index) for index in indices[start : start + _CHUNK])):
                figures.add(found)
            report("read", min(start + _CHUNK, len(indices)), len(indices))
    return figures


def _measure(source: Source, headers_only: bool, count_tokens: CountTokens | None, index: int) -> _One:
    one = _One(index, f"{source.name}[{index}]")
    try:
        with sample_errors:
            sample = read(source, index)
            one.name = str(sample["id"])
            one.pictures = [_picture(body, headers_only) for body in sample["images"]]
            one.clip = _clip(sample, headers_only)
            conversations = [item["messages"] for item in sample.get("annotations", ())] or [sample["messages"]]
            turns = [turn for conversation in conversations for turn in conversation]
            one.turns = len(turns)
            one.answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
            one.tokens = None if count_tokens is None else sum(count_tokens(turn["content"]) for turn in turns)
            one.whole = _short(content_hash(sample))
    except BadSample as error:
        one.name, one.fault = error.sample or one.name, masked(str(error))
    return one


def _picture(body: bytes, headers_only: bool) -> _Picture:
    """Return what is measured of a picture. Raises BadSample if it is none, is damaged or over a limit."""
    size = _checked_size(body)
    seen = None if headers_only else perceptual_hash(image_files.decode_rgb(body, at_least=_DECODED))
    return _Picture(size, len(body), encoding.kind(body), xxhash.xxh3_64_intdigest(body), seen)


def _checked_size(body: bytes) -> tuple[int, int]:
    """Return width and height of a picture. Raises BadSample if it is none, or is over a limit."""
    size = image_files.size(body)
    if limit := image_files.over_limit(size):
        raise BadSample(f"image of {size[0]} x {size[1]} pixels {limit}")
    return size


def _clip(sample: Sample, headers_only: bool) -> _Clip | None:
    """Return what is measured of a sample's frames, None without any. Raises BadSample, naming the frame, if one is damaged."""
    whole = _short(clip_hash(sample))
    if whole is None:
        return None
    bodies, sizes = sample["frames"], []
    for number, body in enumerate(bodies, 1):
        try:
            sizes.append(_checked_size(body))
            if not headers_only:
                image_files.decode_rgb(body, at_least=_DECODED)
        except BadSample as error:
            raise BadSample(f"frame {number} of {len(bodies)}: {error}") from error
    return _Clip(len(bodies), sizes[0], sum(map(len, bodies)), Counter(map(encoding.kind, bodies)), whole)


def _short(hashed: str | None) -> int | None:
    """Return 64 bits of a hash in hex."""
    return None if hashed is None else int(hashed[:16], 16)


def samples_of(source: Source, indices: Sequence[int]) -> Iterator[tuple[int, Sample]]:
    """Yield (index, sample) of those that can be read."""
    for index in indices:
        try:
            with sample_errors:
                yield index, read(source, index)
        except BadSample:
            continue
