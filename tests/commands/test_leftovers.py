"""What a killed command leaves half written is gone after the same command has run again, and its result is as without a kill."""

import os
import shutil
import tarfile

import pytest

from plait import files
from plait.commands.actions.checkpoints import consolidate
from plait.commands.actions.fork import fork
from plait.data.sources import shards

from .. import toy_family
from ..processes import kill_inside


def content(folder):
    """Every file below `folder` but those of a run's own number: name -> bytes."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "identity"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the toy family."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        toy_family.train(toy_family.install(patch, folder), folder / "run")
    return folder / "run"


COMMANDS = {
    "fork": (lambda run, out: fork(str(run), out, ["optim.lr=1e-3"]), (files, "write_whole")),
    "consolidate": (lambda run, out: consolidate(str(run), out, averaged=True), (files, "write_json")),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_run_again_gives_its_result_and_leaves_nothing_else(trained, tmp_path, monkeypatch, name):
    command, last_write = COMMANDS[name]
    monkeypatch.setattr(toy_family.registry, "model_config", lambda name: toy_family.Config)
    target = tmp_path / "killed" / "out"

    def killed(out, wait):
        monkeypatch.setattr(*last_write, lambda *arguments: wait())
        command(trained, out)

    command(trained, target)
    wanted = content(tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed")
    kill_inside(target, killed)
    assert os.listdir(tmp_path / "killed") == [".out.tmp"]
    assert content(tmp_path / "killed").keys() & wanted.keys() == set()
    command(trained, target)
    assert content(tmp_path / "killed") == wanted


def test_a_killed_making_of_an_index_is_finished_by_the_next(tmp_path, monkeypatch):
    tar = tmp_path / "a.tar"
    with tarfile.open(tar, "w") as file:
        file.addfile(tarfile.TarInfo("a.txt"))

    def killed(path, wait):
        monkeypatch.setattr(os, "fsync", lambda descriptor: wait())
        shards.index_files(str(path), beside=True)

    kill_inside(tar, killed)
    assert sorted(os.listdir(tmp_path)) == [".a.tar.idx.tmp", "a.tar"]
    assert [row.built for row in shards.index_files(str(tar), beside=True)] == [True]
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "a.tar.idx"]
