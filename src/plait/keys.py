"""Random numbers from keys, 64 bits mixed from (seed, purpose, ids): functions of those, not of earlier draws. Not for cryptography."""

import numpy as np
import xxhash


def key(*parts: int | str) -> int:
    """Mix `parts`, such as (seed, "order", epoch), to a 64-bit key. ("a", "bc") and ("ab", "c") differ, as do 1 and "1"."""
    digest = xxhash.xxh3_64()
    for part in parts:
        body = part.encode() if isinstance(part, str) else str(int(part)).encode()
        digest.update(b"s" if isinstance(part, str) else b"i")
        digest.update(len(body).to_bytes(8, "little"))
        digest.update(body)
    return digest.intdigest()


def rng(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator (Philox, counter-based) for the key of `parts`: the same draws on every machine, rank and worker."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))
