"""Read a clip's frames, encoded pictures in order, from a folder of pictures or a video file. PyAV, which decodes videos, is optional."""

import io
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, TypeGuard

from PIL import Image

from plait.data.formats.names import natural
from plait.errors import BadSample, PlaitError

VIDEO_KINDS = frozenset(["mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg"])
"""Endings, in small letters, of files that are read as videos."""
MOST_FRAMES = 65
"""Frames that are read of a clip, its first ones: 1 + 4 x 16, what a model of 16 world steps sees."""


def is_video(value: object) -> TypeGuard[str]:
    """Return whether a value is text that is named as a video."""
    return isinstance(value, str) and value.rpartition(".")[2].lower() in VIDEO_KINDS


def is_clip(path: Path) -> bool:
    """Return whether a path is a folder, or is named as a video."""
    return path.suffix[1:].lower() in VIDEO_KINDS or path.is_dir()


def read_clip(path: Path, image_kinds: Collection[str]) -> list[bytes]:
    """Return the first 65 frames of a folder's pictures, by name (frame2 before frame10), or of a video, as PNG.

    `image_kinds`: endings of files that are pictures. Raises BadSample where there are none or they cannot be read,
    PlaitError for a video where PyAV is not installed.
    """
    if path.is_dir():
        pictures = [file for file in path.iterdir() if file.suffix[1:].lower() in image_kinds and not file.name.startswith(".")]
        if not pictures:
            raise BadSample(f"the folder {path} of a clip has no pictures")
        return [file.read_bytes() for file in sorted(pictures, key=lambda file: natural(file.name))[:MOST_FRAMES]]
    return decode_video(str(path), str(path))


def decode_video(source: str | BinaryIO, path: str) -> list[bytes]:
    """Return the first 65 frames of a video, as PNG. `source`: its path, or the file; `path`: its name for messages.

    Raises BadSample where it cannot be read, PlaitError where PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise PlaitError(f"{path} is a video, which PyAV decodes ({error}): pip install 'plait[video]'") from error
    frames: list[bytes] = []
    try:
        with av.open(source, "r") as video:
            if not video.streams.video:
                raise BadSample(f"the video {path} has no pictures: it is cut off, or sound alone")
            for frame in video.decode(video=0):
                frames.append(_png(frame.to_image()))
                if len(frames) == MOST_FRAMES:
                    break
    except (OSError, ValueError, IndexError) as error:  # what PyAV raises are kinds of these
        raise BadSample(f"the video {path} cannot be read after {len(frames)} frames: {error}") from error
    if not frames:
        raise BadSample(f"the video {path} has no frames")
    return frames


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
