"""The outcomes of the rows of a list of links, by name, with what each means. Every row gets exactly one."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

SAVED = "saved"
MEANINGS: Mapping[str, str] = {
    SAVED: "the picture is in the shard",
    "bad_row": "the row of the list is broken, or its hash is none",
    "no_url": "the row has no address",
    "repeated": "an earlier row has the same address, and its picture",
    "bad_url": "it is, or leads to, no http(s) address",
    "private_address": "it is, or leads to, an address of this machine or a private network",
    "dns": "its host has no address",
    "connect": "no connection to its host",
    "tls": "no safe connection to its host: its certificate or protocol is refused",
    "timeout": "nothing came for the time allowed, or not all of it",
    "broken_answer": "the connection broke, or the answer is no HTTP",
    "redirects": "it redirects in a circle, or too often",
    "opt_out": "its X-Robots-Tag forbids use for training",
    "encoding": "its body is compressed in a way that is not read",
    "truncated": "the body is shorter than its Content-Length",
    "too_large": "the body is over the limit of bytes",
    "empty": "the body is empty",
    "html": "a page of HTML or XML, no picture",
    "not_a_picture": "no picture of a format that is read",
    "damaged": "a picture that does not decode",
    "too_many_pixels": "a picture over the limit of pixels",
    "too_small": "a picture with a side under the limit",
    "hash": "its hash is not the one in the list",
}
"""What each outcome means. One more, `http_404` and the like, is a status of HTTP."""
UNANSWERED = frozenset(["dns", "connect", "timeout"])
"""Outcomes that a dead network gives to any link. They count once any server has answered a later request."""
BROKEN = UNANSWERED | {"broken_answer", "truncated"}
"""Those, and what the end of a network gives to links that are under way."""
_UNASKED = UNANSWERED | {"bad_row", "no_url", "repeated", "bad_url", "private_address", "tls", "broken_answer"}


@dataclass(frozen=True)
class Outcome:
    """What became of one row. `row`: its number in the list, from 0; `status`: one of MEANINGS or `http_...`; `detail`: why, where known.

    `picture`: facts of a saved one, by name: kind (the ending of its file), width, height (pixels, upright), bytes, sha256 (of the file as
    it came).
    """

    row: int
    status: str
    url: str | None
    detail: str = ""
    picture: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return the outcome as a row of a manifest, without what is empty."""
        told = {"row": self.row, "status": self.status, "url": self.url, "detail": self.detail, **self.picture}
        return {name: value for name, value in told.items() if value not in ("", None) or name == "url"}

    @classmethod
    def of_plain(cls, row: Mapping[str, Any]) -> "Outcome":
        """Return the outcome that `plain` made a row of."""
        own = ("row", "status", "url", "detail")
        return cls(row["row"], row["status"], row["url"], row.get("detail", ""), {k: v for k, v in row.items() if k not in own})


def is_outcome(name: str) -> bool:
    """Return whether `name` is the outcome of a row that gave no picture."""
    return (name in MEANINGS and name != SAVED) or re.fullmatch(r"http_[1-5]\d\d", name) is not None


def was_answered(status: str) -> bool:
    """Return whether a link with this outcome had an answer of a server, whatever it said."""
    return status not in _UNASKED


def meaning(status: str) -> str:
    """Return what an outcome means, for a person."""
    if status in MEANINGS:
        return MEANINGS[status]
    number = int(status.removeprefix("http_"))
    phrase = next((known.phrase for known in HTTPStatus if known == number), "")
    return f"status {number} {phrase}".rstrip()


def count_lines(counts: Mapping[str, int]) -> list[str]:
    """Return a table of outcomes as lines: count, share, name and meaning; saved ones first, then the most frequent."""
    total = sum(counts.values())
    ordered = sorted(Counter(counts).items(), key=lambda item: (item[0] != SAVED, -item[1], item[0]))
    return [f"{count:>12,}  {count / max(total, 1):>6.1%}  {status:<16} {meaning(status)}" for status, count in ordered]
