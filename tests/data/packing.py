"""Small tar shards, pictures and records for the tests of the data part."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image


def picture(red: int = 0, size: tuple[int, int] = (6, 4), kind: str = "PNG") -> bytes:
    """An encoded one-coloured image."""
    body = io.BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(body, kind)
    return body.getvalue()


def pack(path: Path, members: list[tuple[str, bytes]], **options) -> Path:
    """Write a tar of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, body in members:
            member = tarfile.TarInfo(name)
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return path


def labelled(path: Path, first: int, count: int) -> Path:
    """A shard of pictures whose red is their number, with the number as label."""
    members = []
    for number in range(first, first + count):
        members += [(f"{number:04d}.png", picture(number % 256)), (f"{number:04d}.json", json.dumps({"label": number}).encode())]
    return pack(path, members)
