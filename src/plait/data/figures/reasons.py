"""Group the reasons for which samples cannot be used: those of one kind differ in numbers and in what is quoted."""

import re
from collections import Counter

_NUMBERS, _QUOTED = re.compile(r"\d[\d,.]*(?<![,.])"), re.compile(r"'[^']*'")


def kind(reason: str) -> str:
    """Return a reason with N for each number and '...' for each quoted text."""
    return _NUMBERS.sub("N", _QUOTED.sub("'...'", reason))


def commonest(bad: Counter[str]) -> tuple[int, str]:
    """Return how many samples are bad for the commonest kind of reason, and the commonest reason of that kind. `bad`: counts, not empty."""
    kinds = Counter[str]()
    for reason, count in bad.items():
        kinds[kind(reason)] += count
    most, count = kinds.most_common(1)[0]
    return count, next(reason for reason, _ in bad.most_common() if kind(reason) == most)
