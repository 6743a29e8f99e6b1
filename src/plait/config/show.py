"""The resolved configuration as text: one line per value with its origin; before it, for a dialect, the author's keys beside ours."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from plait.config.nodes import dotted, leaves
from plait.config.resolved import Resolved, dump

_WIDEST_VALUE = 64  # characters; a longer value pushes only its own line


def render(resolved: Resolved) -> str:
    """Return every value with its origin as text, after a translated dialect's keys beside ours."""
    named = {dotted(path): value for path, value in leaves(dump(resolved.config))}
    lines = []
    if resolved.translation:
        lines += ["# As written, and as understood", *_translated(resolved.translation, named), ""]
    lines += ["# Resolved, with the source of each value"]
    lines += _columns([(path, f"= {show(value)}", resolved.origins[path]) for path, value in named.items()])
    warnings = [f"warning: {text}" for text in resolved.warnings]
    return "\n".join([*lines, *([""] if warnings else []), *warnings])


def _translated(translation: Sequence[tuple[str, Any, str | None, str]], named: Mapping[str, Any]) -> list[str]:
    rows = []
    for key, value, path, note in translation:
        ours = "-" if path is None else f"{path} = {show(_value(named, path))}"
        rows.append((f"{key} = {show(value)}", ours, note))
    return _columns(rows)


def _value(named: Mapping[str, Any], path: str) -> Any:
    """The value at `path`; a list of plain values is put together again, and a section is shown as {...}."""
    if path in named:
        return named[path]
    items = [value for name, value in named.items() if name.rpartition(".")[0] == path and name.rpartition(".")[2].isdigit()]
    return items or "..."


def show(value: Any) -> str:
    """As it would be written in a file, on one line."""
    return json.dumps(value, ensure_ascii=False)


def _columns(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    first, second = (max((len(row[column]) for row in rows if len(row[column]) <= _WIDEST_VALUE), default=0) for column in (0, 1))
    return [f"{row[0]:<{first}}  {row[1]:<{second}}  {row[2]}".rstrip() for row in rows]
