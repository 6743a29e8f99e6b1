"""Convert arrays to and from `.npy` bytes (NEP 1). Parsing returns a view of the bytes; parsed headers are cached."""

import io
import math
from functools import lru_cache

import numpy as np

from plait.errors import BadSample

_MAGIC = b"\x93NUMPY"
_HEADERS = {1: (2, np.lib.format.read_array_header_1_0), 2: (4, np.lib.format.read_array_header_2_0)}  # version: bytes of the length


def dump(array: np.ndarray) -> bytes:
    """Return an array as the bytes of a `.npy` file; equal arrays give equal bytes."""
    body = io.BytesIO()
    np.save(body, np.ascontiguousarray(array), allow_pickle=False)
    return body.getvalue()


def parse(body: bytes, where: str) -> np.ndarray:
    """Return the array of a `.npy` file's bytes, as a read-only view of them.

    Raises BadSample, with `where` in its text, for bytes that are no array, hold Python objects, or are cut short.
    """
    width, _ = _HEADERS.get(body[6] if len(body) > 6 else 0, (0, None))
    start = 8 + width + int.from_bytes(body[8 : 8 + width], "little")
    if not body.startswith(_MAGIC) or not width or len(body) < start:
        raise BadSample(f"{where} is not an .npy array ({len(body)} bytes)")
    try:
        shape, dtype, columns_first = _header(body[:start])
    except (ValueError, SyntaxError) as error:
        raise BadSample(f"{where} has a broken .npy header: {error}") from error
    if dtype.hasobject:
        raise BadSample(f"{where} holds Python objects, which are never loaded")
    count = math.prod(shape)
    if len(body) - start != count * dtype.itemsize:
        raise BadSample(f"{where} has {len(body) - start} bytes of data, its shape {shape} of {dtype} needs {count * dtype.itemsize}")
    return np.frombuffer(body, dtype, count, start).reshape(shape, order="F" if columns_first else "C")


@lru_cache(maxsize=4096)
def _header(head: bytes) -> tuple[tuple[int, ...], np.dtype, bool]:
    shape, columns_first, dtype = _HEADERS[head[6]][1](io.BytesIO(head[8:]))
    return shape, dtype, columns_first
