"""Which settings may differ when a run is continued, and which bind it to the configuration that it was begun with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plait.config.sections.places import has_moved
from plait.errors import PlaitError

FREE = (
    *("run", "track", "checkpoint", "evaluate", "distributed", "guard", "alert", "hub"),
    *("data.workers", "data.worker_kind", "data.prefetch", "data.cache", "data.pack_tokens", "train.micro_batch"),
    *("data.feature_cache", "data.feature_cache_gb", "data.feature_cache_of"),
)
"""Keys that may differ when a run is continued: they change how it computes or what it reports, never its results."""

_BINDING = "distributed.ddp_comm_hook"
"""The key among those that does change them: gradients are rounded before they are summed."""

Difference = tuple[str, Any, Any]
"""(dotted key, value before, value after)."""


def refuse(run: Path, differences: Sequence[Difference]) -> None:
    """Raise PlaitError when there are differences from the configuration that the run was begun with, listing each."""
    if differences:
        shown = "; ".join(f"{key}: {before} -> {after}" for key, before, after in differences)
        raise PlaitError(
            f"{run} was begun with another configuration ({shown}); undo that, go on with it from here on (--allow-inexact), "
            "give another --run, or --restart (keeps the old run aside)"
        )


def binding(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences that would change results: not those of keys in `FREE` (how to compute or report), nor data that moved."""

    def is_free(key: str) -> bool:
        return any(within(key, free) for free in FREE) and not within(key, _BINDING)

    return [item for item in differences if not (is_free(item[0]) or has_moved(*item[1:]))]


def within(key: str, section: str) -> bool:
    """Return whether a dotted key, of the configuration or of one of its stages, is `section` or below it."""
    parts = key.split(".")
    if parts[0] == "stages":
        parts = parts[2:] or parts
    return ".".join(parts) == section or ".".join(parts).startswith(section + ".")
