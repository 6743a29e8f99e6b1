"""Say which fields a record has, and which are looked for, in messages about one without text or picture. Values are never told."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from plait.data.records import IMAGE_KINDS, PATH_FIELDS, is_absent

TEXTS = ("messages", "conversations", "texts", "caption", "text")
"""Fields that hold a record's text; the first that is not null counts."""
PICTURES = ("image", "images", *PATH_FIELDS)
"""Fields that name a record's pictures, in the order in which they are looked for."""

_PLAIN = re.compile(r"[^\W\d](?:[\w .:/-]{0,39}[\w.:/-])?")
_MOST, _LONGEST = 20, 40  # names, and characters of one


def field_list(names: Iterable[object]) -> str:
    """List the names of a record's fields, odd ones between quotes, as the end of a sentence; "no fields" for none.

    One hint may follow, after a semicolon: to rename with `columns`, where names are known ones but for capitals and spaces around them; or
    else to add a first line with names, where a name looks like a value.
    """
    texts = list(map(str, names))
    shown = [name if _is_plain(name) else repr(_short(name)) for name in texts[:_MOST]]
    more = f" and {len(texts) - _MOST} more" if len(texts) > _MOST else ""
    return (", ".join(shown) + more if texts else "no fields") + _suggestion(texts)


def no_answer(sample: Mapping[str, Any]) -> str:
    """Return the reason of a sample without an assistant turn. Without any text, it names the fields that there are."""
    if sample["messages"] or sample.get("annotations"):
        return "no assistant turn: there is nothing to learn from this sample"
    cure = "`columns` renames a field, `template` makes a text of several"
    return f"no assistant turn: none of the fields {', '.join(TEXTS)} ({cure}); the record has {field_list(sample['fields'])}"


def not_one_image(sample: Mapping[str, Any]) -> str:
    """Return why a model that draws pixels cannot use a sample without a picture, naming its fields, or one with several."""
    if sample["images"]:
        return f"it has {len(sample['images'])} images, and the model draws one of a sample; make each a sample of its own"
    fields, missing = sample["fields"], "no image in the sample, and the model draws pixels"
    null = [f"`{name}`" for name in PICTURES if name in fields and is_absent(fields[name])]
    if null:
        return f"{missing}: {' and '.join(null)} {'is' if len(null) == 1 else 'are'} null or blank"
    return f"{missing}: none of the fields {', '.join(PICTURES)}; the record has {field_list(fields)}"


def _is_plain(name: str) -> bool:
    return _PLAIN.fullmatch(name) is not None and name.rpartition(".")[2].lower() not in IMAGE_KINDS - {name.lower()}


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."


def _suggestion(names: Sequence[str]) -> str:
    """Return what is to be done about names with spaces or capitals, or else about one that is no name, as the end of a sentence."""
    near = {name.strip().lower(): name for name in names}
    renamed = ", ".join(f"{ours}: {theirs!r}" for ours, theirs in near.items() if ours in (*TEXTS, *PICTURES) and ours not in names)
    if renamed:
        return f"; rename with columns: {{{renamed}}}"
    odd = next((name for name in names if not _is_plain(name)), None)
    return (
        ""
        if odd is None
        else f"; {_short(odd)!r} looks like a value: the first line of CSV is read as the names of the columns, so add one"
    )
