"""What the model can take in: the length of a sequence, the size of an image, and which components learn from images alone."""

from plait.families.limits import Limits, language_positions
from plait.families.theworld import towers
from plait.families.theworld.config import Config


def limits(config: Config) -> Limits:
    """Return Gemma's number of positions, the side of the images that its tower sees, and what needs images or frames."""
    needs = {"vision": ["images"]}
    if config.world is not None:
        needs |= {"world": ["images", "frames"], "projector": ["images", "frames"]}
        needs |= {"model.world": ["images", "frames"]} | ({"model.world.steps": ["frames"]} if config.world.steps else {})
    idle = {"model.world": "off", "model.world.steps": "0"}
    return Limits(language_positions(towers.gemma_config(config)), towers.image_sizes(config)[0], needs, idle)
