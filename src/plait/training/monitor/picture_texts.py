"""Find sources whose pictures tell nothing of their texts, while those of a source with the same words do.

A source is a training data set, or held-out data. Whether pictures and texts are related is measured without a model, by the
Hilbert-Schmidt independence criterion (Gretton et al., 2005) of rough shapes and colours with the words of answers. Its value beside those
of mixed-up pairs says how surely they are. A relation that it does not find may be there all the same (numbers of things, or whether a
sentence is true), so that a source is held to one with the same questions and answers alone.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.assembly.held_out import choose
from plait.data import images
from plait.data.sources.contract import Sample, Source, read
from plait.errors import BadSample, sample_errors
from plait.keys import rng

SAMPLES, FEWEST = 64, 48
"""Samples of each source that are compared, at the most and at the least."""
RELATED, UNRELATED = 12.0, 2.5
"""Standard deviations of mixed-up pairs above their mean from which pictures and texts surely belong together, and up to which nothing of
it is seen."""
_TEXTS, _MOST_SOURCES, _KNOWN = 160, 8, 0.8
"""Texts that are read of a source; sources; and the share of a text's words that another source has, from which it could be its own."""
_MIXED = 200
"""Orders of the texts that the value is compared with."""
_SIDE, _LEVELS = 8, 4
_LEAST = 64
"""Pixels of a side that a picture is decoded to at the least."""
MOST_S = 20.0
"""Seconds after which no further sample is read: on a slow disk nothing is compared."""


@dataclass(frozen=True)
class _Texts:
    """Some texts of a source: their indices there, the words of their questions and answers, and the moment after which none is read."""

    source: Source
    indices: list[int]
    words: list[tuple[frozenset[str], frozenset[str]]]
    until_s: float

    def alike(self, vocabulary: tuple[frozenset[str], frozenset[str]]) -> list[int]:
        """Return the positions of up to SAMPLES texts whose words are among these, of questions and of answers."""
        fits = [all(len(own & known) >= _KNOWN * len(own) for own, known in zip(words, vocabulary, strict=True)) for words in self.words]
        return [position for position, fit in enumerate(fits) if fit][:SAMPLES]

    def vocabulary(self, positions: Sequence[int]) -> tuple[frozenset[str], frozenset[str]]:
        """Return all words of these texts, of questions and of answers."""
        asked, answered = zip(*(self.words[position] for position in positions), strict=True)
        return frozenset().union(*asked), frozenset().union(*answered)

    def relation(self, positions: Sequence[int], seed: int) -> float | None:
        """Return how surely the pictures of these texts are related to their answers; None where too few have one that can be used."""
        shown, answers = list[tuple[Tensor, Tensor]](), list[frozenset[str]]()
        for position in positions:
            _in_time(self.until_s)
            try:
                with sample_errors:
                    pictures = read(self.source, self.indices[position])["images"]
                    if pictures:
                        shown.append(_features(pictures[0]))
                        answers.append(self.words[position][1])
            except BadSample:
                continue  # told by the quarantine when its turn comes in training
        return relation(shown, answers, seed) if len(shown) >= FEWEST else None


def unrelated(training: Mapping[str, Source], held_out: Mapping[str, Source], seed: int) -> Iterator[str]:
    """Yield a sentence for each training source whose pictures tell nothing of its texts, unlike those of another with such texts.

    Raises TimeoutError after MOST_S.
    """
    until_s = time.monotonic() + MOST_S
    chosen = {**dict([*training.items()][:_MOST_SOURCES]), **dict([*held_out.items()][:_MOST_SOURCES])}
    read = {name: source for name, source in chosen.items() if not source.may_wait}
    texts = {name: _texts(source, seed, until_s) for name, source in read.items() if len(read) > 1}
    for name in [name for name in texts if name in training]:
        for other in [other for other in texts if other != name]:
            if (line := _compared(name, texts[name], other, texts[other], seed)) is not None:
                yield line
                break


def _compared(name: str, own: _Texts, other: str, theirs: _Texts, seed: int) -> str | None:
    """Return a sentence where pictures tell something of texts in the other source alone."""
    if min(len(own.words), len(theirs.words)) < FEWEST:
        return None
    of_theirs = theirs.alike(own.vocabulary(range(len(own.words))))
    of_own = own.alike(theirs.vocabulary(of_theirs)) if len(of_theirs) >= FEWEST else []
    if len(of_own) < FEWEST:
        return None
    here = own.relation(of_own, seed)
    if here is None or here > UNRELATED:
        return None
    there = theirs.relation(of_theirs, seed)
    if there is None or there < RELATED:
        return None
    above = f"({here:.1f} standard deviations above pairs that are mixed up)"
    theirs_do = f"while those of {other}, with the same words, do ({there:.1f})"
    look = "do its pictures and texts belong together? Look at them (plait data inspect)"
    return f"source {name}: its pictures tell nothing of its texts {above}, {theirs_do}: {look}"


def _in_time(until_s: float) -> None:
    if time.monotonic() > until_s:
        raise TimeoutError(f"reading some samples of each source takes over {MOST_S:g} s")


def _texts(source: Source, seed: int, until_s: float) -> _Texts:
    """Read some texts of a source; samples without an answer are left out."""
    indices, words = list[int](), list[tuple[frozenset[str], frozenset[str]]]()
    for _, index, _ in choose([len(source)], _TEXTS, seed):
        _in_time(until_s)
        try:
            with sample_errors:
                sample = source.worded(index)
                told = _words(sample, "user"), _words(sample, "assistant")
        except BadSample:
            continue
        if told[1]:
            indices.append(index)
            words.append(told)
    return _Texts(source, indices, words, until_s)


def _words(sample: Sample, role: str) -> frozenset[str]:
    """Return the words of one side of a sample's conversations."""
    turns = [turn for one in (sample, *sample.get("annotations", ())) for turn in one.get("messages") or ()]
    return frozenset(re.findall(r"\w+", " ".join(str(turn["content"]) for turn in turns if turn["role"] == role).lower()))


def _features(encoded: bytes) -> tuple[Tensor, Tensor]:
    """Return what a picture shows roughly: its pixels at 8 x 8, and how much of it has each of 64 colours."""
    picture = images.decode(encoded, at_least=(_LEAST, _LEAST)).float() / 255
    levels = (picture * (_LEVELS - 1e-3)).long()
    shares = torch.bincount((levels[0] * _LEVELS**2 + levels[1] * _LEVELS + levels[2]).flatten(), minlength=_LEVELS**3).float()
    return F.adaptive_avg_pool2d(picture, _SIDE).flatten(), (shares / shares.sum()).sqrt()


def relation(shown: Sequence[tuple[Tensor, Tensor]], answers: Sequence[frozenset[str]], seed: int) -> float:
    """Return the criterion of pictures, as `_features`, and answers, in standard deviations of mixed-up pairs above their mean.

    The kernel of pictures: Gaussians of both features, each as wide as the median distance; of answers: the cosine of their words, which
    count for more the rarer they are. 0 where all pictures or all answers are alike.
    """
    picture_kernel = sum(map(_gaussian, (torch.stack(part) for part in zip(*shown, strict=True))), torch.zeros(()))
    centred = picture_kernel - picture_kernel.mean(0) - picture_kernel.mean(1, keepdim=True) + picture_kernel.mean()
    text_kernel = _cosine(answers)
    draw = rng(seed, "picture texts")
    orders = [torch.from_numpy(draw.permutation(len(answers))) for _ in range(_MIXED)]
    mixed = torch.stack([(centred * text_kernel[order][:, order]).sum() for order in orders]).double()
    spread = float(mixed.std())
    return float(((centred * text_kernel).sum() - mixed.mean()) / spread) if spread > 0 else 0.0


def _gaussian(features: Tensor) -> Tensor:
    distances = torch.cdist(features.double(), features.double()).square()
    apart = distances[distances > 0]
    return torch.exp(-distances / apart.median()) if len(apart) else torch.ones_like(distances)


def _cosine(answers: Sequence[frozenset[str]]) -> Tensor:
    """Return the cosine of each two answers' words, (answers, answers)."""
    vocabulary = {word: column for column, word in enumerate(sorted(frozenset().union(*answers)))}
    there = torch.zeros(len(answers), len(vocabulary), dtype=torch.float64)
    for row, words in enumerate(answers):
        there[row, [vocabulary[word] for word in words]] = 1
    weighted = F.normalize(there * torch.log((len(answers) + 1) / there.sum(0)))
    return weighted @ weighted.T
