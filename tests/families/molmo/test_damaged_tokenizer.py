"""A damaged tokenizer file is named, in one line that says what to do."""

import pytest

from plait.errors import PlaitError
from plait.families.molmo import export, family


@pytest.mark.parametrize("content", ["{", "", "[]"])
def test_a_damaged_tokenizer_is_named_with_the_remedy(make, tmp_path, content):
    config, model, _ = make()
    path = tmp_path / "tokenizer/tokenizer.json"
    path.parent.mkdir()
    path.write_text(content)
    for use in (lambda: family.Inputs(config, tmp_path), lambda: export.write_hf(model, config, tmp_path, tmp_path / "out")):
        with pytest.raises(
            PlaitError, match=r"tokenizer\.json is no tokenizer that can be read \(.+\): copy it back from a fork or a backup"
        ) as error:
            use()
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
