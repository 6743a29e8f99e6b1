"""What lmms-eval reads of the entry point `lmms_eval.models` to know the model `plait`. It imports nothing heavy."""

from typing import Any


def manifest() -> Any:
    """Return lmms-eval's description of the model `plait`: the class that it makes for `--model plait`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="plait", simple_class_path="plait.lmms_eval.model.Plait")
