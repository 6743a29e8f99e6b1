"""Import this, and transformers' Auto classes and pipelines load the models of exports that plait alone has, as they load others.

`plait.hf.trainer(config)` returns a Trainer of transformers for a configuration; it is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

from plait.families import offers

if TYPE_CHECKING:
    from plait.hf.door import trainer as trainer

offers.register_auto_classes()


def __getattr__(name: str) -> object:
    """Import `trainer`. Raises AttributeError for any other name."""
    if name != "trainer":
        raise AttributeError(f"module 'plait.hf' has no attribute {name!r}; it has trainer")
    return importlib.import_module("plait.hf.door").trainer
