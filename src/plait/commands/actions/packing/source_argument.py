"""Open what an argument SOURCE names: a path, an address or `scenes` alone, or the data of a configuration or run."""

import json
from collections.abc import Sequence
from pathlib import Path

from plait.assembly.checked_configuration import open_checked
from plait.assembly.data import open_training, open_validation
from plait.commands.actions.shard_data import entry
from plait.config.dialects import table as dialects
from plait.config.schema import RunConfig
from plait.data import addresses
from plait.data.sources.contract import Source
from plait.data.sources.open import open_source
from plait.errors import PlaitError

_MOST_BYTES = 1 << 20  # of a configuration in JSON: a larger file is data
_KEYS = {field.alias or name for name, field in RunConfig.model_fields.items()} | {"stages"}


def is_configuration(what: str) -> bool:
    """Return whether an argument names a configuration, a run directory or a launch script, and not data. Raises nothing.

    A .json file is data where it holds a list, or one list of records under a key that no configuration has.
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
    """Return whether a .json file holds records: a list, or one list of objects under a key."""
    with path.open("rb") as file:
        start = file.read(_MOST_BYTES + 1)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") or len(start) > _MOST_BYTES:
        return True
    try:
        value = json.loads(start)
    except (ValueError, RecursionError):
        return False
    lists = [key for key, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)]
    return len(lists) == 1 and (lists[0] not in _KEYS or lists == ["data"])


def open_named(what: str, settings: Sequence[str], *, split: str, number: int | None = None) -> Source:
    """Open the source that `what` names, a configuration's or one alone, with `settings` such as "limit=100".

    `split`: "train" or "validation", of a source alone any; `number`: which of a configuration's sources, from 0, needed where it has
    several. Raises PlaitError for a wrong argument, source or setting.
    """
    if not is_configuration(what):
        if number is not None:
            raise PlaitError(f"--number={number}: {what} is one source, not a configuration of several")
        return open_source(entry(what, settings), seed=0, split=split)
    if split not in ("train", "validation"):
        raise PlaitError(f"--split={split}: a configuration has train and validation data")
    config = open_checked(Path(what), settings).config
    sources = list(open_training(config).sources) if split == "train" else open_validation(config)
    names = ", ".join(f"{place} {source.name}" for place, source in enumerate(sources)) or "none"
    if number is None and len(sources) == 1:
        number = 0
    if number is None or not 0 <= number < len(sources):
        given = "name one by --number" if number is None else f"--number={number} is none of them"
        raise PlaitError(f"{what} has {len(sources)} sources of {split}: {names}; {given}")
    return sources[number]
