"""From a record (any fields) to a conversation: `messages` of {"role", "content"}, roles system, user and assistant.

In this order: the entry's `template` (format strings over the record's fields), a `messages` list as chat models take it, a
`conversations` list as LLaVA and ShareGPT write it, a `caption`. A record with none of them has no messages: some families need none.
`<image>` in a content marks the place of the next image. Nothing here knows tokens.
"""

from collections.abc import Mapping
from string import Formatter
from typing import Any

from plait.errors import BadSample, PlaitError

IMAGE_MARK = "<image>"
ROLES = ("system", "user", "assistant")

_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant", "system": "system"}
_IMAGE_PARTS = ("image", "image_url")


def rename(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Give fields our names: `columns` maps our name to theirs. The other fields keep theirs."""
    missing = [theirs for theirs in columns.values() if theirs not in record]
    if missing:
        raise BadSample(f"no field {missing[0]!r} (columns); the record has {_names(record)}")
    taken = set(columns.values())
    return {k: v for k, v in record.items() if k not in taken} | {ours: record[theirs] for ours, theirs in columns.items()}


def messages(fields: Mapping[str, Any], template: Any | None) -> list[dict[str, str]]:
    """The conversation of one record. `template` has `system`, `user` and `assistant`, each a format string or None."""
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
    """Marks say where images go, so there are none of them or one per image."""
    marks = sum(turn["content"].count(IMAGE_MARK) for turn in conversation)
    if marks and marks != images:
        raise BadSample(f"the text has {marks} {IMAGE_MARK} marks, the sample {images} images")


def check_template(template: Any, fields: Mapping[str, Any], where: str) -> None:
    """Refuse, before the run, a template that cannot be filled from a record like `fields`."""
    for role in ROLES:
        pattern = getattr(template, role)
        if pattern is None:
            continue
        for name in _placeholders(pattern, where, role):
            if name not in fields:
                raise PlaitError(f"{where}: template.{role} wants the field {name!r}; the records have {_names(fields)}")


def _placeholders(pattern: str, where: str, role: str) -> list[str]:
    try:
        inside = [name for _, name, _, _ in Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        raise PlaitError(f"{where}: template.{role} {pattern!r} is not a format string ({error}); write {{{{ for a brace") from error
    names = [name.split(".")[0].split("[")[0] for name in inside]
    if any(not name or name.isdigit() for name in names):
        raise PlaitError(f"{where}: template.{role} {pattern!r} has a place without a name; write {{field}}, and {{{{ for a brace")
    return names


def _from_template(fields: Mapping[str, Any], template: Any) -> list[dict[str, str]]:
    turns = [{"role": role, "content": _fill(getattr(template, role), fields)} for role in ROLES if getattr(template, role) is not None]
    if all(turn["role"] != "user" for turn in turns):  # images need a user turn to stand in
        turns.insert(len(turns) - (template.assistant is not None), {"role": "user", "content": ""})
    return turns


def _fill(pattern: str, fields: Mapping[str, Any]) -> str:
    try:
        return pattern.format_map(fields)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise BadSample(f"cannot fill {pattern!r}: {type(error).__name__} {error}; the record has {_names(fields)}") from error


def _turns(fields: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(fields[name], list) or not fields[name]:
        raise BadSample(f"`{name}` is not a list of turns but {str(fields[name])[:60]!r}")
    return fields[name]


def _turn(turn: Any, who: str, what: str) -> dict[str, str]:
    if not isinstance(turn, Mapping) or who not in turn or what not in turn:
        raise BadSample(f"a turn needs {who!r} and {what!r}, this one is {str(turn)[:60]!r}")
    role = _SPEAKERS.get(turn[who])
    if role is None:
        raise BadSample(f"unknown speaker {turn[who]!r}; known: {', '.join(_SPEAKERS)}")
    return {"role": role, "content": _content(turn[what])}


def _content(content: Any) -> str:
    """A string, or the list of parts chat templates use: text parts are joined, image parts become marks."""
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


def image_parts(conversation: Any) -> list[Any]:
    """What the image parts of a `messages` list point to, in order; parts without a target stand for the record's own images."""
    if not isinstance(conversation, list):
        return []
    parts = [
        part for turn in conversation if isinstance(turn, Mapping) and isinstance(turn.get("content"), list) for part in turn["content"]
    ]
    targets = [part.get(part["type"]) for part in parts if isinstance(part, Mapping) and part.get("type") in _IMAGE_PARTS]
    return [target["url"] if isinstance(target, Mapping) and "url" in target else target for target in targets if target is not None]


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(map(str, fields)) or "no fields"
