"""Addresses of data files (s3://, https://, ...): fill in environment variables, and hide secrets where an address is printed.

An address may hold `$NAME` or `${NAME}`, an environment variable whose value is filled in only when a file is opened: reports, sample
names and the records of a run hold the address as it was written, without its user part and query.
"""

import os
import re
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, urlencode, urlsplit

from plait.config import secrets
from plait.errors import PlaitError

_OF_SIGNATURES = re.compile(r"x-(?:amz|goog)-.+|expires|policy|s[eprtv]|spr|sk\w+|st", re.IGNORECASE)  # what stands beside a signature
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def is_remote(path: str) -> bool:
    """Return whether `path`, its environment variables filled in, has a scheme (s3://, https://, memory://, ...) other than file://.

    A variable that is not set is left as it is written, and raises nothing: "$NAME/a.tar" is then False.
    """
    spelled_out = os.path.expandvars(path)
    return "://" in spelled_out and not spelled_out.startswith("file://")


def is_web(path: str) -> bool:
    """Return whether `path` is an http(s) address, where `?` begins a query."""
    return os.path.expandvars(path).startswith(("http://", "https://"))


def spelled_out(address: str) -> str:
    """Return `address` with its environment variables (`$NAME`, `${NAME}`) filled in. Raises PlaitError if one is not set."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise PlaitError(f"{shown(address)} needs the environment variable {name}, which is not set")
        return os.environ[name]

    return _VARIABLE.sub(value, address)


def shown(address: str) -> str:
    """Return `address` without user part, query and fragment, for logs and files. Its environment variables are not filled in."""
    return secrets.without_secrets(address)


def name_of(address: str) -> str:
    """Return the file name in an address, without anything secret: "a.tar" for "https://host/a.tar?signature"."""
    return PurePosixPath(shown(address)).name


def identity(address: str) -> str:
    """Return what to hash of an address, so that signing it anew changes nothing: variables filled in, no user part, no signature.

    It is never printed, as it may hold the values of environment variables. Raises PlaitError if one of them is not set.
    """
    if not is_web(address):
        return secrets.without_secrets(spelled_out(address))
    parts = urlsplit(spelled_out(address))
    query = parse_qsl(parts.query, keep_blank_values=True)
    signed = any(secrets.looks_signed(name) for name, _ in query)
    kept = [pair for pair in query if not (secrets.looks_signed(pair[0]) or (signed and _OF_SIGNATURES.fullmatch(pair[0])))]
    return shown(f"{parts.scheme}://{parts.netloc}{parts.path}") + (f"?{urlencode(kept)}" if kept else "")
