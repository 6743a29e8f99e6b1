"""Open what an argument SOURCE names: a path, an address or `scenes` alone, or the data of a configuration or run."""

from collections.abc import Sequence
from pathlib import Path

from plait.assembly.checked_configuration import open_checked
from plait.assembly.data import open_training, open_validation
from plait.commands.actions.packing.configuration_or_data import is_configuration
from plait.commands.actions.shard_data import entry
from plait.data.sources.contract import Source
from plait.data.sources.open import open_source
from plait.errors import PlaitError


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
