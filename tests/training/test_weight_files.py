"""Folders of weights from elsewhere, in several files or as pickles: all of them are read, or the line says what is missing."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from plait import cli
from plait.assembly import weight_files
from plait.errors import PlaitError
from tests import toy_family as toy

HALVES = [{"projector.weight": torch.ones(4, 4), "tied": torch.ones(2)}, {"language.weight": torch.ones(1, 4)}]


def shards(folder, name, kind, numbers=(1, 2)):
    for number in numbers:
        path = folder / f"{name}-{number:05d}-of-00002.{kind}"
        save_file(HALVES[number - 1], path) if kind == "safetensors" else torch.save(HALVES[number - 1], path)


def refused(folder):
    with pytest.raises(PlaitError) as caught:
        weight_files.read(folder)
    with pytest.raises(PlaitError, match=re.escape(str(caught.value))):
        weight_files.empty(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def convert(said):
    subprocess.run([sys.executable, *shlex.split(said.partition(" once: ")[2])[1:]], check=True)


@pytest.mark.parametrize("converted", [(), (1,)], ids=["none", "the first"])
def test_one_command_converts_all_shards(tmp_path, converted):
    shards(tmp_path, "pytorch_model", "bin")
    shards(tmp_path, "pytorch_model", "safetensors", converted)
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
        torch.save({}, tmp_path / name)
    said = refused(tmp_path)
    assert f"from: {tmp_path}/pytorch_model-0000{len(converted) + 1}-of-00002.bin " in said
    assert ("and 1 more files are pickles" in said) == (not converted)
    convert(said)
    assert weight_files.read(tmp_path).keys() == HALVES[0].keys() | HALVES[1].keys()


def test_tensors_that_share_memory_are_converted(tmp_path):
    value = torch.arange(6.0)
    torch.save({"a": value, "b": value.view(2, 3).t()}, tmp_path / "model.pt")
    convert(refused(tmp_path))
    assert torch.equal(weight_files.read(tmp_path)["b"], value.view(2, 3).t())


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin"])
def test_the_weights_of_a_trainers_folder_are_named_and_not_its_state(tmp_path, name):
    for other in ("adapter.pt", "global_step.bin", "optimizer.pt", name):
        torch.save({}, tmp_path / other)
    assert f"from: {tmp_path / name} is a pickle, " in refused(tmp_path)


def test_a_folder_with_a_trainers_state_alone_has_no_weights(tmp_path):
    torch.save({}, tmp_path / "optimizer.pt")
    assert refused(tmp_path) == f"from: {tmp_path} is neither a run nor a folder with safetensors weights"


def test_safetensors_beside_unconverted_shards_are_refused_unless_they_are_the_model(tmp_path):
    shards(tmp_path, "pytorch_model", "bin")
    save_file(HALVES[0], tmp_path / "projector.safetensors")
    assert "pytorch_model-00001-of-00002.bin and 1 more files are pickles" in refused(tmp_path)
    shards(tmp_path, "model", "safetensors")
    assert len(weight_files.read(tmp_path)) == 3


def test_missing_files_of_weights_are_named(tmp_path):
    shards(tmp_path, "model", "safetensors", [2])
    assert refused(tmp_path) == f"from: {tmp_path} lacks 1 of 2 files of its weights: model-00001-of-00002.safetensors; copy them there"
    shards(tmp_path, "model", "safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "vision.safetensors"}}))
    assert "lacks 1 of 3 files of its weights: vision.safetensors; " in refused(tmp_path)
    index.write_text("{")
    assert f"from: {index} is damaged: it is no index of weights (JSONDecodeError: " in refused(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "consolidated.safetensors"}}))
    assert len(weight_files.read(tmp_path)) == 3, "of another layout"


def test_a_pipe_in_place_of_weights_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    assert refused(tmp_path) == f"from: {tmp_path}/model.safetensors is no regular file: remove it, or copy the file there"
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "nothing")
    assert refused(tmp_path) == f"from: {tmp_path}/model.safetensors is a link to nothing: remove it, or copy the file there"


def test_a_start_from_half_of_the_weights_is_one_line(tmp_path, monkeypatch, capsys):
    recipe = toy.install(monkeypatch, tmp_path)
    (tmp_path / "half").mkdir()
    shards(tmp_path / "half", "model", "safetensors", [1])
    assert cli.main(["train", str(recipe), f"--from={tmp_path / 'half'}", f"--run={tmp_path / 'run'}"]) == 2
    assert f"plait: from: {tmp_path / 'half'} lacks 1 of 2 files of its weights: " in capsys.readouterr().err
