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
    """Width and height in pixels."""

    width: int
    height: int

    @property
    def name(self) -> str:
        """Such as 832x1216: width first."""
        return f"{self.width}x{self.height}"


STANDARD = (Bucket(1024, 1024), Bucket(832, 1216), Bucket(1216, 832), Bucket(768, 1280), Bucket(1280, 768))


def parse(name: str) -> Bucket:
    """`832x1216`, or the folder name `bucket_832x1216`."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise PlaitError(f"{name!r} is no bucket: write WIDTHxHEIGHT in pixels, such as 832x1216")
    return Bucket(int(found[1]), int(found[2]))


def nearest(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket of the nearest aspect ratio; among several of one ratio the largest that needs no enlarging, else the smallest."""
    ratio = math.log(width / height)
    apart = {bucket: abs(ratio - math.log(bucket.width / bucket.height)) for bucket in buckets}
    alike = [bucket for bucket in buckets if apart[bucket] <= min(apart.values()) + _SAME]
    fitting = [bucket for bucket in alike if bucket.width <= width and bucket.height <= height]
    return max(fitting, key=math.prod) if fitting else min(alike, key=math.prod)
