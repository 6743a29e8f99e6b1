"""Read the header X-Robots-Tag, by which a server forbids that a picture is used to train models."""

from collections.abc import Iterable

AGENT = "plait"
_FORBIDDING = frozenset(["noai", "noimageai", "noindex", "noimageindex", "none"])


def forbidden_by(values: Iterable[str]) -> str | None:
    """Return the directive of X-Robots-Tag headers that forbids training, for all robots or for plait; None: it is allowed.

    `values`: the value of each such header, as "noai, noimageai" or "plait: noai, nofollow".
    """
    for value in values:
        agent = ""  # directives count for all robots until one is named
        for part in value.lower().split(","):
            name, colon, rest = part.partition(":")
            directive = part.strip()
            if colon and name.strip() != "unavailable_after" and "-" not in name:
                agent, directive = name.strip(), rest.strip()
            if agent in ("", "*", AGENT) and directive in _FORBIDDING:
                return directive
    return None
