"""Tell in which language a text is written, with the optional package `py3langid`, whose model comes with it.

Of short texts the language is often a guess: those of which none has a probability of at least 0.2 count as unsure.
"""

from collections import Counter
from functools import lru_cache
from typing import Any

_READ = 500  # characters of a text, the first ones
_LEAST = 0.2  # probability, below which a language is a guess
_SHOWN = 8  # languages, the most frequent ones
UNSURE, NONE = "unsure", "no language"
_NAMES = {"und": UNSURE, "zxx": NONE}


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """Return the identifier with its model, loaded in about a second; None where the package is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_LEAST)


def language_of(text: str) -> str | None:
    """Return the language of a text by its ISO 639-1 code, such as "en"; "unsure", "no language"; None without the package."""
    identifier = _identifier()
    if identifier is None:
        return None
    code = str(identifier.classify(text[:_READ].encode("utf-8", "replace"))[0])
    return _NAMES.get(code, code)


def count(languages: Counter[str], text: str) -> None:
    """Add the language of a text to the counts, unless the package is not installed."""
    if (language := language_of(text)) is not None:
        languages[language] += 1


def shares(languages: Counter[str]) -> str:
    """Return the most frequent languages as text, "88.0% en, 12.0% de"; without the package, how to install it."""
    if _identifier() is None:
        return "not told without the package py3langid: pip install 'plait[languages]'"
    total = max(1, languages.total())
    return ", ".join(f"{number / total:.1%} {name}" for name, number in languages.most_common(_SHOWN))
