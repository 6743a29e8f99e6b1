"""The model section: what off and on mean, and one clear error for what cannot be."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from plait.families.theworld.config import COSMOS, Config


@pytest.mark.parametrize("off", [False, "off", "false", "Off", None])
def test_world_off_is_understood_and_written_back_as_false(off):
    config = Config(world=off)
    assert config.world is None
    assert config.model_dump()["world"] is False
    assert Config(**config.model_dump()) == config


@pytest.mark.parametrize("on", [True, "on", {}])
def test_world_on_is_the_published_encoder(on):
    assert Config(world=on).world.source == COSMOS


def test_tiny_base_brings_a_tiny_world_of_the_same_picture():
    config = Config(base="tiny", tiny={"image_size": 64, "patch": 8})
    assert (config.world.source, config.world.image_size) == ("tiny", 64)
    assert Config(base="tiny", world={"source": COSMOS}).world.source == COSMOS
    assert Config(**config.model_dump()) == config


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"world": {"steps": 17}}, "world.steps is 17, more than world.max_steps, 16: raise max_steps"),
        ({"world": {"image_size": 500}}, "multiple of 8"),
        ({"world": {"tokns": "pooled"}}, "Extra inputs are not permitted"),
        ({"tiny": {"patch": 5}}, "image_size must be a multiple of patch x the square root of image_tokens"),
        ({"world": "sometimes"}, "World"),
    ],
)
def test_config_refuses_what_cannot_be(section, complaint):
    with pytest.raises(ValidationError, match=complaint) as caught:
        Config(**section)
    assert caught.value.error_count() == 1


def test_config_is_free_of_torch():
    code = "import sys, plait.families.theworld.config; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
