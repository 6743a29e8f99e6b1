"""A validated configuration after all layers (defaults, preset, file, command line) are merged. How it is read is in load.py.

A run is trained in stages, one after the other, each with settings of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.config.nodes import dotted, leaves
from plait.config.schema import RunConfig
from plait.config.secrets import filled_in
from plait.config.translation import TranslatedKey

ABSENT = "(absent)"
"""Stands for the value of a key that a configuration does not have."""


@dataclass(frozen=True)
class StageView:
    """The whole configuration of one stage, number `index` (from 1): the run's settings with the stage's own merged over them."""

    index: int
    name: str
    config: RunConfig


@dataclass(frozen=True)
class Resolved:
    """A validated run: its configuration, a StageView for each stage, and the `origins` of all values: {"optim.lr": "run.yaml:12"}.

    `translation` has a row for each key of a file in another trainer's format, [] for plait's own. `warnings`: lines to show at the start.
    `yaml` is the whole configuration, defaults included; `load_config` reads it back to an equal one. `train_options`: options of `plait
    train` that another trainer's flags stand for: `restart`, `fresh`.
    """

    config: RunConfig
    stages: tuple[StageView, ...]
    origins: dict[str, str]
    translation: list[TranslatedKey]
    warnings: list[str]
    yaml: str
    train_options: frozenset[str] = frozenset()


def keeps_ledger(stages: Sequence[StageView], stage: RunConfig) -> bool:
    """Return whether the end of `stage`, of a run with these stages, is compared with its start (`training/ledger.py`).

    With `guard.forgetting: stages` it is in a run of several stages, or one that begins from another's weights.
    """
    views = [view.config for view in stages]
    if stage.guard.forgetting is None or (stage.guard.forgetting == "stages" and len(views) == 1 and stage.from_ is None):
        return False
    several = len(views) > 1 and any(view.data.holds_out for view in views)
    return several or any(view.evaluate for view in views)


def forgetting_limit(stage: RunConfig) -> float:
    """Return the share that a stage may lose of a figure without a warning."""
    return 0.05 if isinstance(stage.guard.forgetting, str) or stage.guard.forgetting is None else stage.guard.forgetting


def folder(text: str | None) -> Path | None:
    """Return a setting that names a folder as a Path with a leading ~ and each `$VARIABLE` filled in.

    None if the setting is None. Raises PlaitError for a variable that is not set.
    """
    return None if text is None else filled_in(text)


def dump(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as nested dicts of plain data, under the key names that a file uses (`from`, not `from_`)."""
    return config.model_dump(mode="json", by_alias=True)


def difference(a: RunConfig | Resolved, b: RunConfig | Resolved) -> list[tuple[str, Any, Any]]:
    """Return the settings in which two configurations differ, as (dotted key, value in a, value in b).

    "(absent)" stands for the value where a configuration does not have the key, such as an item of a longer list.
    """
    in_a, in_b = (dict(leaves(dump(each.config if isinstance(each, Resolved) else each))) for each in (a, b))
    values = ((path, in_a.get(path, ABSENT), in_b.get(path, ABSENT)) for path in dict.fromkeys([*in_a, *in_b]))
    return [(dotted(path), old, new) for path, old, new in values if old != new or type(old) is not type(new)]
