"""Tell in which script a text is written, such as Latin or Han, by the names that Unicode gives its letters.

A script is no language: Latin may be English or Polish. Where a text mixes several, the one of most letters counts; kana make it Japanese.
"""

import unicodedata
from collections import Counter
from functools import lru_cache

_READ = 500  # characters of a text, the first ones
_NAMES = {"CJK": "Han", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HALFWIDTH": "Japanese", "FULLWIDTH": "Latin", "HANGUL": "Korean"}
_JAPANESE = _NAMES["HIRAGANA"]
NONE = "no letters"


@lru_cache(maxsize=8192)
def _of_letter(letter: str) -> str | None:
    """Return the script of a letter; None for a digit, mark, symbol or space."""
    if not letter.isalpha():
        return None
    first = unicodedata.name(letter, "UNKNOWN").split()[0]
    return _NAMES.get(first, first.capitalize())


def script_of(text: str) -> str:
    """Return the name of the script of a text, such as "Latin", "Han" or "Japanese"; "no letters" without any."""
    counts = Counter(script for script in map(_of_letter, text[:_READ]) if script is not None)
    if not counts:
        return NONE
    if counts[_JAPANESE]:
        return _JAPANESE
    return max(counts, key=lambda script: (counts[script], script))
