"""Aspect-ratio buckets: the sizes that pictures are cropped to, and which one suits a picture.

The distance between two aspect ratios is that of their logarithms: a ratio of 2 is as far from square as a ratio of 1/2, so a picture
and its transpose go to transposed buckets.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from plait.errors import PlaitError

_NAME = re.compile(r"(?:bucket_)?([1-9]\d*)x([1-9]\d*)")
_SAME = 1e-9  # log ratios closer than this are one ratio


class Bucket(NamedTuple):
    """One crop size, in pixels: pictures of the bucket are cropped to exactly this width and height."""

    width: int
    height: int

    @property
    def name(self) -> str:
        """The name of the bucket, width first, such as 832x1216."""
        return f"{self.width}x{self.height}"


STANDARD = (Bucket(1024, 1024), Bucket(832, 1216), Bucket(1216, 832), Bucket(768, 1280), Bucket(1280, 768))
"""The buckets, of about a megapixel, that `plait data shard` fills by default."""


def parse(name: str) -> Bucket:
    """Parse `832x1216` (width x height), or the folder name `bucket_832x1216`. Raises PlaitError for anything else."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise PlaitError(f"{name!r} is no bucket: write WIDTHxHEIGHT in pixels, such as 832x1216")
    return Bucket(int(match[1]), int(match[2]))


def nearest(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """Return the bucket nearest in aspect ratio to an image (pixels); of several, the largest that fits inside it, else the smallest."""
    ratio = math.log(width / height)
    distances = {bucket: abs(ratio - math.log(bucket.width / bucket.height)) for bucket in buckets}
    nearest_ratio = [bucket for bucket in buckets if distances[bucket] <= min(distances.values()) + _SAME]
    fitting = [bucket for bucket in nearest_ratio if bucket.width <= width and bucket.height <= height]
    return max(fitting, key=math.prod) if fitting else min(nearest_ratio, key=math.prod)
