"""Tell whether an argument names a configuration or data. Nothing heavy is imported for that."""

import json
from pathlib import Path

from plait.config.dialects import table as dialects
from plait.config.schema import RunConfig
from plait.data import addresses

_MOST_BYTES = 1 << 20  # of a configuration in JSON: a larger file is data
_KEYS = {field.alias or name for name, field in RunConfig.model_fields.items()} | {"stages"}


def is_configuration(what: str) -> bool:
    """Return whether an argument names a configuration, a run directory or a launch script, and not data. Raises nothing.

    A .json file is data where it holds a list, or lists of records under keys that no configuration has.
    """
    path = Path(what)
    if dialects.is_script(what):
        return True
    if addresses.is_remote(what) or what == "scenes":
        return False
    if path.is_dir():
        return (path / "config.yaml").is_file()
    if path.suffix.lower() != ".json" or not path.is_file():
        return path.suffix.lower() in (".yaml", ".yml", ".json")
    return not _holds_records(path)


def _holds_records(path: Path) -> bool:
    """Return whether a .json file holds records: a list, one list of objects under a key, or several and nothing but lists and objects."""
    with path.open("rb") as file:
        start = file.read(_MOST_BYTES + 1)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") or len(start) > _MOST_BYTES:
        return True
    try:
        value = json.loads(start)
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict):
        return False
    lists = [key for key, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)]
    if len(lists) == 1:
        return lists[0] not in _KEYS or lists == ["data"]
    return len(lists) > 1 and not value.keys() & _KEYS and all(isinstance(item, list | dict) for item in value.values())
