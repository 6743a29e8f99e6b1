"""A damaged tokenizer file of a run is named, in one line that says what to do, by every family that keeps one."""

import pytest

from plait.errors import PlaitError
from plait.families import offers, registry

REMEDY = r"tokenizer\.json is no tokenizer that can be read \(.+\): copy it back from a fork or a backup"
KEEPING = {"theworld": {"base": "tiny"}, "molmo": {"language": "debug", "vision_backbone": "debug"}}


@pytest.mark.parametrize("content", ["{", "", "[]"])
@pytest.mark.parametrize("name", KEEPING)
def test_a_damaged_tokenizer_is_named_with_the_remedy(name, tmp_path, content):
    family, publisher = registry.load(name), offers.publisher(name)
    config = family.Config(**KEEPING[name])
    family.prepare(config, tmp_path, lambda: ["What is this?", "a small green frog"] * 20)
    model = family.build(config, tmp_path, seed=1)
    path = tmp_path / "tokenizer/tokenizer.json"
    path.write_text(content)
    for use in (lambda: family.Inputs(config, tmp_path), lambda: publisher.exports["hf"](model, config, tmp_path, tmp_path / "out")):
        with pytest.raises(
            PlaitError, match=r"tokenizer\.json is no tokenizer that can be read \(.+\): copy it back from a fork or a backup"
        ) as e:
            use()
        assert str(e.value).startswith(str(path)) and "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()
