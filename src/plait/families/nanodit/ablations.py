"""The conditions of family nanodit that benches can leave out or exchange: the caption (`text`) and the reference image (`image`)."""

from collections.abc import Callable

from plait.families.ablation import Ablation
from plait.families.nanodit.config import Config
from plait.families.nanodit.inputs import WITHOUT, Sample, caption

_TEXT = ("t5h", "t5h_flip")
_IMAGE = ("dinov3",)


def _without(condition: str) -> Callable[[Sample], Sample]:
    return lambda sample: {**sample, WITHOUT: frozenset([condition, *sample.get(WITHOUT, ())])}


def _with_arrays_of(sample: Sample, other: Sample, names: tuple[str, ...]) -> Sample:
    """Return a sample with the arrays of these names of another one, and without those that the other lacks."""
    own = {name: array for name, array in sample.get("arrays", {}).items() if name not in names}
    return {**sample, "arrays": own | {name: array for name, array in other.get("arrays", {}).items() if name in names}}


def _with_text_of(sample: Sample, other: Sample) -> Sample:
    return {**_with_arrays_of(sample, other, _TEXT), "messages": other["messages"]}


def _reference(sample: Sample) -> bytes | None:
    """Return the features of a sample's reference image as bytes, None without."""
    features = sample.get("arrays", {}).get("dinov3")
    return None if features is None else bytes(features.tobytes())


def _why_no_image(config: Config) -> str | None:
    return None if config.image_dim else "model.image_dim is 0"


ABLATIONS = {
    "text": Ablation(lambda sample: caption(sample) or None, _without("text"), _with_text_of),
    "image": Ablation(_reference, _without("image"), lambda sample, other: _with_arrays_of(sample, other, _IMAGE), _why_no_image),
}
"""Inputs that benches can leave out, by name."""
