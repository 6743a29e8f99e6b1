"""Make a conversation of a record (one sample's fields, by name): `messages` of {"role", "content"}, roles system, user and assistant.

The messages come from the first of these that is present: the `template` configured for the data (format strings over the record's fields),
a `messages` list as chat models take it, a `conversations` list as LLaVA and ShareGPT write it, a `texts` list of {"user", "assistant"}
as the_cauldron does, a `caption`, a `text`. A record with none of them has no messages: some families need none. A field that is there
but null or not a number is absent: it is never written as the word "None" or "nan". `<image>` in a content marks where the next image
goes. A record may have several conversations about its images, as `annotations`. Nothing here depends on a tokenizer.
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from numbers import Real
from string import Formatter
from typing import Any

from plait.config.schema import Template
from plait.data.field_names import TEXTS, field_list
from plait.errors import BadSample, PlaitError

IMAGE_MARK = "<image>"
"""Where the next image goes in a user's text."""
ROLES = ("system", "user", "assistant")

_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant", "system": "system"}
_IMAGE_PARTS = ("image", "image_url")
_TURN_KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}
_UNSPELLED = (bool, bytes, bytearray, list, tuple, set, Mapping)
"""Types whose values have no one spelling as text: Python's, such as "['yes']" or "True", is not what the data holds."""
_INVISIBLE = "\u115f\u1160\u2800\u3164\uffa0"  # fillers and the empty braille cell: letters and symbols that show nothing
MOST_CHARACTERS = 1_000_000
"""The limit for the text of one conversation: a longer one takes seconds to tokenize, and nearly all of it is truncated."""


def rename(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the record with fields renamed. `columns`: new name -> old, as {"caption": "TEXT"}. Raises BadSample if a field is missing."""
    missing = [theirs for theirs in columns.values() if theirs not in record]
    if missing:
        raise BadSample(f"no field {missing[0]!r} (columns); the record has {field_list(record)}")
    renamed = set(columns.values())
    return {k: v for k, v in record.items() if k not in renamed} | {ours: record[theirs] for ours, theirs in columns.items()}


def patterns(template: Template) -> list[tuple[str, str | None]]:
    """Return (role, format string) for system, user and assistant, in this order; None in place of a string that the template lacks."""
    return [("system", template.system), ("user", template.user), ("assistant", template.assistant)]


class NoText(BadSample):
    """A sample whose text is absent: null, or blank where the source does not allow that."""


def messages(fields: Mapping[str, Any], template: Template | None, *, allow_blank: bool = False) -> list[dict[str, str]]:
    """Return the conversation of one record as {"role", "content"} turns; [] if it has no field for text.

    `template` None: of the record's own fields `messages`, `conversations`, `texts`, `caption`, `text` the first counts that is not null;
    the last two become an assistant's turn after an empty user's turn. Raises BadSample for a malformed conversation, for fields for text
    that are all null, and where a field that the template names is missing, null or, unless `allow_blank`, a blank text.
    """
    if template is not None:
        return _from_template(fields, template, allow_blank=allow_blank)
    present = [name for name in TEXTS if name in fields]
    if not present:
        return []
    name = next((name for name in present if not is_null(fields[name])), None)
    if name is None:
        raise NoText(f"no text: {' and '.join(f'`{name}`' for name in present)} {'is' if len(present) == 1 else 'are'} null")
    if name in _TURN_KEYS:
        return [_turn(turn, *_TURN_KEYS[name]) for turn in _list(fields, name)]
    if name == "texts":
        return [turn for pair in _list(fields, name) for turn in _pair(pair)]
    if not isinstance(fields[name], str):
        raise BadSample(f"`{name}` is {kind_of(fields[name])}, not text")
    return [{"role": "user", "content": ""}, {"role": "assistant", "content": fields[name].strip()}]


def blank(content: str) -> bool:
    """Return whether a text shows nothing: it is empty, or all white space, control and format characters (such as U+200B)."""
    return all(letter.isspace() or letter in _INVISIBLE or unicodedata.category(letter) in ("Cc", "Cf") for letter in content)


def is_null(value: object) -> bool:
    """Return whether a value is null, or not a number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def kind_of(value: object) -> str:
    """Return a name for a value's type, such as "a number", for error messages, which never hold the content of a file."""
    numbers = {int: "a number", float: "a number"}
    names = {str: "text", bytes: "bytes", bool: "true or false", **numbers, list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def check(conversation: Sequence[Mapping[str, str]], images: int, *, allow_blank: bool) -> None:
    """Raise BadSample if a conversation is unfit for training.

    `<image>` marks may stand only in user turns, and there must be none or `images` of them. Unless `allow_blank`, no assistant turn may be
    blank. The text has at most MOST_CHARACTERS (1,000,000) characters, all of them valid Unicode (no half of a surrogate pair).
    """
    if not conversation:
        return
    marked = [turn for turn in conversation if IMAGE_MARK in turn["content"]]
    if wrong := next((role for role in ("system", "assistant") if any(turn["role"] == role for turn in marked)), None):
        raise BadSample(f"the text of the {wrong} holds {IMAGE_MARK}: images stand in the user's turns")
    if marked and (marks := sum(turn["content"].count(IMAGE_MARK) for turn in marked)) != images:
        raise BadSample(f"the text has {marks} {IMAGE_MARK} marks, the sample {images} images")
    characters = sum(len(turn["content"]) for turn in conversation)
    if characters > MOST_CHARACTERS:
        raise BadSample(f"a text of {characters:,} characters is over the limit of {MOST_CHARACTERS:,}")
    for turn in conversation:
        if turn["role"] == "assistant" and not allow_blank and blank(turn["content"]):
            raise NoText("an empty answer; `allow_blank: true` of the source trains on it")
        if "\0" in turn["content"]:
            raise BadSample("a text with a NUL, which is no character of a text")
        if not turn["content"].isascii() and any("\ud800" <= letter <= "\udfff" for letter in turn["content"]):
            raise BadSample("a text with half of a surrogate pair, which is no character")


def has_annotations(fields: Mapping[str, Any]) -> bool:
    """Return whether a record's `annotations` are conversations: a list in which an item has `messages` or `conversations`.

    Other annotations, such as boxes, are a field like any other.
    """
    items = fields.get("annotations")
    objects = [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []
    return any(not is_null(item.get(name)) for item in objects for name in _TURN_KEYS)


def annotations(items: object, images: int, *, allow_blank: bool) -> list[dict[str, Any]]:
    """Return several conversations about the same images: each item without its null fields, with `messages` made of its text.

    `items`: the list as read; each may have a `style` and a loss `weight` of at least 0. `images`: the number of images of the sample.
    Raises BadSample, which numbers the item from 1, for one that is no object, has no text, or is unfit for training, as `check` says.
    """
    if not isinstance(items, list | tuple) or not items:
        raise BadSample(f"`annotations` is not a list of conversations but {'an empty one' if items in ([], ()) else kind_of(items)}")
    made = []
    for number, item in enumerate(items, 1):
        try:
            made.append(_annotation(item, images, allow_blank=allow_blank))
        except BadSample as error:
            raise BadSample(f"annotation {number} of {len(items)}: {error}") from error
    return made


def _annotation(item: object, images: int, *, allow_blank: bool) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise BadSample(f"it is {kind_of(item)}, not an object with `messages`")
    given = {name: value for name, value in item.items() if not is_null(value)}
    conversation = messages(given, None)
    if not conversation:
        raise BadSample(f"none of the fields {', '.join(TEXTS)}; it has {field_list(given)}")
    check(conversation, images, allow_blank=allow_blank)
    if not isinstance(given.get("style", ""), str):
        raise BadSample(f"its `style` is {kind_of(given['style'])}, not text")
    weight = given.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= float(weight) < math.inf:
        raise BadSample(f"its `weight` is {weight if isinstance(weight, Real) else kind_of(weight)}, not a number of at least 0")
    return {**given, "messages": conversation}


def check_template(template: Template, fields: Mapping[str, Any]) -> None:
    """Raise PlaitError if the template names a field that is not in `fields`, those of a data set's first record."""
    for role, pattern in patterns(template):
        for name in _placeholders(pattern, role) if pattern is not None else ():
            if name not in fields:
                raise PlaitError(f"template.{role} wants the field {name!r}; the records have {field_list(fields)}")


def _placeholders(pattern: str, role: str) -> list[str]:
    """Return the fields that a format string names. Raises PlaitError for one that cannot be parsed or has places without a name."""
    try:
        replacements = [name for _, name, _, _ in Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        raise PlaitError(f"template.{role} {pattern!r} is not a format string ({error}); write {{{{ for a brace") from error
    names = [name.split(".")[0].split("[")[0] for name in replacements]
    if any(not name or name.isdigit() for name in names):
        raise PlaitError(f"template.{role} {pattern!r} has a place without a name; write {{field}}, and {{{{ for a brace")
    return names


def _from_template(fields: Mapping[str, Any], template: Template, *, allow_blank: bool) -> list[dict[str, str]]:
    formatter = _Present(allow_blank=allow_blank)
    turns = [{"role": role, "content": _fill(formatter, pattern, fields)} for role, pattern in patterns(template) if pattern is not None]
    if all(turn["role"] != "user" for turn in turns):  # images need a user turn to stand in
        turns.insert(len(turns) - (template.assistant is not None), {"role": "user", "content": ""})
    return turns


class _Present(Formatter):
    """Fills format strings, and refuses a value that is absent: null, not a number or, unless `allow_blank`, a blank text."""

    def __init__(self, *, allow_blank: bool) -> None:
        self.allow_blank = allow_blank

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the value that `field_name` (as in `{a.b}`) points to. Raises BadSample where it is absent or has no one spelling."""
        value, first = super().get_field(field_name, args, kwargs)
        if is_null(value):
            raise NoText(f"the field {field_name!r} is {'null' if value is None else 'null (NaN)'}")
        if isinstance(value, _UNSPELLED) or (isinstance(value, float) and math.isinf(value)):
            what = "infinite" if isinstance(value, float) else kind_of(value)
            part = f"; name a part of it, as {{{field_name}[...]}}" if isinstance(value, list | Mapping) else ""
            raise BadSample(f"the field {field_name!r} is {what}, not text or a number{part}")
        if isinstance(value, str) and not self.allow_blank and blank(value):
            raise NoText(f"the field {field_name!r} is empty; `allow_blank: true` of the source trains on it")
        return value, first


def _fill(formatter: _Present, pattern: str, fields: Mapping[str, Any]) -> str:
    try:
        return formatter.vformat(pattern, (), fields)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise BadSample(f"cannot fill {pattern!r}: {type(error).__name__} {error}; the record has {field_list(fields)}") from error


def _list(fields: Mapping[str, Any], name: str) -> list[object]:
    turns = fields[name]
    if not isinstance(turns, list) or not turns:
        raise BadSample(f"`{name}` is not a list of turns but {'an empty one' if turns == [] else kind_of(turns)}")
    return turns


def _pair(pair: object) -> list[dict[str, str]]:
    """Return the two turns of a {"user", "assistant"} pair. Raises BadSample for anything else."""
    if not isinstance(pair, Mapping) or not all(isinstance(pair.get(role), str) for role in ("user", "assistant")):
        raise BadSample(f"an item of `texts` needs 'user' and 'assistant', each a text; this one is {kind_of(pair)}")
    return [{"role": role, "content": pair[role]} for role in ("user", "assistant")]


def _turn(turn: object, role_key: str, content_key: str) -> dict[str, str]:
    """Return a turn as {"role", "content"}. Raises BadSample for an unknown speaker or a missing key."""
    if not isinstance(turn, Mapping) or role_key not in turn or content_key not in turn:
        raise BadSample(f"a turn needs {role_key!r} and {content_key!r}, this one is {kind_of(turn)}")
    role = _SPEAKERS.get(turn[role_key]) if isinstance(turn[role_key], str) else None
    if role is None:
        raise BadSample(f"unknown speaker in {role_key!r}; known: {', '.join(_SPEAKERS)}")
    return {"role": role, "content": _content(turn[content_key])}


def _content(content: object) -> str:
    """Return the text of a turn, a string or a list of parts: text parts are joined, image parts become marks. Raises BadSample."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadSample(f"a turn's content is neither text nor a list of parts but {kind_of(content)}")
    pieces = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            pieces.append(part["text"])
        elif kind in _IMAGE_PARTS:
            pieces.append(IMAGE_MARK)
        else:
            raise BadSample(f"a part of a turn is neither text nor an image but {kind_of(part)}")
    return "".join(pieces)


def image_parts(conversation: object) -> list[Any]:
    """Return the targets (paths or URLs) of the image parts ({"type": "image", "image": PATH}) of a `messages` list, in order.

    Parts without a target are left out: they stand for the images in the record itself. [] for anything that is not a list.
    """
    if not isinstance(conversation, list):
        return []
    parts = [
        part for turn in conversation if isinstance(turn, Mapping) and isinstance(turn.get("content"), list) for part in turn["content"]
    ]
    targets = [part.get(part["type"]) for part in parts if isinstance(part, Mapping) and part.get("type") in _IMAGE_PARTS]
    return [target["url"] if isinstance(target, Mapping) and "url" in target else target for target in targets if target is not None]
