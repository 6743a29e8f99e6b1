"""Tell of pretrained parts that cannot be loaded, or are not as the table says."""

import contextlib
from collections.abc import Iterator

from safetensors import SafetensorError
from transformers import PreTrainedConfig

from plait.config import hub_errors
from plait.errors import PlaitError
from plait.families.molmo.hf.sizes import Tower


@contextlib.contextmanager
def loading(setting: str, value: str) -> Iterator[None]:
    """Turn the long errors of the Hub libraries into one line that names the setting. Raises PlaitError inside the block."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:  # absent, gated, torn; ValueError: no causal language model
        reason = hub_errors.reason(error, value)
        raise PlaitError(f"{setting}: cannot load {value!r} as a Hub name or a local directory: {reason}") from error


def check_tower(sizes: PreTrainedConfig, tower: Tower, backbone: str, source: str) -> None:
    """Hold the published sizes of `backbone` to its row of the table, `tower`. Raises PlaitError where they differ."""
    expected = {"hidden_size": tower.hidden, "patch_size": tower.patch, "num_attention_heads": tower.heads}
    given = {"hidden_size": sizes.hidden_size, "patch_size": sizes.patch_size, "num_attention_heads": sizes.num_attention_heads}
    if tower.kind != "dino":  # DINOv2 interpolates its learned positions
        expected["patches of a side"], given["patches of a side"] = tower.positions, sizes.image_size // sizes.patch_size
    if given != expected or sizes.num_hidden_layers < tower.layers:
        raise PlaitError(
            f"model.vision_source: {source!r} has {given} and {sizes.num_hidden_layers} layers; "
            f"vision_backbone {backbone} wants {expected} and at least {tower.layers}"
        )
