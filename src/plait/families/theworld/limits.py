"""The limits of the model's input: length of a sequence, size of an image, and components that learn from images only."""

from plait.families.limits import Limits, language_positions
from plait.families.theworld import towers
from plait.families.theworld.config import Config


def limits(config: Config) -> Limits:
    """Return what settings and data are checked against: Gemma's longest sequence, its images' side (px), and what needs images."""
    needs = {"vision": ["images"]}
    if config.world is not None:
        needs |= {"world": ["images", "frames"], "projector": ["images", "frames"]}
        needs |= {"model.world": ["images", "frames"]} | ({"model.world.steps": ["frames", "rollout"]} if config.world.steps else {})
    idle = {"model.world": "off", "model.world.steps": "0"}
    return Limits(language_positions(towers.gemma_config(config)), towers.image_sizes(config)[0], needs, idle)
