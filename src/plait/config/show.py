"""The config listing: the resolved configuration as text, one line per value with its origin (file and line, preset, default).

For a file in a dialect (another trainer's format), its author's keys beside plait's stand above it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from plait.config.nodes import dotted, leaves
from plait.config.resolved import Resolved, StageView, dump
from plait.config.translation import TranslatedKey

_WIDEST_VALUE = 64  # characters; a longer value pushes only its own line


def render(resolved: Resolved) -> str:
    """Return the listing that `plait config` prints: every value and its origin, then warnings.

    For a file in another trainer's format, its keys with what became of them come first.
    """
    values = {dotted(path): value for path, value in leaves(dump(resolved.config))}
    lines = []
    if resolved.translation:
        lines += ["# As written, and as understood", *_translated(resolved.translation, values), ""]
    lines += ["# Resolved, with the source of each value"]
    lines += _columns([(path, f"= {as_json(value)}", resolved.origins[path]) for path, value in values.items()])
    warnings = [f"warning: {text}" for text in resolved.warnings]
    return "\n".join([*lines, *([""] if warnings else []), *warnings])


def as_dict(resolved: Resolved) -> dict[str, Any]:
    """Return the configuration as JSON values, for programs.

    `config` is the tree, `stages` the whole tree of each stage by name, `origins` {"optim.lr": "run.yaml:12"}, `warnings` a list of texts.
    """
    stages = {view.name: dump(view.config) for view in resolved.stages}
    return {"config": dump(resolved.config), "stages": stages, "origins": resolved.origins, "warnings": resolved.warnings}


def _translated(translation: Sequence[TranslatedKey], values: Mapping[str, Any]) -> list[str]:
    rows = []
    for key, value, path, note in translation:
        ours = "-" if path is None else f"{path} = {as_json(_value(values, path))}"
        rows.append((f"{key} = {as_json(value)}", ours, note))
    return _columns(rows)


def _value(values: Mapping[str, Any], path: str) -> Any:
    """Return the value at `path`; the items of a list as a list, and of a section only "..."."""
    if path in values:
        return values[path]
    items = [value for name, value in values.items() if name.rpartition(".")[0] == path and name.rpartition(".")[2].isdigit()]
    return items or "..."


def as_json(value: Any) -> str:
    """Return a value (dicts, lists, scalars) as JSON on one line, for the listing."""
    return json.dumps(value, ensure_ascii=False)


def override(resolved: Resolved, view: StageView, key: str, value: Any) -> str:
    """Return the override that sets `key` for the stage of `view` alone: "--stages.0.train.steps=60" where there are stages."""
    prefix = f"stages.{view.index - 1}." if resolved.config.stages else ""
    return f"--{prefix}{key}={value if isinstance(value, str) else as_json(value)}"


def _columns(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    first, second = (max((len(row[column]) for row in rows if len(row[column]) <= _WIDEST_VALUE), default=0) for column in (0, 1))
    return [f"{row[0]:<{first}}  {row[1]:<{second}}  {row[2]}".rstrip() for row in rows]
