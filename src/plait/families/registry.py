"""Find families (kinds of models) by name: the packages in this folder, and those of other installed packages (entry points).

Importing this module imports no torch; only `load` imports a family's model. What a family's modules hold is in contract.py.
"""

import contextlib
import difflib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from plait.config import plugins
from plait.config.messages import section_faults
from plait.config.schema import ModelSection
from plait.errors import PlaitError

if TYPE_CHECKING:
    from plait.engine.evaluation import Benches
    from plait.families.ablation import Ablations
    from plait.families.contract import Family

_HERE = Path(__file__).parent
_TEXTS = dict.fromkeys(("variants", "layouts", "without"), Mapping[str, str])
_TABLES: Mapping[str, Any] = {"refused": Mapping[tuple[str, ...], Mapping[str, str]], **_TEXTS}
GROUP = "plait.families"
"""Group of the entry points, each `family = package`, such as `words = words_family`."""


@functools.cache
def packages() -> dict[str, str]:
    """Return the import path of each family: {'words': 'words_family', ...}. A plugin cannot replace a family of plait."""
    shipped = {path.parent.name: f"plait.families.{path.parent.name}" for path in sorted(_HERE.glob("*/family.py"))}
    return {**{entry.name: entry.value for entry in plugins.offered(GROUP)}, **shipped}


def names() -> list[str]:
    """Return the names of all families, in alphabetical order."""
    return sorted(packages())


def model_config(family: str) -> type[ModelSection]:
    """Return the pydantic class of a family's `model:` section; imports no torch. Raises PlaitError if the family or class is missing."""
    if _imports_torch(family):
        raise PlaitError(
            f"family {family!r}: {_package(family)}.config imports {plugins.HEAVY}, for which every command would wait: "
            "import it in family.py, or inside the functions that use it"
        )
    section = vars(module_of(family, "config")).get("Config")
    if not (isinstance(section, type) and issubclass(section, ModelSection)):
        raise PlaitError(f"family {family!r}: {_package(family)}.config has no Config, a subclass of plait.config.schema.ModelSection")
    wrong = [fault for name, kind in _TABLES.items() if (fault := plugins.type_fault(name, kind, getattr(section, name))) is not None]
    if wrong := wrong or section_faults(section):
        raise PlaitError(f"family {family!r} ({section.__module__}.Config) does not fulfil the contract: {'; '.join(wrong)}")
    return section


@functools.cache
def _imports_torch(family: str) -> bool:
    """Import a family's config.py; return whether that, the first time, was what imported torch."""
    before = plugins.HEAVY in sys.modules
    module_of(family, "config")
    return plugins.HEAVY in sys.modules and not before


def model_configs() -> Iterator[tuple[str, type[ModelSection]]]:
    """Yield (name, class of its `model:` section) of each family, without those that cannot be imported, which raise when they are used."""
    for family in names():
        with contextlib.suppress(PlaitError):
            yield family, model_config(family)


def load(family: str) -> "Family":
    """Import a family's family.py and return its checked members. Raises PlaitError for an unknown name, or members missing or wrong."""
    module = module_of(family, "family")
    if not is_shipped(family):
        checks_of("members").check(family, module)
    try:
        loaded: Family = importlib.import_module("plait.families.contract").family_of(family, module)
    except TypeError:  # one that ships, of which a member is missing: all others of its faults are held by its tests
        checks_of("members").check(family, module)
        raise
    return loaded if is_shipped(family) else cast("Family", checks_of("returned").checked(loaded))


def benches(family: str) -> "Benches":
    """Return a family's benches (evaluations) by name; {} without an `evaluate.py`. Raises PlaitError for one that defines no `benches`."""
    if not has_module(family, "evaluate.py"):
        return {}
    module = module_of(family, "evaluate")
    return cast("Benches", module.benches if is_shipped(family) else checks_of("returned").checked_benches(family, module))


def ablations(family: str) -> "Ablations":
    """Return the inputs that benches can leave out of a family's samples, by name; {} for none. Raises PlaitError for wrong ones."""
    listed = vars(module_of(family, "evaluate")).get("ablations", {}) if has_module(family, "evaluate.py") else {}
    return cast("Ablations", listed if is_shipped(family) else checks_of("returned").checked_ablations(family, listed))


def preset(family: str, name: str) -> Path:
    """Return the path of preset `name`, a configuration in the family's package. Raises PlaitError, listing the known ones, if unknown."""
    folder = folder_of(family) / "presets"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise PlaitError(f"preset {name!r} is not one of family {family!r}: {listing(name, known)}")
    return path


def _package(family: str) -> str:
    if family not in packages():
        raise PlaitError(f"family {family!r} is unknown: {listing(family, names())}")
    plugins.named(GROUP, family, [name for name in packages() if is_shipped(name)])
    return packages()[family]


def is_shipped(family: str) -> bool:
    """Return whether a family is one of plait itself."""
    return packages()[family].startswith(f"{__package__}.")


def checks_of(name: str) -> Any:
    """Import the module `members` or `returned` of this package, which check families of other packages."""
    return importlib.import_module(f"{__package__}.{name}")


def module_of(family: str, name: str) -> ModuleType:
    """Import a module of a family, by its name in the package. Raises PlaitError where another package's family lacks it."""
    package = _package(family)
    try:
        return importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name in (package, f"{package}.{name}"):
            raise PlaitError(
                f"family {family!r}: there is no module {error.name}; a family is a package with config.py and family.py"
            ) from None
        reason: Exception = error
    except Exception as error:  # noqa: BLE001  whatever it is, it is that package's code that must be mended
        reason = error
    if is_shipped(family):
        raise reason
    raise PlaitError(f"family {family!r}: {package}.{name} cannot be imported: {plugins.one_line(reason)}") from reason


def folder_of(family: str) -> Path:
    """Return the folder of a family's package. Raises PlaitError for one that cannot be found, or is no package."""
    package = _package(family)
    try:
        spec = importlib.util.find_spec(package)
    except Exception as error:  # a package around it, which is imported to find it
        raise PlaitError(f"family {family!r}: {package} cannot be found: {plugins.one_line(error)}") from error
    if spec is None or not spec.submodule_search_locations:
        raise PlaitError(f"family {family!r}: {package} is not a package")
    return Path(spec.submodule_search_locations[0])


def has_module(family: str, file: str) -> bool:
    """Return whether a family has a module, such as "export.py", also as a package of that name."""
    path = folder_of(family) / file
    return path.is_file() or (path.with_suffix("") / "__init__.py").is_file()


def listing(name: str, known: list[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known one, and all of them."""
    near = difflib.get_close_matches(name, known, 1) or [item for item in known if name and item.startswith(name)]
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(known) or 'none'}"
