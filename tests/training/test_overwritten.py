"""A start whose weights overwrite the pretrained parts does not read these; any other start does."""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from plait import cli
from plait.assembly import overwritten
from plait.engine.checkpoints import checkpoint
from plait.engine.parallel import distributed
from plait.errors import PlaitError
from plait.families import registry
from plait.families.molmo import published
from plait.training import run
from tests import processes
from tests.training.test_pretrained_start import load, saved


@pytest.fixture(scope="module")
def molmo(tmp_path_factory):
    """(folder, recipe) of a debug model whose parts' weights are gone: their configuration and tokenizer are all that is left."""
    folder = tmp_path_factory.mktemp("overwritten")
    model, path = saved("molmo", folder)
    weights = {name: value.contiguous() for name, value in published.to_published(model).items()}
    for name in ("published", "partial", "reference"):
        (folder / name).mkdir()
        shutil.copy(folder / "language/tokenizer.json", folder / name)
    save_file(weights, folder / "published/model.safetensors")
    own = {name: value.detach().contiguous() for name, value in model.named_parameters() if name.startswith(("vision.", "language."))}
    save_file(own, folder / "partial/model.safetensors")
    save_file({name.removeprefix("model."): value for name, value in weights.items()}, folder / "reference/model.safetensors")
    (folder / "language/model.safetensors").unlink()
    recipe = yaml.safe_load(path.read_text()) | {"trainable": ["connector"]}
    path.write_text(yaml.dump(recipe | {"train": {"steps": 1, "global_batch": 2}}))
    return folder, path, {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("layout", ["published", "reference"])
def test_a_published_checkpoint_starts_a_run_whose_base_models_are_not_there(molmo, layout, tmp_path, caplog):
    folder, path, weights = molmo
    caplog.set_level("INFO")
    settings = [f"from={folder / layout}", f"run={tmp_path / 'run'}"]
    made = run.train(load(path, *settings))
    assert "base weights that the start overwrites, and that are not read: language, vision" in caplog.text
    after = checkpoint.read(checkpoint.published(made)[0]).tensors("weights")
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], value) for name, value in weights.items() if not name.startswith("connector."))
    assert any(not torch.equal(after[name], value) for name, value in weights.items() if name.startswith("connector."))
    run.train(load(path, *settings, "train.steps=2"))  # its checkpoints have all weights, too
    assert checkpoint.step_of(checkpoint.published(made)[0]) == 2


@pytest.mark.parametrize(("preprocessing", "warnings"), [("corrected", 1), ("published", 0)])
def test_a_start_from_the_published_layout_says_where_it_marks_padding_otherwise(molmo, preprocessing, warnings, tmp_path, caplog):
    run.train(load(molmo[1], f"from={molmo[0] / 'published'}", f"run={tmp_path / 'run'}", f"model.preprocessing={preprocessing}"))
    line = "weights in the published layout, and model.preprocessing is corrected: published weights were trained with `published`"
    assert caplog.text.count(line) == warnings


@pytest.fixture
def started(molmo, tmp_path):
    """A run that began from published weights, without base models, with checkpoints of steps 1 to 3."""
    settings = (f"from={molmo[0] / 'published'}", f"run={tmp_path / 'run'}", "train.steps=3", "checkpoint={every_steps: 1, keep: 9}")
    return run.train(load(molmo[1], *settings))


@pytest.mark.parametrize(("torn", "more", "last"), [(0, [], 3), (2, ["--train.steps=4"], 4)], ids=["the newest", "the oldest"])
def test_a_run_that_began_from_weights_goes_on_past_a_torn_checkpoint(started, torn, more, last, capsys):
    folder = checkpoint.published(started)[torn]
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert cli.main(["train", str(started), *more]) == 0
    said = capsys.readouterr()
    assert f"continuing from {started}/stage-1-train/step-0000000{2 if torn == 0 else 3}\n" in said.out
    assert "that are not read: language, vision" in said.out and "Traceback" not in said.err
    assert checkpoint.step_of(checkpoint.published(started)[0]) == last


def test_a_start_from_a_run_whose_newest_checkpoint_is_torn_takes_the_one_before(molmo, started, tmp_path, capsys):
    newest = checkpoint.published(started)[0] / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    assert cli.main(["train", str(molmo[1]), f"--from={started}", f"--run={tmp_path / 'other'}"]) == 0
    said = capsys.readouterr()
    assert "that are not read: language, vision" in said.out
    assert f"starting from {started}/stage-1-train/step-00000002" in said.out


def test_verbs_that_load_other_weights_need_no_base_models_either(molmo, started, tmp_path, capsys):
    folder, path, _ = molmo
    start = [
        "--bench=loss",
        f"--from={folder / 'published'}",
        f"--run={tmp_path / 'new'}",
        "--data.validation=[{source: scenes, limit: 4}]",
    ]
    assert cli.main(["eval", "--base", str(path), *start]) == 0
    assert cli.main(["fork", str(started), str(tmp_path / "fork"), "--trainable=[connector, vision]"]) == 0
    assert "that are not read" not in capsys.readouterr().out, "a line of training"


def test_assets_are_written_before_the_shapes_of_a_start_ask_the_family_for_a_model(molmo, tmp_path, monkeypatch):
    family = registry.load("molmo")

    def build(config, assets, *, seed):
        assert (assets / "tokenizer/tokenizer.json").is_file()
        return family.build(config, assets, seed=seed)

    changed = dataclasses.replace(family, build=build)
    monkeypatch.setattr(registry, "load", lambda name: changed)
    made = run.train(load(molmo[1], f"from={molmo[0] / 'published'}", f"run={tmp_path / 'run'}"))
    assert checkpoint.published(made)


def shapes_on_each_rank(config, folder):
    with distributed.join("cpu") as ranks:
        if not ranks.first:
            checkpoint.published = lambda run: []  # as where a network's disk shows another machine's files late
        return overwritten.shapes_of_start(config, folder, ranks)


def test_ranks_that_see_other_checkpoints_go_by_the_first(molmo, started):
    config = load(molmo[1], f"from={molmo[0] / 'published'}").config
    here, there = processes.run(2, shapes_on_each_rank, config, started)
    assert here == there == {name: value.shape for name, value in molmo[2].items()}


def test_a_start_without_all_other_weights_reads_the_base_models(molmo, tmp_path):
    folder, path, _ = molmo
    with pytest.raises(PlaitError, match=r"model\.language: cannot load"):  # the connector is drawn at the scale of its weights
        run.train(load(path, f"from={folder / 'partial'}", f"run={tmp_path / 'run'}"))


def test_a_torn_base_model_is_one_line(molmo, tmp_path, capsys):
    folder, path, _ = molmo
    shutil.copytree(folder / "language", tmp_path / "language")
    (tmp_path / "language/model.safetensors").write_bytes(b"0" * 100)
    assert cli.main(["train", str(path), f"--model.language={tmp_path / 'language'}", f"--run={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert f"model.language: cannot load '{tmp_path / 'language'}' as a Hub name or a local directory: " in said
    assert "Traceback" not in said


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_full_start_of_theworld_reads_no_weights_of_gemma_and_exports_in_its_dtype_with_its_way_of_generating(dtype, tmp_path, caplog):
    model, path = saved("theworld", tmp_path)
    settings = json.loads((tmp_path / "gemma/config.json").read_text())
    (tmp_path / "gemma/config.json").write_text(json.dumps(settings | {"dtype": dtype}))
    own = {"do_sample": True, "top_k": 64, "top_p": 0.95, "eos_token_id": [1, 106]}
    (tmp_path / "gemma/generation_config.json").write_text(json.dumps(own))
    (tmp_path / "full").mkdir()
    full = {name: value.detach().contiguous().clone() for name, value in model.named_parameters() if not name.startswith("world.")}
    save_file(full, tmp_path / "full/model.safetensors")
    (tmp_path / "gemma/model.safetensors").unlink()
    caplog.set_level("INFO")
    settings = [f"from={tmp_path / 'full'}", f"run={tmp_path / 'run'}", "train.steps=1", "trainable=[projector]"]
    made = run.train(load(path, *settings))
    assert "base weights that the start overwrites, and that are not read: gemma" in caplog.text
    after = checkpoint.read(checkpoint.published(made)[0]).tensors("weights")
    assert all(torch.equal(after[name], value) for name, value in full.items() if name.startswith("gemma."))
    assert cli.main(["export", str(made), str(tmp_path / "hf")]) == 0
    exported = load_file(tmp_path / "hf/model.safetensors")
    assert {value.dtype for value in exported.values()} == {getattr(torch, dtype)}
    generates = json.loads((tmp_path / "hf/generation_config.json").read_text())
    assert [generates.get(name) for name in ("do_sample", "top_k", "top_p")] == [True, 64, 0.95]
    assert set(own["eos_token_id"]) <= set(generates["eos_token_id"])


def test_a_pickle_is_answered_with_the_command_that_converts_it(molmo, tmp_path, capsys):
    _, path, weights = molmo
    (tmp_path / "pickled").mkdir()
    torch.save({name: value.contiguous().clone() for name, value in weights.items()}, tmp_path / "pickled/model.pt")
    assert cli.main(["train", str(path), f"--from={tmp_path / 'pickled'}", f"--run={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "model.pt is a pickle, which can run code and is not read; convert it once: python -c " in said
    assert not (tmp_path / "run").exists()
    command = shlex.split(said.partition("convert it once: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert load_file(tmp_path / "pickled/model.safetensors").keys() == weights.keys()
