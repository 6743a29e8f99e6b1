"""The sources (data sets) that a stage's configuration names, by the items of its `data:` section, before any of them is opened."""

from plait.config import mixture
from plait.config.schema import RunConfig, SourceEntry
from plait.data.sources.open import KINDS
from plait.families import offers


def on_hub(entry: SourceEntry) -> bool:
    """Return whether an item of `data.train` or `data.validation` is read from the Hub: by its name there, or by `hub: true`."""
    return names_repository(entry) or (entry.source == "dataset" and bool(entry.options.get("hub", False)))


def names_repository(entry: SourceEntry) -> bool:
    """Return whether the name of an item is that of a dataset repository of the Hub."""
    return entry.source == "datasets" and entry.path is None and entry.name is not None


def training_entries(config: RunConfig) -> list[SourceEntry]:
    """Return the sources that a stage trains on, those of its mixture included. Raises PlaitError for a mixture that cannot be read."""
    if config.data.mixture is None:
        return list(config.data.train)
    return mixture.read(offers.mixture(config.family, config.data.mixture), config.data.without, KINDS).entries


def held_out_entries(config: RunConfig) -> list[SourceEntry]:
    """Return the sources that a stage holds out, those of its benches (evaluations) included."""
    return [*config.data.validation_sources, *(source for entry in config.evaluate for source in entry.data)]
