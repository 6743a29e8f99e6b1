"""Families by name. A family is a folder here with `config.py` (its `model:` section, free of torch), `family.py` (the contract:
what trains it) and `evaluate.py` (its benches)."""

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from plait.errors import PlaitError

_HERE = Path(__file__).parent


def names() -> list[str]:
    """The families that ship, in alphabetical order."""
    return sorted(folder.parent.name for folder in _HERE.glob("*/family.py"))


def model_config(family: str) -> type[BaseModel]:
    """The typed `model:` section of `family`, without importing torch. Unknown names list the known ones."""
    return importlib.import_module(f"plait.families.{_known(family)}.config").Config


def load(family: str) -> ModuleType:
    """The family's contract module (`family.py`); imports torch and the family's libraries."""
    return importlib.import_module(f"plait.families.{_known(family)}.family")


def benches(family: str) -> Mapping[str, Any]:
    """The benches of `family` by name (its `evaluate.py`): what trains it can be read without how it is judged."""
    return importlib.import_module(f"plait.families.{_known(family)}.evaluate").benches


def preset(family: str, name: str) -> Path:
    """The file of the preset `name` of `family`."""
    folder = _HERE / _known(family) / "presets"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise PlaitError(f"preset {name!r} is not one of family {family!r}: {_listing(name, known)}")
    return path


def mixture(family: str, name: str) -> Path:
    """The file of a mixture: a YAML or JSON file, or the name of one that `family` ships."""
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml", ".json"):
        return path
    folder = _HERE / _known(family) / "mixtures"
    if not (folder / f"{name}.yaml").is_file():
        known = sorted(file.name.removesuffix(".yaml") for file in folder.glob("*.yaml"))
        raise PlaitError(
            f"data.mixture {name!r} is neither a .yaml or .json file nor a mixture of family {family!r}: {_listing(name, known)}"
        )
    return folder / f"{name}.yaml"


def has_datasets(family: str) -> bool:
    """Whether `family` knows datasets by name."""
    return (_HERE / _known(family) / "catalogue" / "datasets.py").is_file()


def datasets(family: str) -> ModuleType:
    """The datasets that `family` knows by name (its `datasets.py`). Raises PlaitError for a family that knows none."""
    if not has_datasets(family):
        raise PlaitError(
            f"family {family!r} knows no datasets by name: name your own as module:Class or file.py:Class, or a source with a path"
        )
    return importlib.import_module(f"plait.families.{family}.catalogue.datasets")


def publisher(family: str) -> ModuleType | None:
    """How `family` is written for other software and read back (its `export.py`); None for a family that is not."""
    if not (_HERE / _known(family) / "export.py").is_file():
        return None
    return importlib.import_module(f"plait.families.{family}.export")


def _known(family: str) -> str:
    if family not in names():
        raise PlaitError(f"family {family!r} is unknown: {_listing(family, names())}")
    return family


def _listing(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(known) or 'none'}"
