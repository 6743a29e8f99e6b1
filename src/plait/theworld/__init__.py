"""TheWorld in Python: `TheWorld.from_pretrained(...).generate(image, "How many?")`, and its classes for transformers (docs/python.md)."""

from plait.families.theworld.hf.configuration import TheWorldConfig
from plait.families.theworld.hf.modeling import TheWorldForConditionalGeneration
from plait.families.theworld.hf.processing import TheWorldProcessor
from plait.theworld.model import TheWorld

__all__ = ["TheWorld", "TheWorldConfig", "TheWorldForConditionalGeneration", "TheWorldProcessor"]
