"""From a record (one sample's fields, by name) to a conversation: `messages` of {"role", "content"}, roles system, user and assistant.

The messages come from the first of these that there is: the `template` configured for the data (format strings over the record's fields),
a `messages` list as chat models take it, a `conversations` list as LLaVA and ShareGPT write it, a `caption`. A record with none of them
has no messages: some families need none. `<image>` in a content marks where the next image goes. Nothing here knows tokens.
"""

from collections.abc import Mapping
from string import Formatter
from typing import Any

from plait.config.schema import Template
from plait.errors import BadSample, PlaitError

IMAGE_MARK = "<image>"
ROLES = ("system", "user", "assistant")

_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant", "system": "system"}
_IMAGE_PARTS = ("image", "image_url")


def rename(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Rename fields: `columns` maps the new name to the record's own, as {"caption": "TEXT"}. Raises BadSample for a field it lacks."""
    missing = [theirs for theirs in columns.values() if theirs not in record]
    if missing:
        raise BadSample(f"no field {missing[0]!r} (columns); the record has {_names(record)}")
    renamed = set(columns.values())
    return {k: v for k, v in record.items() if k not in renamed} | {ours: record[theirs] for ours, theirs in columns.items()}


def patterns(template: Template) -> list[tuple[str, str | None]]:
    """Return (role, format string) for system, user and assistant, in this order; None for a turn that the template does not have."""
    return [("system", template.system), ("user", template.user), ("assistant", template.assistant)]


def messages(fields: Mapping[str, Any], template: Template | None) -> list[dict[str, str]]:
    """Return the conversation of one record as {"role", "content"} turns; [] if it has no text.

    `template` None: the record's own `messages`, `conversations` or `caption` are used. Raises BadSample for a malformed conversation, or
    when a field that the template names is missing.
    """
    if template is not None:
        return _from_template(fields, template)
    if fields.get("messages") is not None:
        return [_turn(turn, "role", "content") for turn in _turns(fields, "messages")]
    if fields.get("conversations") is not None:
        return [_turn(turn, "from", "value") for turn in _turns(fields, "conversations")]
    if isinstance(fields.get("caption"), str):
        return [{"role": "user", "content": ""}, {"role": "assistant", "content": fields["caption"].strip()}]
    return []


def check_marks(conversation: list[dict[str, str]], images: int) -> None:
    """Raise BadSample unless the text has no `<image>` marks or as many as the sample has images."""
    marks = sum(turn["content"].count(IMAGE_MARK) for turn in conversation)
    if marks and marks != images:
        raise BadSample(f"the text has {marks} {IMAGE_MARK} marks, the sample {images} images")


def check_template(template: Template, fields: Mapping[str, Any]) -> None:
    """Raise PlaitError if the template names a field that is not in `fields`, those of a first record; done once, before the run."""
    for role, pattern in patterns(template):
        for name in _placeholders(pattern, role) if pattern is not None else ():
            if name not in fields:
                raise PlaitError(f"template.{role} wants the field {name!r}; the records have {_names(fields)}")


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


def _from_template(fields: Mapping[str, Any], template: Template) -> list[dict[str, str]]:
    turns = [{"role": role, "content": _fill(pattern, fields)} for role, pattern in patterns(template) if pattern is not None]
    if all(turn["role"] != "user" for turn in turns):  # images need a user turn to stand in
        turns.insert(len(turns) - (template.assistant is not None), {"role": "user", "content": ""})
    return turns


def _fill(pattern: str, fields: Mapping[str, Any]) -> str:
    try:
        return pattern.format_map(fields)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise BadSample(f"cannot fill {pattern!r}: {type(error).__name__} {error}; the record has {_names(fields)}") from error


def _turns(fields: Mapping[str, Any], name: str) -> list[object]:
    turns = fields[name]
    if not isinstance(turns, list) or not turns:
        raise BadSample(f"`{name}` is not a list of turns but {str(turns)[:60]!r}")
    return turns


def _turn(turn: object, role_key: str, content_key: str) -> dict[str, str]:
    """Return a turn as {"role", "content"}. Raises BadSample for an unknown speaker or a missing key."""
    if not isinstance(turn, Mapping) or role_key not in turn or content_key not in turn:
        raise BadSample(f"a turn needs {role_key!r} and {content_key!r}, this one is {str(turn)[:60]!r}")
    role = _SPEAKERS.get(turn[role_key])
    if role is None:
        raise BadSample(f"unknown speaker {turn[role_key]!r}; known: {', '.join(_SPEAKERS)}")
    return {"role": role, "content": _content(turn[content_key])}


def _content(content: object) -> str:
    """Return the text of a turn, a string or a list of parts: text parts are joined, image parts become marks. Raises BadSample."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadSample(f"a turn's content is neither text nor a list of parts but {str(content)[:60]!r}")
    pieces = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            pieces.append(part["text"])
        elif kind in _IMAGE_PARTS:
            pieces.append(IMAGE_MARK)
        else:
            raise BadSample(f"a part of a turn is neither text nor an image: {str(part)[:60]!r}")
    return "".join(pieces)


def image_parts(conversation: object) -> list[Any]:
    """Return what the image parts of a `messages` list point to (paths or URLs), in order.

    Parts without a target are left out: they stand for the record's own images. [] for anything that is not a list.
    """
    if not isinstance(conversation, list):
        return []
    parts = [
        part for turn in conversation if isinstance(turn, Mapping) and isinstance(turn.get("content"), list) for part in turn["content"]
    ]
    targets = [part.get(part["type"]) for part in parts if isinstance(part, Mapping) and part.get("type") in _IMAGE_PARTS]
    return [target["url"] if isinstance(target, Mapping) and "url" in target else target for target in targets if target is not None]


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(map(str, fields)) or "no fields"
