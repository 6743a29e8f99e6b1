"""What `plait data download` allows a link, a host and a picture. All limits have defaults that suit lists of links of the open web."""

from collections.abc import Sequence
from dataclasses import dataclass

from plait.data.image_files import MAX_PIXELS


@dataclass(frozen=True)
class NetworkLimits:
    """Limits of connections. They change how fast a list is fetched, and which links fail that are slow.

    `connections`: at once, `per_host` of them to one host; `timeout_s`: for a connection, and between two pieces of an answer (a whole one
    may take six times as long); `attempts` at a link whose failure may pass; `wait_s`: the longest that a host may ask to wait.
    `allowed`: networks, such as 10.0.0.0/8, that links may lead to besides public addresses.
    """

    connections: int = 256
    per_host: int = 16
    timeout_s: float = 10.0
    attempts: int = 2
    wait_s: float = 60.0
    redirects: int = 10
    allowed: Sequence[str] = ()

    @property
    def whole_s(self) -> float:
        """Seconds that one attempt at a whole picture may take."""
        return 6 * self.timeout_s


@dataclass(frozen=True)
class PictureLimits:
    """What is saved. `max_bytes` of a file, `max_pixels` (width x height) and `min_side` (pixels) of a picture.

    `max_side`: a picture with a longer side is scaled down to it, as a JPEG of quality 95; None: every file is kept as it came.
    `check_hash`: refuse a file whose hash is not the one in the list.
    """

    max_bytes: int = 20 << 20
    max_pixels: int = MAX_PIXELS
    min_side: int = 1
    max_side: int | None = None
    check_hash: bool = True
