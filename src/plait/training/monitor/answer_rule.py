"""Judge by short answers whether a source learns no more than how often each answer comes, while others with such answers do.

Where labels are mixed up, the loss falls to the entropy of the answers and stays there; a loss alone does not tell that from a hard source.
So it is held against that entropy, and against sources with the same answers. A group is a source, or one task of it.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from plait.data import text
from plait.data.sources.contract import Sample
from plait.errors import BadSample

FEWEST = 8
"""Answers of a group of which something is said."""
_ALIKE = 0.5
"""Share of each group's answers that the other has too, from which both are of one kind."""
_UNKNOWN, _SURELY = 0.8, 0.6
"""Nats of an answer over the entropy of all, from which it is not known, and what their mean is surely above."""
_KNOWN = 0.5
"""The same up to which it is known."""
_ERRORS = 2.0
"""Standard errors of a mean that make it sure."""

Nats = Mapping[str, Sequence[float | None]]
"""Of each group, the nats of each sample's answers; None for one that could not be used."""


class Unlearned(NamedTuple):
    """`nats`: mean of an answer now; `entropy`: of the answers, in nats; `other`: a group with such answers, and its nats now."""

    nats: float
    entropy: float
    other: str
    others_nats: float


def answer_of(sample: Sample) -> str | None:
    """Return what a sample is to be answered with, its turns joined; None where it has no conversation of its own."""
    try:
        turns = text.messages(sample["fields"], None)
    except BadSample:
        return None
    return "\n".join(turn["content"].strip() for turn in turns if turn["role"] == "assistant") or None


def entropy(answers: Sequence[str | None]) -> float | None:
    """Return the entropy of answers in nats.

    None where they are too few, all alike, or free text: more than half of them differ.
    """
    counts = Counter(answer for answer in answers if answer is not None)
    total = counts.total()
    if total < FEWEST or len(counts) < 2 or 2 * len(counts) > total:
        return None
    return -sum(count / total * math.log(count / total) for count in counts.values())


def unlearned(before: Nats, now: Nats, answers: Mapping[str, Sequence[str | None]]) -> Iterator[tuple[str, Unlearned]]:
    """Yield each group that learned no more than how often its answers come, unlike one with the same answers.

    `before`, `now`: of an earlier look after training began, and of this one.
    """
    entropies = {group: value for group in now if (value := entropy(answers.get(group, ()))) is not None}
    known = [group for group, value in entropies.items() if all(_is_known(look.get(group, ()), value) for look in (before, now))]
    for group, value in entropies.items():
        others = [other for other in known if other != group and _alike(answers[group], answers[other])]
        if others and all(_is_unknown(look.get(group, ()), value) for look in (before, now)):
            yield group, Unlearned(_mean(now[group])[0], value, others[0], _mean(now[others[0]])[0])


def _mean(nats: Sequence[float | None]) -> tuple[float, float]:
    """Return the mean and its standard error; infinite where too few are known."""
    values = [value for value in nats if value is not None]
    if len(values) < FEWEST:
        return math.inf, math.inf
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def _is_known(nats: Sequence[float | None], entropy: float) -> bool:
    mean, error = _mean(nats)
    return mean + _ERRORS * error <= _KNOWN * entropy


def _is_unknown(nats: Sequence[float | None], entropy: float) -> bool:
    mean, error = _mean(nats)
    return math.isfinite(mean) and mean >= _UNKNOWN * entropy and mean - _ERRORS * error >= _SURELY * entropy


def _alike(one: Sequence[str | None], two: Sequence[str | None]) -> bool:
    """Return whether most answers of each are among those of the other."""
    return all(sum(answer in set(theirs) for answer in own) >= _ALIKE * len(own) for own, theirs in ((one, two), (two, one)))


def sentence(group: str, found: Unlearned, steps: int) -> str:
    """Return what was found, in words."""
    return (
        f"source {group}: after {steps:,} steps its answers are known no better than by how often each comes ({found.nats:.3g} nats an "
        f"answer, of {found.entropy:.3g}), while those of {found.other}, which are the same ones, are ({found.others_nats:.3g}): are its "
        "labels right, or is it far harder?"
    )
