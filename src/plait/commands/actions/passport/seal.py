"""Seal the claims of a passport with a digest, and find what was changed in one since.

    passport.json   {"format", "claims": {...}, "sealed": the same claims as one line of text, "digest": sha256 of format and text}

The claims stand there twice, so that a change is not only noticed but named: which claim, what it was and what it is. It is no signature:
who can write all three can make another passport.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from plait import files
from plait.assembly import weight_files

NAME = weight_files.PASSPORT
FORMAT = "plait-passport-1"
_KEYS = {"format": str, "claims": dict, "sealed": str, "digest": str}
_SHOWN = 80
"""Characters of a value that a fault shows."""


class Unsealed(NamedTuple):
    """What a passport says. `claims`: None where they cannot be read; `digest`: as it stands there; `faults`: a line each.

    Where only the readable claims were changed, `claims` are those of the sealed copy, so that files can still be compared.
    """

    claims: dict[str, Any] | None
    digest: str
    faults: list[str]


def sealed(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of passport.json for claims, which are JSON values."""
    text = canonical(claims)
    return {"format": FORMAT, "claims": claims, "sealed": text, "digest": digest(text)}


def canonical(value: Any) -> str:
    """Return the one text that a JSON value has here: keys sorted, no blanks, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(text: str) -> str:
    """Return the digest of the claims in canonical form: a SHA-256 over the format and the text."""
    return "sha256:" + hashlib.sha256(f"{FORMAT}\n{text}".encode()).hexdigest()


def unseal(body: bytes) -> Unsealed:
    """Read a passport, and say in a line each what was changed in it."""
    try:
        told = json.loads(body)
        as_written = body == files.json_text(told).encode()
    except (ValueError, RecursionError) as error:
        return Unsealed(None, "", [f"{NAME} is damaged: it is no JSON ({str(error)[:_SHOWN]})"])
    if not isinstance(told, dict):
        return Unsealed(None, "", [f"{NAME} is damaged: it is no object"])
    shape = [f"{NAME}: {key} is missing, or of another type" for key, kind in _KEYS.items() if not isinstance(told.get(key), kind)]
    shape += [f"{NAME}: {key} does not belong there" for key in told.keys() - _KEYS.keys()]
    if shape:
        return Unsealed(None, str(told.get("digest", "")), shape)
    if told["format"] != FORMAT:
        return Unsealed(
            None, told["digest"], [f"format was {FORMAT}, is {_shown(told['format'])}: changed, or of another version of plait"]
        )
    found = _changed(told["claims"], told["sealed"], told["digest"])
    if not found and not as_written:
        found = [f"{NAME}: its bytes are not as plait wrote them, although its claims are"]
    claims = told["claims"] if told["digest"] != digest(told["sealed"]) else json.loads(told["sealed"])
    return Unsealed(claims, told["digest"], found)


def _changed(claims: Mapping[str, Any], text: str, named: str) -> list[str]:
    """Return what was changed, where the digest, the claims and their sealed copy do not agree."""
    try:
        readable = canonical(claims)
    except ValueError:
        readable = ""  # a number that is not finite, which no passport has
    if named == digest(readable) == digest(text):
        return []
    if named not in (digest(readable), digest(text)):
        if readable == text:
            return [f"digest was {digest(text)}, is {_shown(named)}"]
        return [f"digest {_shown(named)} is neither that of the claims, {digest(readable)}, nor that of their copy, {digest(text)}"]
    try:
        copy = json.loads(text)
    except (ValueError, RecursionError):
        return ["sealed: the copy of the claims was changed: it is no JSON"]
    if named == digest(readable):
        return [f"sealed: {line}" for line in differences(claims, copy, "its copy of claim")] or ["sealed: blanks were changed"]
    return list(differences(copy, claims))


def differences(was: Any, now: Any, what: str = "claim", name: str = "") -> Iterator[str]:
    """Yield a line for each leaf in which two JSON values differ: `claim stages[0].samples was 24, is 25`."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*was, *now]):
            inner = f"{name}.{key}" if name else str(key)
            if key not in now:
                yield f"{what} {inner} was {_shown(was[key])}, is gone"
            elif key not in was:
                yield f"{what} {inner} was not there, is {_shown(now[key])}"
            else:
                yield from differences(was[key], now[key], what, inner)
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for number, pair in enumerate(zip(was, now, strict=True)):
            yield from differences(*pair, what, f"{name}[{number}]")
    elif _text(was) != _text(now):
        yield f"{what} {name} was {_shown(was)}, is {_shown(now)}"


def _text(value: Any) -> str:
    """Return a value's text, by which 1, 1.0 and true are told from each other."""
    return json.dumps(value, sort_keys=True)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else _text(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."
