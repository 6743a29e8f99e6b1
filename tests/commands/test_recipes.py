"""`plait recipes`: the configurations that come with plait, listed and copied."""

import pytest

from plait import cli
from plait.commands.recipes import about, recipes
from tests.test_house import ROOT


def test_each_recipe_says_what_it_is_meant_for():
    every = recipes()
    assert set(every) == {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").glob("*/*")}
    told = {name: about(path) for name, path in every.items()}
    assert all(10 < len(text) < 60 for text in told.values()), told
    assert told["theworld/demo.yaml"] == "2 CPU cores, no network"
    assert told["nanodit/medium.yaml"] == "one 80 GB GPU"


def test_a_recipe_is_copied_to_where_its_own_commands_name_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipes", "theworld/demo", "configs/molmo/debug.yaml"]) == 0
    for name in ("theworld/demo.yaml", "molmo/debug.yaml"):
        assert (tmp_path / "configs" / name).read_bytes() == (ROOT / "configs" / name).read_bytes()
    assert cli.main(["config", "configs/molmo/debug.yaml"]) == 0
    assert "`plait train configs/molmo/debug.yaml`, for 2 CPU cores, no network" in capsys.readouterr().out


def test_a_file_that_was_changed_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (mine := tmp_path / "configs/molmo/debug.yaml").parent.mkdir(parents=True)
    mine.write_text("family: molmo\n")
    assert cli.main(["recipes", "theworld/demo", "molmo/debug"]) == 2
    assert capsys.readouterr().err.strip() == "plait: configs/molmo/debug.yaml is another file than the recipe: keep it, or --replace it"
    assert mine.read_text() == "family: molmo\n"
    assert not (tmp_path / "configs/theworld").exists()
    assert cli.main(["recipes", "molmo/debug", "--replace"]) == 0
    assert mine.read_bytes() == (ROOT / "configs/molmo/debug.yaml").read_bytes()


@pytest.mark.parametrize(("name", "end"), [("theworld/deno", "did you mean theworld/demo.yaml?"), ("x", "theworld/tiny-nlvr.yaml")])
def test_a_name_that_there_is_not_is_told_with_those_there_are(name, end, capsys):
    assert cli.main(["recipes", name]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"plait: {name}: no such recipe; ")
    assert error.endswith(end)


def test_a_missing_recipe_in_train_points_to_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "configs/theworld/demo.yaml"]) == 2
    assert "`plait recipes` copies those that come with plait" in capsys.readouterr().err
