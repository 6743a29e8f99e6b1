"""`save_model` of a trainer: an export with a passport, which takes the place of an earlier one and of nothing else."""

import json
import os
import shutil

import pytest
import yaml

import plait
from plait import cli
from plait.hf import model_folder
from plait.hf.batches import HostRanks
from tests.hf import recipes


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """One that has taken no step."""
    folder = tmp_path_factory.mktemp("saved")
    config = yaml.safe_load(recipes.written("nanodit", folder).read_text())
    return recipes.trainer_of(config | {"optim": {"ema": {"decay": 0.9}}}, folder / "out")


def refusal(trainer, out):
    with pytest.raises(plait.PlaitError) as told:
        trainer.save_model(str(out))
    assert "\n" not in str(told.value)
    return str(told.value)


def test_a_saved_model_has_a_passport_that_holds(trainer, tmp_path, caplog, capsys):
    trainer.save_model(str(tmp_path / "saved"))
    claims = json.loads((tmp_path / "saved/passport.json").read_text())["claims"]
    (stage,) = claims["stages"]
    origin = claims["checkpoint"]
    assert (claims["family"], claims["weights"], origin["stage"], origin["step"]) == ("nanodit", "last weights", "train", 0)
    assert (stage["first_step"], stage["last_step"], stage["samples"], stage["ended"], origin["folder"]) == (0, 0, 0, None, None)
    assert list(stage["data"].values()) == list(trainer.stage.plan.data.fingerprints().values())
    assert cli.main(["verify", str(tmp_path / "saved")]) == 0
    assert f"saved: an export as {claims['layout']} of step 0 of stage train, by a trainer of transformers, family nanodit" in caplog.text
    assert cli.main(["verify", str(tmp_path / "saved"), "--run", str(tmp_path)]) == 2
    assert "which keeps no run to compare it with: leave --run and --data out" in capsys.readouterr().err


def test_an_earlier_export_is_replaced_and_folders_beside_it_stay(trainer, tmp_path):
    for name in ("saved.new", ".saved.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    for _ in range(2):
        trainer.save_model(str(tmp_path / "saved"))
        os.utime(tmp_path / "saved/passport.json", (0, 0))
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved/passport.json").stat().st_mtime > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".saved.tmp", "saved", "saved.new"]
    assert [(tmp_path / name / "thesis.txt").read_text() for name in ("saved.new", ".saved.tmp")] == ["mine"] * 2


@pytest.mark.parametrize("name", ["notes.txt", "eval/mine.json", "empty/", "model_index.json", "link"])
def test_what_no_export_wrote_is_kept(trainer, tmp_path, name):
    trainer.save_model(str(tmp_path / "saved"))
    mine = tmp_path / "saved" / name
    if name == "link":
        mine.symlink_to(tmp_path)
    elif name.endswith("/"):
        mine.mkdir()
    else:
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
    assert refusal(trainer, tmp_path / "saved").endswith(f"{name.rstrip('/')}): move that away, or give another folder")
    assert mine.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]


def test_a_folder_without_a_passport_is_kept(trainer, tmp_path):
    (tmp_path / "plait.json").write_text("{}")
    assert refusal(trainer, tmp_path) == (
        f"save_model: {tmp_path} holds something else than an export with a passport.json (plait.json): give another folder"
    )
    assert (tmp_path / "plait.json").is_file()


def test_places_that_are_no_folder_are_refused_in_a_line(trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "lost").symlink_to("nowhere")
    wanted = {
        ".": ". is or holds the current folder, which an export cannot replace: give a folder below it",
        "..": ".. is or holds the current folder, which an export cannot replace: give a folder below it",
        "file": "file is a file: give another folder",
        "file/x": f"file/x is below {tmp_path / 'file'}, which is a file: give another folder",
        "lost": "lost is a link to nothing: give a new folder, or remove it",
        "/proc/x/y": "/proc/x/y cannot be written (No such file or directory): give another folder",
        "s3://bucket/x": "s3://bucket/x is an address, and files are written on disks only: name a folder, and copy it to s3:// afterwards",
    }
    assert {place: refusal(trainer, place).removeprefix("save_model: ") for place in wanted} == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "lost"]


def test_the_home_folder_is_meant_by_a_tilde(trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    trainer.save_model("~/saved")
    assert (tmp_path / "saved/passport.json").is_file()


def test_a_failure_while_it_is_swapped_leaves_the_earlier_export(trainer, tmp_path, monkeypatch):
    trainer.save_model(str(tmp_path / "saved"))
    monkeypatch.setattr(model_folder.write, "write", lambda folder, *_: shutil.rmtree(folder))
    assert refusal(trainer, tmp_path / "saved").endswith("cannot be written (No such file or directory): give another folder")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"] and cli.main(["verify", str(tmp_path / "saved")]) == 0


class Two(HostRanks):
    """Rank 1 of two, whose rank 0 says `failure`."""

    failure = "PermissionError: [Errno 13] /model"

    def agree(self, value):
        return self.failure


def test_an_error_of_rank_0_ends_the_other_ranks_with_its_line(trainer, tmp_path, monkeypatch):
    ranks = Two(1, 2, trainer.stage.ranks.device, None)
    stage = model_folder.Stage(**{**vars(trainer.stage), "ranks": ranks})
    with pytest.raises(plait.PlaitError, match=r"^PermissionError: \[Errno 13\] /model$"):
        model_folder.export(stage, tmp_path / "saved")
