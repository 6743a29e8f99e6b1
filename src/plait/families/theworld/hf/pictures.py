"""Pictures and clips of any kind that Python code has, as the encoded files that training reads."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers.image_utils import load_image

from plait.config.messages import with_type
from plait.data.formats.clips import is_clip, read_clip
from plait.data.records import IMAGE_KINDS
from plait.errors import PlaitError

_LONGEST_PATH = 4096


def encoded(picture: Any) -> bytes:
    """Return a picture as the content of a file, without loss.

    `picture`: a path, the content of a file, a PIL image, a uint8 array (height, width, 3), or what transformers loads: an address or
    base64. Raises PlaitError for a path without a file, and for anything else.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Path) or (isinstance(picture, str) and _may_be_path(picture)):
        path = Path(picture).expanduser()
        if not path.is_file():
            raise PlaitError(f"there is no picture {path}")
        return path.read_bytes()
    if isinstance(picture, str):
        return _png(_loaded(picture))
    if isinstance(picture, np.ndarray | Tensor):
        pixels = np.asarray(picture)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise PlaitError(f"a picture as an array is uint8 (height, width, 3), not {pixels.dtype} {pixels.shape}")
        return _png(Image.fromarray(pixels))
    if isinstance(picture, Image.Image):
        return _png(picture)
    raise PlaitError(f"a picture is a PIL image, an array, a path, an address or the content of a file, not {with_type(picture)}")


def _loaded(text: str) -> Image.Image:
    """Return the picture at an address, or in base64. Raises PlaitError where there is none."""
    try:
        return load_image(text)
    except Exception as error:  # whatever the client of the address, or the decoder, raises
        reason = f" ({type(error).__name__})" if text.startswith(("http://", "https://")) else ""
        raise PlaitError(f"{with_type(text)} is no path, address or base64 of a picture{reason}") from error


def frames(clip: Any) -> list[bytes]:
    """Return a clip's frames in order, as the content of files.

    `clip`: a list of pictures, a folder of them, a video file, or None for no frames. Raises PlaitError where it cannot be read.
    """
    if clip is None:
        return []
    if isinstance(clip, str | Path):
        path = Path(clip).expanduser()
        if not path.exists():
            raise PlaitError(f"there is no clip {path}")
        return read_clip(path, IMAGE_KINDS) if is_clip(path) else [path.read_bytes()]
    if isinstance(clip, np.ndarray | Tensor) and clip.ndim == 4:
        return [encoded(frame) for frame in clip]
    return [frame for part in (clip if isinstance(clip, Sequence) and not isinstance(clip, bytes) else [clip]) for frame in _part(part)]


def _part(part: Any) -> list[bytes]:
    return frames(part) if isinstance(part, str | Path) else [encoded(part)]


def _may_be_path(text: str) -> bool:
    return len(text) < _LONGEST_PATH and not text.startswith(("http://", "https://", "data:")) and ("." in text or Path(text).is_file())


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    writable = image if image.mode in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA") else image.convert("RGB")
    writable.save(file, "PNG", compress_level=1)
    return file.getvalue()
