"""Every command understands every name of a checkpoint, whatever characters the run's name has."""

import json
import shutil
from pathlib import Path

import pytest

from plait import cli
from tests import toy_family as toy

NAMES = ["a@8", "lr=1e-4", "two words", "läuft-日本-🚀", "x[1]*?.", "step8", "best@best", "-{n}: ~ #1'\""]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    with pytest.MonkeyPatch.context() as patch:
        recipe = toy.install(patch, folder)
        short = {"steps: 6": "steps: 2", "every_steps: 2, keep": "every_steps: 1, keep", "every_steps: 2}": "every_steps: 1}"}
        text = recipe.read_text().replace("  - {name: language, trainable: [language]}\n", "")
        for old, new in short.items():
            assert old in text
            text = text.replace(old, new)
        recipe.write_text(text)
        yield recipe


def plait(capsys, *words):
    """What a command prints; it has to succeed."""
    code = cli.main(list(words))
    out, error = capsys.readouterr()
    assert code == 0, f"{words}: {error}"
    return out


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_any_name_is_trained_looked_at_forked_and_started_from(recipe, tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    run = f"runs/{name}"
    plait(capsys, "train", str(recipe), f"--run={run}")
    best = json.loads((tmp_path / run / "stage-2-vision/step-00000004/manifest.json").read_text())["state"]["best"]["step"]
    wanted = {
        run: "stage-2-vision/step-00000004",
        f"{run}@3": "stage-2-vision/step-00000003",
        f"{run}@latest": "stage-2-vision/step-00000004",
        f"{run}/step2": "stage-1-projection/step-00000002",
        f"{run}/projection": "stage-1-projection/step-00000002",
        f"{run}/projection@1": "stage-1-projection/step-00000001",
        f"{run}/vision@best": f"stage-2-vision/step-{best:08d}",
        f"{run}/stage-1-projection/step-00000001": "stage-1-projection/step-00000001",
    }
    for spec, folder in wanted.items():
        assert plait(capsys, "ckpt", "inspect", spec).startswith(f"{run}/{folder}: step ")
    assert f"intact  {run}/stage-2-vision/step-00000003" in plait(capsys, "ckpt", "verify", f"{run}@3")
    assert "stage 2 vision: done" in plait(capsys, "stages", run)
    assert "moved" in plait(capsys, "ckpt", "diff", f"{run}/projection", f"{run}@4")
    plait(capsys, "fork", f"{run}/projection@1", f"runs/fork of {name}")
    assert "continuing from" in plait(capsys, "train", f"runs/fork of {name}")
    started = plait(capsys, "train", str(recipe), "--run", "runs/new", f"--from={run}/vision@best", "--stages=[]", "--train.steps=1")
    assert f"starting from {Path(run).resolve()}/stage-2-vision/step-{best:08d}" in started
    assert "continuing from" in plait(capsys, "train", str(recipe), "--run", run)


def test_a_run_whose_name_begins_with_a_dash_comes_after_two_dashes_or_with_its_folder(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plait(capsys, "train", str(recipe), "--run=-a", "--stages=[]", "--train.steps=1", "--evaluate=[]", "--checkpoint.best=null")
    plait(capsys, "fork", "--", "-a@1", "-b")
    for run in (["--", "-a"], ["./-a"], ["--", "-b"]):
        for verb in (["stages"], ["ckpt", "inspect"], ["ckpt", "verify"], ["config"], ["train"]):
            plait(capsys, *verb, *run)
    assert "moved" in plait(capsys, "ckpt", "diff", "--", "-a", "-b@1")
    assert {path.name for path in tmp_path.iterdir()} == {"-a", "-b"}


@pytest.mark.parametrize("name", ["007", "1e3", "true", "2026-11-29", "~x", "[a]", "a: b"])
def test_a_run_whose_name_reads_like_another_value_keeps_it(recipe, tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    plait(capsys, "train", str(recipe), f"--run={name}", "--stages=[]", "--train.steps=1", "--evaluate=[]", "--checkpoint.best=null")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert plait(capsys, "ckpt", "inspect", f"{name}@1").startswith(f"{name}/stage-1-")


def test_a_leading_tilde_is_the_home_directory_everywhere(recipe, tmp_path, capsys, monkeypatch):
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    shutil.copy(recipe, home / "toy.yaml")
    short = ("--stages=[]", "--train.steps=1", "--evaluate=[]", "--checkpoint.best=null")
    plait(capsys, "train", "~/toy.yaml", "--run=~/a", *short)
    assert f"starting from {home}/a" in plait(capsys, "train", "~/toy.yaml", "--run", "~/b", "--from=~/a@1", *short)
    (home / "c.yaml").write_text((home / "toy.yaml").read_text() + "run: ~/c\nfrom: ~/b\n")
    assert f"starting from {home}/b" in plait(capsys, "train", "~/c.yaml", *short)
    plait(capsys, "fork", "~/a@1", "~/d")
    plait(capsys, "ckpt", "diff", "~/a", "~/b")
    plait(capsys, "ckpt", "consolidate", "~/a", "~/e")
    for words in (("stages", "~/a"), ("ckpt", "verify", "~/a"), ("config", "~/a"), ("train", "~/d")):
        plait(capsys, *words)
    assert {path.name for path in home.iterdir()} == {"toy.yaml", "c.yaml", *"abcde"}
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [["train", "recipe.yaml", "--run=LONG"], ["stages", "LONG"], ["eval", "LONG"], ["export", "LONG", "x"], ["fork", "LONG", "x"]],
)
def test_a_name_that_no_disk_takes_is_one_line(monkeypatch, tmp_path, capsys, command):
    toy.install(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main([word.replace("LONG", "n" * 300) for word in command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("plait: ") and len(line) < 400
