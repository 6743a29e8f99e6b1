"""Make transformers' Auto classes and pipelines know the model of a whole export, as `import plait.hf` does."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from plait.families.theworld.hf.configuration import TheWorldConfig
from plait.families.theworld.hf.modeling import TheWorldForConditionalGeneration
from plait.families.theworld.hf.processing import TheWorldProcessor


def register() -> None:
    """Register configuration, model and processor; a second call changes nothing."""
    AutoConfig.register(TheWorldConfig.model_type, TheWorldConfig, exist_ok=True)
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        auto.register(TheWorldConfig, TheWorldForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(TheWorldConfig, TheWorldProcessor, exist_ok=True)
