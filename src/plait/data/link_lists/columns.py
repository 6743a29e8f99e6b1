"""Find the columns of a list of links: address, caption and hash, by the names that published lists give them.

| list | address | caption | hash |
|---|---|---|---|
| DataComp | url | text | sha256 |
| LAION | URL | TEXT | |
| COYO | url | text | |
| CC12M, CC3M (no header) | url | caption | |
| PixMo | image_url | caption (PixMo-Cap) | image_sha256 |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plait.data.field_names import field_list
from plait.errors import PlaitError

NAMES: Mapping[str, tuple[str, ...]] = {
    "url": ("url", "image_url", "img_url", "image_link"),
    "caption": ("caption", "text", "alt_text", "alt", "top_caption"),
    "hash": ("sha256", "image_sha256", "md5", "image_md5"),
}
"""The names that are looked for, in small letters or capitals, in this order."""


@dataclass(frozen=True)
class Columns:
    """The names of a list's columns with the address, the caption and the hash (SHA-256 or MD5); None where there is none."""

    url: str
    caption: str | None = None
    hash: str | None = None


def find_columns(names: Sequence[str], given: Mapping[str, str], title: str) -> Columns:
    """Return the columns of a list with the columns `names`. `given`: those the user names, by url, caption or hash; `title`: of the list.

    Raises PlaitError for one that there is not, and where no column has a known name of addresses.
    """
    wrong = next((name for name in given.values() if name not in names), None)
    if wrong is not None:
        raise PlaitError(f"{title} has no column {wrong!r}; it has {field_list(names)}")
    lower = {name.lower(): name for name in reversed(names)}
    found = {role: given.get(role) or next((lower[name] for name in known if name in lower), None) for role, known in NAMES.items()}
    if found["url"] is None:
        known = ", ".join(NAMES["url"])
        raise PlaitError(f"{title} has no column of addresses ({known}); name it with --url-column; it has {field_list(names)}")
    return Columns(found["url"], found["caption"], found["hash"])
