"""Read checkpoints whose parameters a library has renamed since: `renames` of the family's `Config` says what was called how.

Every reader of a checkpoint maps its names first (continuing, `from:`, evaluation, export); a checkpoint on disk is never rewritten.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")
_MOMENT = re.compile(r"\.(?:(?:exp_avg|exp_avg_sq)(?:_codes|_scale)?|step|momentum_buffer)$")


def former_names(table: Mapping[str, str], saved: Collection[str], present: Collection[str]) -> dict[str, str]:
    """Return {name of a parameter in a checkpoint: its name now} for those that were renamed.

    `table`: {pattern, as in re.sub: replacement}; `saved`: names in the checkpoint; `present`: those of the model. A name is mapped only to
    one that the model has and the checkpoint has not.
    """
    known, there = set(present), set(saved)
    found: dict[str, str] = {}
    for name in there - known:
        if (renamed := now(table, name)) != name and renamed in known and renamed not in there:
            found[name] = renamed
    return found


def now(table: Mapping[str, str], name: str) -> str:
    """Return what a parameter or module that had this name is called now. `table`: {pattern: replacement}."""
    for pattern, replacement in table.items():
        name = re.sub(pattern, replacement, name)
    return name


def of_checkpoint(table: Mapping[str, str], manifest: Mapping[str, Any], present: Collection[str]) -> dict[str, str]:
    """Return `former_names` of a checkpoint by its manifest, which lists all parameters of the model as it was."""
    listed = [name for component in manifest.get("components", {}).values() for name in component.get("names", component["weights"])]
    return former_names(table, [*listed, *manifest["state"]["trained"]], present)


def mapped(tensors: Mapping[str, Mapping[str, Value]], former: Mapping[str, str]) -> dict[str, dict[str, Value]]:
    """Return tensors, {group: {name: tensor}}, under the names that their parameters have now; of moments too, as "NAME.exp_avg"."""
    return {group: {_now(name, former): value for name, value in part.items()} for group, part in tensors.items()}


def _now(name: str, former: Mapping[str, str]) -> str:
    if name in former:
        return former[name]
    ending = _MOMENT.search(name)
    return former.get(name[: ending.start()], name[: ending.start()]) + ending[0] if ending else name
