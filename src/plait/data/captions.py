"""Captions of mirrored pictures: left becomes right and right becomes left, and nothing else changes.

Whole words only (upright, bright and leftover stay), in lower, Title or UPPER case, with -most, -ward(s) and -hand(ed); 左 and 右 in
Chinese and Japanese (左右, "both sides" or "about", is the same in a mirror); the Korean words for sides. Placeholders (<left>, {left}),
addresses and words joined by underscores or digits stay. Swapping twice gives the caption back, for any text.
It knows no grammar: "he left" becomes "he right". That is rare in captions of pictures, and harmless beside its mirrored twin.
"""

import re

_UNTOUCHED = r"<[^<>\s][^<>]*>|\{[^{}]*\}|\w+://\S+"
_WORD = r"(?<!\w)(?:left|right)(?:most|wards?|hand(?:ed)?)?(?!\w)"
_HAN = r"[左右]+"
_KOREAN = r"(?:오른|왼)(?:쪽|손|편|발|팔)|[좌우]측"
_PIECE = re.compile(f"(?P<stays>{_UNTOUCHED})|(?P<word>{_WORD})|(?P<han>{_HAN})|(?P<korean>{_KOREAN})", re.IGNORECASE)

_OTHER = {"left": "right", "right": "left"}
_MIRROR_HAN = str.maketrans("左右", "右左")
_BOTH_SIDES = ("左右", "右左")
_KOREAN_OTHER = {"오른": "왼", "왼": "오른", "좌": "우", "우": "좌"}
_STYLES = (str.lower, str.capitalize, str.upper)


def swap(caption: str) -> str:
    """Return the caption of the mirrored picture: "a cat left of a tree" -> "a cat right of a tree".

    "left" and "right" change places as whole words (leftmost, left-hand and the like too), as do the words for sides in Chinese, Japanese
    and Korean; all other text stays, as do <left> and {left}. Swapping twice gives the caption back.
    """
    return _PIECE.sub(_swapped, caption)


def names_side(caption: str) -> bool:
    """Return whether the caption names left or right, so that the mirrored picture needs another caption (`swap`)."""
    return swap(caption) != caption


def _swapped(match: re.Match[str]) -> str:
    """Return the mirrored form of one matched piece, in the case that it is written in."""
    text = match[0]
    if match["word"]:
        side = "left" if text[:1] in "lL" else "right"
        style = next((style for style in _STYLES if style(text) == text), None)
        return style(_OTHER[side] + text[len(side) :]) if style else text
    if match["han"]:
        return text if text in _BOTH_SIDES else text.translate(_MIRROR_HAN)
    if match["korean"]:
        side = next(side for side in _KOREAN_OTHER if text.startswith(side))
        return _KOREAN_OTHER[side] + text[len(side) :]
    return text
