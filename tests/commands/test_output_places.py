"""Places that nothing can be written to: each verb that writes says so in one line, and leaves what is there."""

import shutil

import pytest

from plait import cli
from tests import toy_family as toy
from tests.test_house import ROOT


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        recipe = toy.install(patch, folder)
        yield recipe, toy.train(recipe, folder / "run", "stages=[]", "train.steps=2")


VERBS = ("fork run {}", "ckpt consolidate run {}",
         "eval run --bench=loss --out={}", "report run --no-plan --out={}", "train recipe.yaml --run={}")  # fmt: skip


@pytest.mark.parametrize("place", ["afile/x", "dang", "dang/x", "/proc/plait"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_place_that_cannot_be_written_to_is_one_line(made, tmp_path, monkeypatch, capsys, verb, place):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made[1], "run")
    shutil.copy(made[0], "recipe.yaml")
    (tmp_path / "afile").write_text("mine")
    (tmp_path / "dang").symlink_to("nothing")
    assert cli.main(verb.format(place).split()) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("plait: ") and place.strip("/").partition("/")[0] in said
    assert (tmp_path / "afile").read_text() == "mine" and not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("place", ["afile/x", "dang", "/proc/plait"])
def test_an_inspection_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys, place):
    recipe = str(ROOT / "configs" / "nanodit" / "tiny-cifar10.yaml")
    scenes = "[{source: scenes, limit: 4, options: {size: [32, 32], tasks: [caption]}}]"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("mine")
    (tmp_path / "dang").symlink_to("nothing")
    assert cli.main(["data", "inspect", recipe, f"--data.train={scenes}", f"--data.validation={scenes}", f"--out={place}"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("plait: ")
    assert (tmp_path / "afile").read_text() == "mine" and not (tmp_path / "nothing").exists()
