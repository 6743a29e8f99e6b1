"""Train multimodal models in stages. A run can be stopped at any step and continues exactly where it stopped.

The names of the Python interface (docs/python.md) are imported when they are first used; importing plait imports nothing else.
"""

import importlib

__version__ = "0.1.0"
_HOME = {
    "Checkpoint": "plait.api.checkpoint",
    "PlaitError": "plait.errors",
    "Run": "plait.api.run",
    "Sample": "plait.api.samples",
    "load_config": "plait.api.configuration",
    "open": "plait.api.checkpoint",
    "samples": "plait.api.samples",
    "train": "plait.api.run",
}
__all__ = ["__version__", *_HOME]  # noqa: PLE0604 (texts)


def __getattr__(name: str) -> object:
    """Import a public name from its module. Raises AttributeError for any other."""
    if name not in _HOME:
        raise AttributeError(f"module 'plait' has no attribute {name!r}; its public names are {', '.join(sorted(_HOME))}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """Return the public names, also those that are not imported yet."""
    return sorted(__all__)
