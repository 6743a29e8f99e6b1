"""The `model:` section: defaults that follow each other, and one line for what cannot be."""

import pytest
import yaml
from pydantic import ValidationError

from plait.errors import PlaitError
from plait.families import registry
from plait.families.molmo import towers
from plait.families.molmo.config import Config


def test_debug_brings_its_tower_and_margins():
    config = Config(language="debug")
    assert (config.vision_backbone, config.overlap, config.max_crops) == ("debug", 2, 4)
    assert Config(language="debug", max_crops=9).max_crops == 9
    assert Config(language="debug", vision_backbone="openai").overlap == 4


@pytest.mark.parametrize("overlap", [3, 12])
def test_overlap_must_leave_a_window_of_whole_pools(overlap):
    with pytest.raises(ValidationError, match=rf"overlap is {overlap} patches of a crop's 24"):
        Config(overlap=overlap)


@pytest.mark.parametrize(("name", "value"), [("vision_backbone", "clip"), ("weighting", "sqrt"), ("residual_dropout", 1.0), ("crops", 4)])
def test_wrong_settings_are_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        Config(**{name: value})


def test_an_unknown_language_model_is_one_line():
    with pytest.raises(PlaitError, match=r"model\.language: cannot load 'nobody/nothing' as a Hub name or a local directory") as error:
        towers.language_config(Config(language="nobody/nothing"))
    assert "\n" not in str(error.value)


def test_a_debug_run_without_its_tokenizer_says_where_it_is(tmp_path):
    with pytest.raises(PlaitError, match="a debug model's tokenizer is trained when its run starts"):
        towers.load_tokenizer(Config(language="debug"), tmp_path)


@pytest.mark.parametrize("preset", ["debug", "captioner", "multitask"])
def test_presets_exist_and_open_with_their_command(preset):
    assert registry.preset("molmo", preset).read_text().startswith("# Run:")


PUBLISHED = {  # of the reference's two training scripts
    "captioner": "{style: style_and_length, format: none, wordings: false, residual_dropout: 0.0, response_residual_dropout: 0.1}",
    "multitask": "{style: demo_or_style, format: role, wordings: true, residual_dropout: 0.1, response_residual_dropout: 0.0}",
}


@pytest.mark.parametrize(("preset", "settings"), PUBLISHED.items())
def test_presets_have_the_published_settings(preset, settings):
    config = Config(**yaml.safe_load(registry.preset("molmo", preset).read_text())["model"])
    wanted = yaml.safe_load(settings) | {"preprocessing": "published", "weighting": "root_subsegments"}
    assert {name: getattr(config, name) for name in wanted} == wanted
