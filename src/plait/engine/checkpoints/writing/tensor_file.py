"""Write a safetensors file in one pass, piece by piece: written, hashed and flushed to the disk.

The bytes are those of safetensors' own `save_file` (https://github.com/huggingface/safetensors#format), after which the file would be read
again for its hash, and flushed at once: gigabytes at a time, for which whatever else writes to the disk waits too.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

_WIDEST_FIRST = {
    **{torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16"},
    **{torch.float16: "F16", torch.int16: "I16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}
"""Types by their names in a header, in the order of their tensors in a file, which keeps each aligned."""
_PIECE_BYTES = 1 << 23
_FLUSHED_BYTES = 1 << 26
_flush = getattr(os, "fdatasync", os.fsync)  # macOS has none


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Write tensors, by name, to the safetensors file `path`; returns {"size": bytes, "xxh3": hash of them}.

    `metadata`: texts for its header. At the return the file is on the disk. Raises OSError, and ValueError for a type it cannot hold.
    """
    order = list(_WIDEST_FIRST)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        value, begin, end = tensors[name], end, end + tensors[name].nbytes
        header[name] = {"dtype": _WIDEST_FIRST[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, unflushed = xxhash.xxh3_64(), 0
    with path.open("wb", buffering=1 << 20) as file:
        for body in (memoryview(len(text).to_bytes(8, "little") + text), *(_bytes(tensors[name]) for name in names)):
            for first in range(0, len(body), _PIECE_BYTES):
                piece = body[first : first + _PIECE_BYTES]
                file.write(piece)
                digest.update(piece)
                unflushed += len(piece)
                if unflushed >= _FLUSHED_BYTES:
                    file.flush()
                    _flush(file.fileno())
                    unflushed = 0
        file.flush()
        os.fsync(file.fileno())
    return {"size": 8 + len(text) + end, "xxh3": digest.hexdigest()}


def _bytes(value: Tensor) -> memoryview:
    return memoryview(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy's stubs tell of no buffer
