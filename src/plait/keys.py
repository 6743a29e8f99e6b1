"""Random numbers from keys, 64 bits mixed from (seed, purpose, ids): functions of those, not of earlier draws. Not for cryptography."""

import functools

import numpy as np
import xxhash

_BEFORE_DIGITS = [b"i" + length.to_bytes(8, "little") for length in range(64)]
"""What stands before an integer's digits, by how many they are: many keys are made per step."""
_SMALL = [_BEFORE_DIGITS[len(b"%d" % number)] + b"%d" % number for number in range(256)]


def key(*parts: int | str, after: bytes = b"") -> int:
    """Mix `parts`, such as (seed, "order", epoch), to a 64-bit key. ("a", "bc") and ("ab", "c") differ, as do 1 and "1".

    `after`: what `stem` made of the parts before these, where many keys have those in common.
    """
    return xxhash.xxh3_64_intdigest(_encoded(after, parts))


@functools.lru_cache
def stem(*parts: int | str) -> bytes:
    """Encode the first parts of many keys once: `key(*rest, after=stem(*parts))` is `key(*parts, *rest)`, in half the time."""
    return _encoded(b"", parts)


def _encoded(data: bytes, parts: tuple[int | str, ...]) -> bytes:
    for part in parts:
        if isinstance(part, str):
            data += _text(part)
        elif 0 <= part < 256:
            data += _SMALL[part]
        else:
            digits = b"%d" % part
            data += _BEFORE_DIGITS[len(digits)] + digits
    return data


@functools.lru_cache
def _text(part: str) -> bytes:
    body = part.encode()
    return b"s" + len(body).to_bytes(8, "little") + body


def rng(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator (Philox, counter-based) for the key of `parts`: the same draws on every machine, rank and worker."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))
