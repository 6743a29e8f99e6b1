"""Read a configuration in Python, `plait.load_config`: from a file, a run directory or a dict. Imports no torch."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from plait.assembly.checked_configuration import open_checked
from plait.config import reading, secrets
from plait.config.messages import CONFIGURATION, check_arguments
from plait.config.nodes import COMMAND_LINE, Node, from_plain
from plait.config.resolved import Resolved
from plait.errors import PlaitError
from plait.files import expanded

NAME = "config"
"""What messages call a dict in place of its file."""


def load_config(source: str | Path | Mapping[str, Any], /, **overrides: Any) -> Resolved:
    """Read and check a configuration: a file, a run directory, or a dict with the keys that a file would have.

    `overrides`: settings that replace it, as the command line's do: `train={"steps": 100}`, or with a dot `**{"optim.lr": 1e-4}`; a mapping
    is merged, a list replaces. Messages call them "command line", and a dict "config". Paths of data in a dict are relative to the working
    directory; without `run` its run is runs/config. The result has `.config` (all settings, typed), `.stages`, `.origins` (where each value
    comes from), `.warnings` and `.yaml`. Opens no data. Raises PlaitError, one line, for any fault.
    """
    check_arguments("plait.load_config", source=(source, CONFIGURATION))
    given = [_override(key, value) for key, value in _leaves(overrides)]
    if not isinstance(source, Mapping):
        return open_checked(expanded(source), given)
    root = from_plain(_plain(source, NAME), Node(None, NAME))
    secrets.refuse(root)
    reading.refuse_unwritable(root)
    return open_checked(root, given)


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of all that is no mapping, or an empty one."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _override(key: str, value: Any) -> str:
    """Return a setting as typed on the command line, "key=value", which is read back to exactly `value`."""
    text = _written(value, key)
    plain = _plain(value, key)
    if isinstance(plain, str) and plain == plain.strip() != "":
        try:
            text = plain if reading.scalar(plain) == plain else text
        except (yaml.YAMLError, PlaitError):
            return f"{key}={text}"
    return f"{key}={text}"


def _plain(value: Any, name: str) -> Any:
    """Return a copy of `value` of dicts, lists, text, numbers, true, false and null. Raises PlaitError for what no file may hold."""
    try:
        return reading.scalar(_written(value, name))
    except PlaitError as error:
        raise PlaitError(f"{name}{str(error).removeprefix(COMMAND_LINE)}" if str(error).startswith(COMMAND_LINE) else str(error)) from None


def _written(value: Any, name: str) -> str:
    """Return `value` as JSON of printable ASCII, which is YAML too: paths as text, tuples as lists. Raises PlaitError for other objects."""
    try:
        text = json.dumps(value, default=_jsonable, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise PlaitError(f"{name}: {reason}: a configuration holds text, finite numbers, true, false, null, lists and mappings") from None
    return re.sub("[^\x20-\x7e]", lambda letter: f"\\U{ord(letter[0]):08x}", text)


def _jsonable(value: Any) -> Any:
    """Return text for a path, and a dict for another mapping. Raises TypeError for what is neither."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} has the type {type(value).__name__}")
