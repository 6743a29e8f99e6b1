"""Check the modules of another package's family when they are loaded: that they have the members of contract.py, with their signatures.

Families in this folder are not checked: their tests hold them to the same. What members return is checked in returned.py.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from plait.config import plugins
from plait.config.schema import ModelSection
from plait.engine.loss import Loss
from plait.errors import PlaitError

REQUIRED: Mapping[str, str] = {
    "Config": "Config, the model: section of config.py",
    "build": "build(config, assets, *, seed)",
    "components": "components(model)",
    "blocks": "blocks(model)",
    "Inputs": "Inputs(config, assets, *, max_tokens, pad, train)",
    "Loss": "Loss(config)",
}
"""How messages name each member that family.py must have: its call, or what it is."""
OPTIONAL: Mapping[str, str] = {
    "prepare": "prepare(config, assets, texts)",
    "base": "base(config)",
    "build_over": "build_over(config, assets, *, seed, parts)",
    "recomputed": "recomputed(model)",
    "never_trained": "never_trained, a frozenset of component names",
    "limits": "limits(config)",
    "monitors": "monitors(config)",
    "frozen_features": "frozen_features(config)",
    "token_lengths": "token_lengths(inputs)",
    "GenerateOptions": "GenerateOptions, a pydantic model",
    "generate": "generate(model, inputs, options, out, moment)",
    "inspect": "inspect(inputs, sample, example)",
    "legend": "legend, a text",
}
"""The same for members that it may have."""
CATALOGUE: Mapping[str, str] = {
    "open_dataset": "open_dataset(entry, split, *, root, cache)",
    "rule_of": "rule_of(name)",
    "split_of": "split_of(name, split)",
    "evaluation_split": "evaluation_split(name)",
    "scored": "scored()",
}
"""Functions of `module_contracts.Catalogue`."""
METHODS: Mapping[str, Sequence[str]] = {
    "Inputs": ("encode(sample, key)", "collate(examples)"),
    "Loss": ("weights(batch)", "sums(model, batch)"),
}
"""Methods, with their arguments, that these members must have if they are classes; a function may return any object with them."""


def check(name: str, module: ModuleType) -> None:
    """Check the members of `module`, a family.py. Raises PlaitError, which names all that are missing or have another signature."""
    members = vars(module)
    faults = [f"it lacks {wanted}" for member, wanted in REQUIRED.items() if member not in members]
    given = {member: members[member] for member in (*REQUIRED, *OPTIONAL) if member in members}
    faults += [fault for member, value in given.items() if (fault := _fault(member, value)) is not None]
    if ("generate" in given) != ("GenerateOptions" in given):
        faults.append("generate and GenerateOptions belong together, and it has one of them")
    if faults:
        raise PlaitError(f"family {name!r} ({module.__name__}) does not fulfil the contract: {'; '.join(faults)}")


def check_catalogue(name: str, module: ModuleType) -> None:
    """Raise PlaitError if a family's `catalogue/datasets.py` lacks DATASETS, ALIASES or one of its functions, or a signature differs."""
    tables = {table: vars(module).get(table) for table in ("DATASETS", "ALIASES")}
    faults = [f"it lacks {table}, a mapping by name" for table, value in tables.items() if not isinstance(value, Mapping)]
    if faults := [*faults, *plugins.function_faults(vars(module), CATALOGUE)]:
        raise PlaitError(f"family {name!r} ({module.__name__}) does not fulfil the contract: {'; '.join(faults)}")


def check_publisher(name: str, module: ModuleType, layouts: Mapping[str, str]) -> None:
    """Raise PlaitError where a family's `export.py` has no `imported`, or its `exports` are not functions by the names in `layouts`.

    `module`: that file; `layouts`: `Config.layouts` of the family, {layout: what loads it}.
    """
    exports = vars(module).get("exports")
    if not (isinstance(exports, Mapping) and all(map(callable, exports.values()))):
        raise PlaitError(f"family {name!r}: {module.__name__} has no exports, a mapping of layout (hf, ...) to function")
    if sorted(layouts) != sorted(exports):
        written, said = (", ".join(map(str, names)) or "none" for names in (exports, layouts))
        raise PlaitError(f"family {name!r}: {module.__name__} has exports {written}, and Config.layouts of its config.py names {said}")
    calls = {f"exports[{layout!r}]": f"exports[{layout!r}](model, config, assets, out)" for layout in exports}
    members = {**vars(module), **{f"exports[{layout!r}]": export for layout, export in exports.items()}}
    if wrong := plugins.function_faults(members, {**calls, "imported": "imported(weights, model)"}):
        raise PlaitError(f"family {name!r} ({module.__name__}) does not fulfil the contract: {'; '.join(wrong)}")


def _fault(member: str, value: Any) -> str | None:
    """Return what is wrong with one member, or None."""
    wanted = {**REQUIRED, **OPTIONAL}[member]
    if member == "Config":
        return None if _is_a(value, ModelSection) else "Config is to be a subclass of plait.config.schema.ModelSection"
    if member == "GenerateOptions":
        return None if _is_a(value, BaseModel) else "GenerateOptions is to be a pydantic model"
    if member == "never_trained":
        return None if isinstance(value, frozenset) else "never_trained is to be a frozenset of component names"
    if member == "legend":
        return None if isinstance(value, str) else "legend is to be a text"
    if member == "Loss" and callable(value) and not _is_a(value, Loss):
        return "Loss is to be a subclass of plait.engine.loss.Loss"
    methods = METHODS.get(member, ()) if isinstance(value, type) else ()
    lacking = [name for name in (method.partition("(")[0] for method in methods) if _lacks(value, name)]
    if lacking:
        return f"{member} lacks {' and '.join(lacking)}"
    faults = [plugins.call_fault(f"{member}.{method}", getattr(value, method.partition("(")[0]), ("self",)) for method in methods]
    return next(filter(None, [plugins.call_fault(wanted, value), *faults]), None)


def _is_a(value: Any, kind: type) -> bool:
    return isinstance(value, type) and issubclass(value, kind)


def _lacks(kind: type, method: str) -> bool:
    """Return whether a class has no such method, or only the abstract one."""
    return method not in dir(kind) or method in getattr(kind, "__abstractmethods__", ())
