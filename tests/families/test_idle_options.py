"""Options of `plait generate` that would change nothing are refused, in each family, before anything is computed."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from plait.errors import PlaitError
from plait.families.idle_options import of_draw, refuse_idle
from plait.families.molmo.generate import generate as answer
from plait.families.molmo.options import GenerateOptions as Asked
from plait.families.nanodit.generate import generate as draw
from plait.families.nanodit.options import GenerateOptions as Drawn


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"text_scale": 2.0}, "generate: --text-scale changes nothing: no --prompt is given; leave it out"),
        ({"text_scale": 2.0, "image": "a.png"}, "--text-scale changes nothing"),
        ({"image_scale": 2.0, "prompt": "a cat"}, "generate: --image-scale changes nothing: no --image is given; leave it out"),
        ({"guidance": "joint", "prompt": "a cat"}, "--guidance changes nothing: its kinds differ only where both"),
        ({"interval": "0.1,0.9"}, "--interval changes nothing: neither --prompt nor --image is given"),
    ],
)
def test_guidance_by_what_is_not_given_is_refused(given, line):
    with pytest.raises(PlaitError) as told:
        draw(None, None, Drawn(**given), Path("never"), "step-1")
    assert line in str(told.value)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"style": "vqa2"}, "generate: --style changes nothing: model.style is none, so that no prompt names its style; leave it out"),
        ({"top_p": 0.5}, "--top-p changes nothing: at temperature 0 the likeliest token is always taken, and nothing is drawn"),
        ({"seed": 0, "temperature": 0.0}, "--seed changes nothing: at temperature 0"),
    ],
)
def test_a_style_or_a_draw_that_there_is_not_is_refused(given, line):
    with pytest.raises(PlaitError) as told:
        answer(None, SimpleNamespace(config=SimpleNamespace(style="none")), Asked(**given), None, "step-1")
    assert line in str(told.value)


def test_what_changes_something_passes():
    options = Asked(top_p=0.5, seed=3, temperature=1.0)
    assert of_draw(options) == {}
    refuse_idle(options.model_fields_set, of_draw(options))
    refuse_idle({"prompt"}, of_draw(Asked(prompt="a")))
