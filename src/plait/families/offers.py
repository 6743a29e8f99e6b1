"""What a family may offer beside its model: public datasets and mixtures that it knows by name, and layouts of other software.

Each is an optional module or folder of the family's package; registry.py finds the families themselves.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import BaseModel

from plait.config.secrets import filled_in
from plait.errors import PlaitError
from plait.families import registry

if TYPE_CHECKING:
    from plait.families.module_contracts import Catalogue, Check, Publisher


def mixture(family: str, name: str) -> Path:
    """Return the path of a mixture (datasets). It is `name` itself if that ends in .yaml, .yml or .json, else the family's of that name.

    Raises PlaitError if there is none.
    """
    path = filled_in(name)
    if path.suffix in (".yaml", ".yml", ".json"):
        return path
    folder = registry.folder_of(family) / "mixtures"
    if not (folder / f"{name}.yaml").is_file():
        known = sorted(file.name.removesuffix(".yaml") for file in folder.glob("*.yaml"))
        raise PlaitError(
            f"data.mixture {name!r} is neither a .yaml or .json file nor a mixture of family {family!r}: {registry.listing(name, known)}"
        )
    return folder / f"{name}.yaml"


def has_datasets(family: str) -> bool:
    """Return whether a family has a catalogue of public datasets, which a configuration can name."""
    return registry.has_module(family, "catalogue/datasets.py")


def datasets(family: str) -> "Catalogue":
    """Return a family's catalogue of public datasets, a checked module (module_contracts.Catalogue). Raises PlaitError for one without."""
    if not has_datasets(family):
        raise PlaitError(
            f"family {family!r} knows no datasets by name: name your own as module:Class or file.py:Class, or a source with a path"
        )
    module = registry.module_of(family, "catalogue.datasets")
    if not registry.is_shipped(family):
        registry.checks_of("members").check_catalogue(family, module)
    return cast("Catalogue", module)


def publisher(family: str) -> "Publisher | None":
    """Return a family's module `export`, which converts weights to other software's layouts; None if it has none.

    Raises PlaitError if that module has no `exports`, a mapping of each of `Config.layouts` to a function, or no `imported`.
    """
    if not registry.has_module(family, "export.py"):
        return None
    module = registry.module_of(family, "export")
    if not registry.is_shipped(family):
        registry.checks_of("members").check_publisher(family, module, registry.model_config(family).layouts)
    return cast("Publisher", module)


def export_checks(publisher: "Publisher") -> "Mapping[str, Check]":
    """Return how the layouts of a family's module `export` are checked, by layout; of a module without `checks` none is."""
    checks: Mapping[str, Check] = vars(publisher).get("checks", {})
    return checks


def generate_options(family: str) -> type[BaseModel] | None:
    """Return the class of a family's options of `plait generate` if it has an options.py, else None; imports no torch."""
    options = vars(registry.module_of(family, "options")).get("GenerateOptions") if registry.has_module(family, "options.py") else None
    return options if isinstance(options, type) and issubclass(options, BaseModel) else None


def register_auto_classes() -> None:
    """Let transformers' Auto classes load the exports of the families that ship which only plait has the model of."""
    for path in sorted(Path(__file__).parent.glob("*/hf/register.py")):
        importlib.import_module(f"plait.families.{path.parents[1].name}.hf.register").register()
