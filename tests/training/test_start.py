"""Where a run starts from: `from:` in all its forms, what is said before the first step, and what is refused."""

import errno
import json
import math
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from plait import files
from plait.assembly.configuration import open_config
from plait.assembly.data import open_training
from plait.commands.actions import fork
from plait.config.schema import RunConfig
from plait.data.order import digest
from plait.engine import averages
from plait.engine.checkpoints import checkpoint, integrity, rundir
from plait.engine.monitoring.heartbeat import Heartbeat
from plait.engine.state import GROUPS
from plait.errors import PlaitError, Stopped
from plait.families import offers
from plait.training import changes, from_weights, start
from tests import toy_family as toy


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(recipe, a finished run of it)."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        recipe = toy.install(patch, folder)
        yield recipe, toy.train(recipe, folder / "run")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stages.2.trainable=[language,heads]", "trainable names 'heads', which is no component of this model"),
        ("stages.2.optim.components={heads: {lr: 1.0}}", "optim.components names 'heads'"),
        (
            "stages.2.optim={name: muon, components: {language: {muon: false}}}",
            "optim.name is muon, but no matrix of language is in a block",
        ),
        ("stages.2.optim.name=adamw8bit", "optim.name is adamw8bit, which needs torchao"),
    ],
)
def test_a_mistake_in_a_later_stage_is_told_before_the_first(made, tmp_path, monkeypatch, override, told):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(PlaitError, match=re.escape(told)):
        toy.train(made[0], tmp_path / "run", override)
    assert not checkpoint.published(tmp_path / "run")


@pytest.fixture
def parent(made, tmp_path):
    """A copy of the finished run that a test may damage."""
    return shutil.copytree(made[1], tmp_path / "parent")


@pytest.mark.parametrize(
    ("form", "step"),
    [
        ("{run}", 18),
        ("{run}@8", 8),
        ("{run}/vision", 12),
        ("{run}/stage-2-vision", 12),
        ("{run}/projection@4", 4),
        ("{run}/vision@best", 12),
        ("{run}/stage-1-projection/step-00000002", 2),
        ("{run}/step8", 8),
        ("{run}/step-00000008", 8),
        ("{run}/vision/step8", 8),
        ("{run}/latest", 18),
        ("{run}/vision/latest", 12),
        ("{run}@latest", 18),
    ],
)
def test_every_form_of_from_means_one_checkpoint(made, form, step):
    _, manifest, folder = from_weights.read_from(form.format(run=made[1]))
    assert (manifest["state"]["step"], folder.name) == (step, f"step-{step:08d}")


def test_a_form_relative_to_the_working_folder_is_no_hub_name(made, monkeypatch):
    monkeypatch.chdir(made[1].parent)
    assert from_weights.read_from("run/vision")[1]["stage"] == "vision"
    assert from_weights.read_from("run@8")[1]["state"]["step"] == 8


def test_a_folder_of_safetensors_gives_weights_alone(made, tmp_path):
    save_file(toy.at(made[1], 12).tensors("weights"), tmp_path / "model.safetensors")
    tensors, manifest, folder = from_weights.read_from(str(tmp_path))
    assert toy.same(tensors["weights"], toy.at(made[1], 12).tensors("weights"))
    assert (manifest, folder, tensors["ema"], tensors["moments"]) == (None, tmp_path, {}, {})


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("{run}/vison", r"run/vison' does not exist; did you mean .*run/vision\? from: give a run, RUN@STEP, RUN/STAGE"),
        ("{run}x", r"runx' does not exist; did you mean .*run\? "),
        ("{run}@9", r"run has no checkpoint at step '9'; it has 2, 4, 6, 8, 10, 12, 14, 16, 18"),
        ("{run}/vision@2", r"stage-2-vision has no checkpoint at step '2'; it has 8, 10, 12"),
        ("./nowhere", r"'./nowhere' does not exist; from: give a run"),
        ("{run}/step15000", r"run has no checkpoint at step '15000'; it has 2, 4, 6, 8, 10, 12, 14, 16, 18"),
        ("{run}x/step15000", r"runx/step15000' does not exist: there is no .*runx; from: give a run"),
        ("captioner/step15000", r"'captioner/step15000' does not exist: there is no captioner; from: give a run"),
        ("captioner/latest", r"'captioner/latest' does not exist: there is no captioner; from: give a run"),
        ("{run}/assets", r"is neither a run nor a folder with safetensors weights"),
    ],
)
def test_a_start_that_is_not_there_is_one_line(made, form, message):
    with pytest.raises(PlaitError, match=message) as caught:
        from_weights.read_from(form.format(run=made[1]))
    assert "\n" not in str(caught.value)


def test_a_typo_is_never_a_fresh_start_and_can_be_mended(made, tmp_path, capsys):
    recipe, parent = made
    with pytest.raises(PlaitError, match="does not exist"):
        toy.train(recipe, tmp_path / "new", f"from={parent}x")
    assert not (tmp_path / "new" / "metrics.jsonl").exists()
    capsys.readouterr()
    toy.train(recipe, tmp_path / "new", f"from={parent}")
    assert f"starting from {parent / 'stage-3-language' / 'step-00000018'}\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "lineage.json").read_text())["step"] == 18


def test_a_start_that_is_not_there_is_known_before_a_model_is_built(made, tmp_path, monkeypatch):
    recipe, parent = made
    monkeypatch.setattr(toy.run, "build_model", lambda *_: pytest.fail("built a model to start from nothing"))
    for absent in (f"{parent}x", "captioner/step15000", "./nowhere"):
        with pytest.raises(PlaitError, match=r"does not exist.*from: give a run"):
            toy.train(recipe, tmp_path / "new", f"from={absent}")
    assert not (tmp_path / "new").exists()


def killed_before_a_step(recipe, run):
    """A run directory as a kill leaves it that came before anything was saved."""
    run.mkdir()
    (run / "config.yaml").write_text(toy.open_config(recipe, [f"run={run}"]).yaml)


def test_a_run_that_saved_nothing_is_looked_at_like_a_new_one(made, tmp_path, monkeypatch):
    recipe, parent = made
    killed_before_a_step(recipe, tmp_path / "new")
    monkeypatch.setattr(toy.run, "build_model", lambda *_: pytest.fail("built a model before it looked"))
    for wrong, said in (("data.train=[{source: jsonl, path: nowhere.jsonl}]", r"nowhere\.jsonl"), (f"from={parent}x", "does not exist")):
        with pytest.raises(PlaitError, match=said):
            toy.train(recipe, tmp_path / "new", wrong)


def test_data_that_is_not_there_is_known_before_a_model_is_built_whatever_stage_reads_it(made, tmp_path, monkeypatch):
    recipe, _ = made
    monkeypatch.setattr(toy.run, "build_model", lambda *_: pytest.fail("built a model to train on nothing"))
    absent = "[{source: jsonl, path: nowhere.jsonl}]"
    for where, said in (
        ("data.train", "data source jsonl:nowhere.jsonl: "),
        ("stages.2.data.train", "stage language: data source jsonl:nowhere"),
    ):
        with pytest.raises(PlaitError, match=r"nowhere\.jsonl") as caught:
            toy.train(recipe, tmp_path / "new", f"{where}={absent}")
        assert str(caught.value).startswith(said)
    for where in ("data.validation", "stages.1.data.validation"):
        with pytest.raises(PlaitError, match=r"nowhere\.jsonl"):
            toy.train(recipe, tmp_path / "new", f"{where}={absent}")
    assert not (tmp_path / "new").exists()


def test_a_run_begun_from_another_takes_over_what_that_one_made_on_the_spot(made, tmp_path):
    recipe, _ = made
    parent = shutil.copytree(made[1], tmp_path / "parent")
    (parent / "assets" / "tokenizer").write_text("the parent's own")
    new = toy.train(recipe, tmp_path / "new", f"from={parent}/latest", "stages=[]", "train.steps=1")
    assert (new / "assets" / "tokenizer").read_text() == "the parent's own"
    assert not (toy.train(recipe, tmp_path / "other", "stages=[]", "train.steps=1") / "assets" / "tokenizer").exists()


def test_a_run_begun_from_another_has_its_weights_averages_and_moments_at_step_0(made, tmp_path):
    recipe, parent = made
    new = toy.train(
        recipe, tmp_path / "new", f"from={parent}/vision", "trainable=[language]", "stages=[]", "train.steps=1", "optim.lr=1e-9"
    )
    found, source = toy.at(new, 1), toy.at(parent, 12)
    kept = {name: value for name, value in found.tensors("weights").items() if not name.startswith("language")}
    assert toy.same(kept, source.tensors("weights"))
    moments = found.tensors("moments")
    assert toy.same({name: moments[name] for name in source.tensors("moments")}, source.tensors("moments"))
    assert (found.manifest["state"]["stage_start"], found.manifest["state"]["totals"]["samples"]) == (0, 4)


def test_freezing_comes_from_the_new_configuration_and_is_told(made, tmp_path, capsys):
    toy.train(made[0], tmp_path / "new", f"from={made[1]}/vision", "stages=[]", "trainable=[projector, language]", "train.steps=1")
    said = capsys.readouterr().out
    assert "vision: trained there, frozen here (its trained weights stay in every checkpoint)" in said
    assert "language: frozen there, trains here" in said
    assert "projector: " not in said
    assert "vision.weight" in toy.at(tmp_path / "new", 1).tensors("weights")


def test_freezing_that_changed_within_a_run_is_told_on_resume(parent, capsys):
    shutil.rmtree(parent / "stage-3-language" / "step-00000018")
    toy.train(parent, parent, "stages.2.trainable=[vision]", allow_inexact=True)
    said = capsys.readouterr().out
    assert (
        "  language: trained there, frozen here (its trained weights stay in every checkpoint)\n  vision: frozen there, trains here" in said
    )
    assert toy.same(part(parent, 18, "language"), part(parent, 16, "language"))
    assert not toy.same(part(parent, 18, "vision"), part(parent, 16, "vision"))


def part(run, step, name):
    return {key: value for key, value in toy.at(run, step).tensors("weights").items() if key.startswith(name)}


def test_averages_go_on_where_they_are_kept_here_too(made, tmp_path, capsys):
    toy.train(made[0], tmp_path / "new", f"from={made[1]}", "stages=[]", "train.steps=1", "optim.ema={decay: 0.5, post_hoc: true}")
    assert "averages are left behind" not in capsys.readouterr().out
    (told,) = [json.loads(line) for line in (tmp_path / "new" / "migrations.jsonl").read_text().splitlines()]
    found = {(row["group"], row["component"], row["verdict"]) for row in told["rows"]}
    assert {verdict for group, _, verdict in found if group == "ema"} == {"keep"}
    assert {item for item in found if item[0] in averages.KEPT} == {
        (group, part, "initialise") for group in averages.KEPT for part in ("projector", "vision", "language")
    }


def test_a_start_without_averages_leaves_none_behind(made, tmp_path, capsys):
    save_file(toy.at(made[1], 18).tensors("weights"), tmp_path / "model.safetensors")
    toy.train(made[0], tmp_path / "new", f"from={tmp_path}", "stages=[]", "train.steps=1", "optim.ema=null")
    assert "averages are left behind" not in capsys.readouterr().out


def test_bare_weights_are_named_as_the_family_publishes_them(made, tmp_path, monkeypatch):
    weights = toy.at(made[1], 18).tensors("weights")
    save_file({f"module.{name}": value for name, value in weights.items()}, tmp_path / "model.safetensors")
    publisher = SimpleNamespace(imported=lambda given, model: {name.removeprefix("module."): value for name, value in given.items()})
    monkeypatch.setattr(offers, "publisher", lambda family: publisher)
    frozen = ("stages=[]", "trainable=[projector]", "train.steps=1")
    run = toy.train(made[0], tmp_path / "new", f"from={tmp_path}", *frozen)
    assert all(torch.equal(value, weights[name]) for name, value in part(run, 1, "language").items()) and part(run, 1, "language")
    save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setattr(offers, "publisher", lambda family: None)
    assert (
        part(toy.train(made[0], tmp_path / "other", f"from={tmp_path}", *frozen), 1, "language").keys() == part(run, 1, "language").keys()
    )


def test_a_run_that_saved_nothing_says_that_it_starts_at_step_0(made, tmp_path, capsys):
    killed_before_a_step(made[0], tmp_path / "new")
    toy.train(made[0], tmp_path / "new", "stages=[]", "train.steps=1", allow_inexact=True)
    assert f"{tmp_path / 'new'} has no checkpoint yet: it starts at step 0" in capsys.readouterr().out


def test_a_run_in_use_is_not_set_aside(parent):
    with rundir.lock(parent), pytest.raises(PlaitError, match="is in use by process"):
        toy.train(parent, parent, restart=True)
    assert [path.name for path in parent.parent.glob("parent*")] == ["parent"]


def test_every_start_of_a_run_appends_its_table(made, tmp_path):
    run = tmp_path / "new"
    for _ in range(2):
        toy.train(made[0], run, f"from={made[1]}")
    rows = [json.loads(line) for line in (run / "migrations.jsonl").read_text().splitlines()]
    assert [row["from"] for row in rows] == [str(made[1]), str(run / "stage-3-language" / "step-00000018")]
    weights = {row["component"]: (row["verdict"], row["tensors"], row["values"]) for row in rows[0]["rows"] if row["group"] == "weights"}
    assert weights == {"projector": ("keep", 2, 20), "vision": ("keep", 2, 20), "language": ("keep", 2, 5)}
    assert rows[0]["inexact"] == []
    assert {row["group"] for row in rows[0]["rows"]} == {"weights", "ema", "moments"}


def test_frozen_weights_of_another_base_are_refused_at_a_start_from_a_run(made, tmp_path):
    recipe = tmp_path / "other-base.yaml"
    recipe.write_text(made[0].read_text().replace("optim:", "seed: 1\noptim:"))
    with pytest.raises(PlaitError, match=r"this start is inexact \(base weights: frozen there .*drawn from the seed.*--allow-inexact"):
        toy.train(recipe, tmp_path / "new", f"from={made[1]}/projection")


def test_what_has_no_place_is_refused_unless_allowed_and_then_left_behind(made, tmp_path, capsys):
    changes = [f"from={made[1]}", "model.width=6"]
    with pytest.raises(PlaitError, match=r"this start is inexact \(weights of language: drop 1 \(language\.weight\); .*--allow-inexact"):
        toy.train(made[0], tmp_path / "new", *changes)
    toy.train(made[0], tmp_path / "new", *changes, allow_inexact=True)
    assert "inexact: weights of vision: drop 2 (vision.bias, vision.weight)" in capsys.readouterr().out
    assert toy.at(tmp_path / "new", 6).tensors("weights")["projector.weight"].shape == (6, 6)


def test_weights_of_which_no_name_matches_are_refused_whatever_is_allowed(made, tmp_path):
    weights = toy.at(made[1], 12).tensors("weights")
    save_file({f"encoder.{name}": value for name, value in weights.items()}, tmp_path / "model.safetensors")
    there = r"there encoder\.projector\.bias, encoder\.projector\.weight, .+, \.\.\.; here language\.bias, language\.weight"
    for allowed in (False, True):
        with pytest.raises(PlaitError, match=rf"none of the 4 tensors of {tmp_path} has a name of this model: {there}"):
            toy.train(made[0], tmp_path / "new", f"from={tmp_path}", allow_inexact=allowed)
    assert not list((tmp_path / "new").glob("stage-*"))


def test_weights_of_which_some_are_left_over_are_refused_by_name_unless_allowed(made, tmp_path, capsys):
    weights = toy.at(made[1], 12).tensors("weights")
    save_file({**weights, "decoder.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    left = r"this start is inexact \(weights of \(none\): drop 1 \(decoder\.weight\)\); if that is meant, add --allow-inexact"
    with pytest.raises(PlaitError, match=left):
        toy.train(made[0], tmp_path / "new", f"from={tmp_path}")
    settings = (f"from={tmp_path}", "stages=[]", "trainable=[language]", "train.steps=1")
    new = toy.train(made[0], tmp_path / "new", *settings, allow_inexact=True)
    assert toy.same(part(new, 1, "vision"), part(made[1], 12, "vision"))
    assert "inexact: weights of (none): drop 1 (decoder.weight)" in capsys.readouterr().out


def test_averages_are_left_behind_where_none_are_kept(made, tmp_path, capsys):
    new = toy.train(made[0], tmp_path / "new", f"from={made[1]}", "optim.ema=null")
    assert "averages are left behind: optim.ema is off here" in capsys.readouterr().out
    assert toy.at(new, 6).tensors("ema") == {}
    losses = [row["eval/loss"] for row in toy.figures(new) if "eval/loss" in row]
    assert len(set(losses)) == len(losses), "evaluation follows the weights that train"


def test_bare_weights_have_no_freezing_that_could_differ():
    assert changes.freezing_changes(None, None, None) == []


def test_a_changed_setting_that_binds_is_refused_and_one_that_is_free_is_not(parent):
    with pytest.raises(PlaitError, match=r"was begun with another configuration \(optim\.lr: 0\.01 -> 0\.5\)"):
        toy.train(parent, parent, "optim.lr=0.5")
    toy.train(parent, parent, "checkpoint.keep=7")


@pytest.mark.parametrize(("body", "reason"), [("a: [", r"while parsing a flow node|expected the node content"), ("family: 5\n", r"family")])
def test_a_configuration_that_cannot_be_read_says_why(parent, body, reason):
    without_copies(parent)
    recipe = parent.parent / "recipe.yaml"
    shutil.copy(parent / "config.yaml", recipe)
    (parent / "config.yaml").write_text(body)
    with pytest.raises(PlaitError, match=rf"config\.yaml is damaged, or not of this version of plait \(.*({reason})"):
        toy.train(recipe, parent)


def without_copies(run):
    """Remove what checkpoints have of the configuration, as in those of older versions."""
    for path in run.glob("stage-*/step-*/run-config.yaml"):
        path.unlink()


def damage(folder):
    body = bytearray((folder / "weights.safetensors").read_bytes())
    body[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(body)


def test_a_run_whose_checkpoints_are_all_damaged_never_begins_anew_by_itself(parent):
    for folder in checkpoint.published(parent):
        damage(folder)
    kept = sorted(parent.glob("stage-*/*"))
    with pytest.raises(PlaitError, match=r"has 9 checkpoints, up to step 18, and none is intact: .* is damaged: .*--restart` begins anew"):
        toy.train(parent, parent)
    assert sorted(parent.glob("stage-*/*")) == kept


def test_a_damaged_checkpoint_is_set_aside_and_the_run_goes_on_from_the_one_before(parent, capsys):
    damage(parent / "stage-3-language" / "step-00000018")
    toy.train(parent, parent)
    said = capsys.readouterr().out
    aside = parent / "stage-3-language" / "damaged-step-00000018"
    assert f"set aside as {aside}" in said and aside.is_dir()
    assert f"passed over: {parent / 'stage-3-language' / 'step-00000018'}/weights.safetensors is damaged" in said
    assert f"continuing from {parent / 'stage-3-language' / 'step-00000016'}\n" in said
    assert integrity.verify(parent / "stage-3-language" / "step-00000018") == []


@pytest.mark.parametrize("loss", ["moved", "replaced", "deleted", "full"])
def test_a_run_directory_that_is_lost_while_training_ends_the_run_in_one_line(made, tmp_path, monkeypatch, loss):
    run, phase = tmp_path / "run", Heartbeat.phase
    real = files.append_rows

    def lose(self, name, step):
        phase(self, name, step)
        if (name, step) == ("step", 3):
            if loss != "full":
                run.rename(tmp_path / "elsewhere")
            if loss == "replaced":  # as by the folder on which a disk was mounted
                run.mkdir()
            if loss == "deleted":
                shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)

    def full(path, rows):
        rows = list(rows)
        if loss == "full" and rows[0].get("step") == 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, rows)

    monkeypatch.setattr(Heartbeat, "phase", lose)
    monkeypatch.setattr(files, "append_rows", full)
    told = {"full": r"metrics\.jsonl: No space left on device; free space or mend the disk, and the same command continues from the last"}
    with pytest.raises(Stopped, match=told.get(loss, "run is gone: it was moved or deleted while the run")):
        toy.train(made[0], run, "checkpoint.async_save=true")
    assert run.exists() is (loss in {"full", "replaced"})
    assert not (loss == "replaced" and (run / "metrics.jsonl").exists())


def test_what_a_kill_in_the_very_first_start_left_is_swept_and_the_same_command_begins(made, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.yaml.123.tmp").write_text("half")
    (run / ".assets.123.tmp").mkdir()
    (run / "lock").write_text("123")
    toy.train(made[0], run, "train.steps=1", only="projection")
    assert not list(run.rglob(".*.tmp"))


@pytest.mark.parametrize("kind", ["file", "below a file", "dangling", "below a dangling"])
def test_a_run_that_is_no_folder_is_one_line(made, tmp_path, kind):
    run = tmp_path / "run"
    if "dangling" in kind:
        run.symlink_to(tmp_path / "nothing")
    else:
        run.write_text("")
    link = rf"{run} is a link to nothing \({tmp_path}/nothing\), not a folder; mend the link"
    said = {"file": "run is a file, not a folder", "below a file": "Not a directory"}.get(kind, link)
    with pytest.raises(PlaitError, match=said):
        toy.train(made[0], run / "deeper/still" if "below" in kind else run)


@pytest.mark.parametrize("place", ["stage-2-vision", "stage-1-projection/step-00000004", "averages", "link", "quarantine.jsonl"])
def test_what_lies_in_the_place_of_a_folder_that_the_run_will_make_is_told_before_any_step(made, tmp_path, place):
    run = toy.train(made[0], tmp_path / "run", "train.steps=2", "guard.hang_timeout_s=null", only="projection")
    path = run / ("stage-2-vision" if place == "link" else place)
    if place == "quarantine.jsonl":
        path.mkdir()
    elif place == "link":
        path.symlink_to(tmp_path / "nothing")
    else:
        path.write_text("")
    found = {
        "link": "not the folder that a run keeps there, but a link to nothing",
        "quarantine.jsonl": "not the kind of file that a run keeps",
    }
    rows = toy.figures(run)
    with pytest.raises(PlaitError, match=f"{path} is {found.get(place, 'not the folder that a run keeps there, but a file; remove it')}"):
        toy.train(made[0], run, "train.steps=4", allow_inexact=True)
    assert toy.figures(run) == rows


@pytest.mark.parametrize(("failing", "held"), [(1, "no checkpoint exists yet"), (2, "earlier checkpoints are intact")])
def test_a_disk_that_is_full_at_a_save_is_told_with_what_is_kept(made, tmp_path, monkeypatch, failing, held):
    real, folders = checkpoint._write_files, []

    def full(unfinished, *arguments):
        folders.append(unfinished)
        if len(set(folders)) >= failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(unfinished, *arguments)

    monkeypatch.setattr(checkpoint, "_write_files", full)
    with pytest.raises(PlaitError, match=rf"step-0000000{2 * failing} could not be written: .*No space left on device; {held}, free space"):
        toy.train(made[0], tmp_path / "run")


def test_a_damaged_start_named_by_its_step_is_refused(parent):
    folder = parent / "stage-2-vision" / "step-00000012"
    body = bytearray((folder / "weights.safetensors").read_bytes())
    body[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(body)
    for spec in (str(folder), f"{parent}@12"):
        with pytest.raises(PlaitError, match=r"weights\.safetensors is damaged: xxh3"):
            from_weights.read_from(spec)
    assert from_weights.read_from(f"{parent}/vision")[1]["state"]["step"] == 10


def test_a_downloaded_folder_is_verified_too(parent, tmp_path):
    folder = shutil.copytree(parent / "stage-2-vision" / "step-00000012", tmp_path / "snapshot")
    assert from_weights.read_from(str(folder))[1]["state"]["step"] == 12
    (folder / "ema.safetensors").unlink()
    with pytest.raises(PlaitError, match=r"ema\.safetensors is missing"):
        from_weights.read_from(str(folder))


def test_a_resume_on_other_data_is_refused_by_name(parent, tmp_path):
    without_copies(parent)
    shutil.rmtree(parent / "stage-3-language" / "step-00000018")
    recipe = parent / "config.yaml"
    here = tmp_path / "train.jsonl"
    there = Path(next(line.split()[-1] for line in recipe.read_text().splitlines() if line.strip().endswith("train.jsonl")))
    here.write_text(there.read_text().replace("1", "22"))
    recipe.write_text(recipe.read_text().replace(str(there), str(here)))
    with pytest.raises(
        PlaitError, match=r"the training data is not what .*step-00000016 was trained on \(jsonl:train\.jsonl: \w+ -> \w+\)"
    ):
        toy.train(parent, parent)
    toy.train(parent, parent, allow_inexact=True)
    assert toy.at(parent, 18).manifest["data"] != toy.at(parent, 16).manifest["data"]


def test_the_same_data_is_said_to_be_exact(parent, capsys):
    shutil.rmtree(parent / "stage-3-language" / "step-00000018")
    toy.train(parent, parent)
    said = capsys.readouterr().out
    assert "data     exact: jsonl:train.jsonl" in said
    assert ": exact" in next(line for line in said.splitlines() if "probe loss" in line)


def test_frozen_weights_of_another_base_are_refused_on_resume(parent):
    without_copies(parent)
    shutil.rmtree(parent / "stage-2-vision")
    shutil.rmtree(parent / "stage-3-language")
    recipe = parent / "config.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(
        PlaitError, match=r"the frozen weights are not those that .*step-00000006 was trained against: .* another seed than 1"
    ):
        toy.train(parent, parent)


ONE = ["stages=[]", "trainable=[projector]", "checkpoint.keep=99", "optim.schedule.name=cosine"]


@pytest.fixture
def one_epoch(made, tmp_path):
    """(settings of a run on 64 samples, without its length; a copy of them as a recipe's settings)."""
    rows = [{"x": [i / 64, 1.0, -i / 64, 0.5], "y": float(i % 5)} for i in range(64)]
    path = tmp_path / "data" / "train.jsonl"
    path.parent.mkdir()
    files.append_rows(path, rows)
    return [*ONE, f"data.train.0.path={path}"]


def hashed(ids):
    """The digest of a step's samples as metrics have it."""
    return f"{digest(ids) & 0xFFFFFFFF:08x}"


def digests(run):
    """The digest of the samples of each step."""
    return [row["ids"] for row in files.read_rows(run / "metrics.jsonl") if "ids" in row]


def back_to(run, step):
    """Take a run back to a step, as a kill would have left it."""
    for folder in checkpoint.published(run):
        if checkpoint.step_of(folder) > step:
            shutil.rmtree(folder)


def test_a_checkpoint_with_the_names_of_an_older_plait_goes_on_exactly(made, parent):
    back_to(parent, 8)
    saved = integrity.locate(parent)
    state = {"judged" if name == "evaluated_step" else name: value for name, value in saved.manifest["state"].items()}
    former = {"world" if name == "ranks" else name: value for name, value in saved.manifest.items()}
    checkpoint.write(saved.folder, {group: saved.tensors(group) for group in GROUPS}, {**former, "state": state})
    written = json.loads((saved.folder / "manifest.json").read_bytes())
    assert "judged" in written["state"] and "world" in written and "ranks" not in written
    toy.train(parent, parent)
    assert integrity.locate(parent).manifest["state"] == integrity.locate(made[1]).manifest["state"]


@pytest.mark.parametrize("budget", ["train={epochs: 1, global_batch: 4}", "train={samples: 64, global_batch: 4}"])
def test_another_global_batch_goes_on_after_the_samples_consumed(made, one_epoch, tmp_path, capsys, budget):
    run = toy.train(made[0], tmp_path / "run", *one_epoch, budget)
    order = open_config(run / "config.yaml").stages[0]
    plain = open_training(order.config).order(order)
    every = [i for step in range(16) for i in plain.ids(step)]
    assert len(set(every)) == 64 and digests(run) == [hashed(every[4 * step : 4 * step + 4]) for step in range(16)]
    rest = [hashed(every[32 + 8 * step : 40 + 8 * step]) for step in range(4)]
    forked = fork.fork(f"{run}@8", tmp_path / "forked", ["train.global_batch=8"])
    said = capsys.readouterr().out
    assert "16 steps" in said.split("learning rate then")[1].splitlines()[0] and "12 steps" in said.split("learning rate now")[1]
    toy.train(forked, forked)
    assert digests(forked) == [*digests(run)[:8], *rest]
    wanted = "order    exact: from step 8 of the stage on 8 samples a step, not 4, after the 32 taken before"
    assert wanted in capsys.readouterr().out
    back_to(forked, 10)  # in the middle of the new size
    toy.train(forked, forked)
    assert digests(forked)[10:] == rest[2:] and "order    exact: samples and noise are functions of (seed, step)" in capsys.readouterr().out
    rates = [row["lr/projector"] for row in files.read_rows(forked / "metrics.jsonl") if "lr/projector" in row]
    assert rates[8:] == pytest.approx([1e-2 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(8, 12)])
    back_to(run, 8)
    with pytest.raises(PlaitError, match=r"train\.global_batch: 4 -> 8"):
        toy.train(run, run, "train.global_batch=8")
    toy.train(run, run, "train.global_batch=8", allow_inexact=True)
    assert digests(run)[8:] == rest and wanted in capsys.readouterr().out
    assert integrity.locate(run).manifest["state"]["batches"] == [[0, 4], [8, 8]]


@pytest.mark.parametrize("change", ["data.train.0.limit=60", "data.train=[{entry}, {entry}]", "stages=[{{name: other}}]"])
def test_another_order_of_the_samples_is_never_called_exact(made, one_epoch, tmp_path, capsys, change):
    entry = "{source: jsonl, path: " + str(tmp_path / "data" / "train.jsonl") + "}"
    run = toy.train(made[0], tmp_path / "run", *one_epoch, "train={steps: 8, global_batch: 4}")
    forked = fork.fork(f"{run}@4", tmp_path / "forked", [change.format(entry=entry)])
    capsys.readouterr()
    toy.train(forked, forked, allow_inexact=True)
    said = capsys.readouterr().out
    assert "order    changed: other seed, sources, sizes or weights than then" in said and "order    exact" not in said


@pytest.mark.parametrize(
    ("budget", "changed", "then", "now"),
    [
        ("{steps: 20, global_batch: 4}", "optim.lr=5e-4", "peak 0.01, end 6.2e-05, 20 steps", "peak 0.0005, end 3.1e-06, 20 steps"),
        ("{epochs: 2, global_batch: 4}", "optim.lr=5e-4", "32 steps", "32 steps"),
        ("{epochs: 2, global_batch: 4}", "train.epochs=3", "32 steps", "48 steps"),
        ("{epochs: 2, global_batch: 4}", "train.global_batch=8", "32 steps", "20 steps"),
        ("{samples: 80, global_batch: 4}", "train.global_batch=8", "20 steps", "14 steps"),
    ],
)
def test_a_changed_schedule_is_two_curves_of_the_real_numbers_of_steps(made, one_epoch, tmp_path, capsys, budget, changed, then, now):
    settings = [*one_epoch, f"train={budget}"]
    run = toy.train(made[0], tmp_path / "run", *settings)
    back_to(run, 8)
    capsys.readouterr()
    start.reconcile_configuration(run, open_config(made[0], [f"run={run}", *settings, changed]), True)
    said = capsys.readouterr().out
    assert then in said.split("learning rate then")[1].splitlines()[0] and now in said.split("learning rate now")[1].splitlines()[0]


def test_a_finished_run_takes_more_steps_and_is_that_of_all_of_them_where_the_rate_is_constant(made, tmp_path, capsys):
    settings = ("stages=[]", "trainable=[projector]")
    run = toy.train(made[0], tmp_path / "run", *settings, "train.steps=4")
    assert f"more steps   plait train {run} --train.steps=..." in capsys.readouterr().out
    toy.train(run, run, "train.steps=8")
    said = capsys.readouterr().out
    assert "more steps: stage train was done after 4 and goes on to 8" in said
    assert "learning rate: that of the 4 steps taken is the same in a stage of 8 steps" in said
    straight = toy.train(made[0], tmp_path / "straight", *settings, "train.steps=8")
    assert toy.same(toy.at(run, 8).tensors("weights"), toy.at(straight, 8).tensors("weights"))
    assert open_config(run / "config.yaml").config.train.steps == 8
    capsys.readouterr()
    toy.train(run, run)
    assert "more steps:" not in capsys.readouterr().out and toy.at(run, 8)


@pytest.mark.parametrize(
    ("budgets", "optim", "told"),
    [
        (("steps: 4", "steps: 8"), "{name: linear}", "0.0025 at the last step taken, 0.005 at the next"),
        (("epochs: 0.2", "epochs: 0.4"), "{name: cosine}", "the 2 steps taken had the curve of 2 steps"),
        (("steps: 4", "epochs: 1"), "{name: linear}", "this is not what 8 steps in one go"),
        (("steps: 4", "steps: 9"), "{name: constant, warmup: 0.5}", "not what 9 steps in one go"),
        (("steps: 4", "steps: 8"), "{name: cosine, decay_steps: 20}", "is the same in a stage of 8"),
    ],
)
def test_more_steps_say_what_becomes_of_the_learning_rate(made, tmp_path, capsys, budgets, optim, told):
    settings = ("stages=[]", "trainable=[projector]", f"optim.schedule={optim}")
    run = toy.train(made[0], tmp_path / "run", *settings, f"train={{{budgets[0]}, global_batch: 4}}")
    capsys.readouterr()
    toy.train(made[0], run, *settings, f"train={{{budgets[1]}, global_batch: 4}}")
    assert told in capsys.readouterr().out


def test_the_stages_before_the_last_keep_the_steps_they_had(parent, capsys):
    toy.train(parent, parent, "train.steps=7")
    said = capsys.readouterr().out
    assert "stage language was done after 6 and goes on to 7" in said
    assert "stages that are over keep the steps they had: projection, vision" in said
    assert toy.at(parent, 19).manifest["stage"] == "language"


def test_other_lengths_are_refused_with_the_fork_that_takes_them(parent, capsys):
    shorter = r"was begun with another configuration \(train\.steps: 6 -> 3\)"
    with pytest.raises(PlaitError, match=shorter):
        toy.train(parent, parent, "train.steps=3")
    fork_of = f"plait fork {parent}@STEP NEW --train.steps="
    assert f"stage language has done 6 steps, and 3 are not more; a fork can go back: {fork_of}3" in capsys.readouterr().out
    with pytest.raises(PlaitError, match=r"optim\.lr: 0\.01 -> 0\.5; train\.steps: 6 -> 9|train\.steps: 6 -> 9; optim\.lr"):
        toy.train(parent, parent, "train.steps=9", "optim.lr=0.5")
    assert "fork can" not in capsys.readouterr().out
    shutil.rmtree(parent / "stage-3-language" / "step-00000018")
    with pytest.raises(PlaitError, match=r"train\.steps: 6 -> 9"):
        toy.train(parent, parent, "train.steps=9")
    assert f"once its planned ones are done; until then a fork can: {fork_of}9" in capsys.readouterr().out


def test_a_change_of_what_is_reported_shows_no_curve(parent, capsys):
    start.reconcile_configuration(parent, open_config(parent / "config.yaml", [f"run={parent}", "track.every_steps=2"]), False)
    said = capsys.readouterr().out
    assert "track.every_steps: 1 -> 2" in said and "learning rate" not in said


def config(lr):
    return RunConfig.model_validate({"family": "toy", "train": {"steps": 10}, "optim": {"lr": lr, "schedule": {"name": "linear"}}})


def test_the_curve_of_a_linear_schedule_falls_evenly():
    bars = changes.curve(config(1e-3), 48).split(" peak")[0]
    heights = [" ▁▂▃▄▅▆▇█".index(bar) for bar in bars]
    assert heights == [round(8 * (1 - i / 48)) for i in range(48)]


@pytest.mark.parametrize(
    ("stored", "now", "said"),
    [(0.5, 0.5, "exact"), (None, 0.5, "none stored"), (0.5, 0.50001, "2.0e-05 apart")],
)
def test_the_probe_says_whether_the_same_model_came_back(stored, now, said):
    assert said in changes.check_probe(stored, now, False)


def test_a_probe_of_another_model_stops():
    with pytest.raises(PlaitError, match=r"probe loss 0\.600000, stored 0\.500000: 2\.0e-01 apart: this is not the model that was saved"):
        changes.check_probe(0.5, 0.6, False)
    assert "2.0e-01 apart" in changes.check_probe(0.5, 0.6, True)


def test_fewer_stages_than_were_run_is_one_line(parent):
    shutil.rmtree(parent / "stage-3-language" / "step-00000018")
    with pytest.raises(PlaitError, match="is of stage 3, but the configuration has 1 stages; give them back"):
        toy.train(parent, parent, "stages=[]", allow_inexact=True)


def test_weights_in_several_files_are_read_together(made, tmp_path):
    weights = load_file(checkpoint.published(made[1])[0] / "weights.safetensors")
    for part, name in enumerate(weights):
        save_file({name: weights[name]}, tmp_path / f"model-{part}.safetensors")
    assert toy.same(from_weights.read_from(str(tmp_path))[0]["weights"], weights)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())


@pytest.mark.parametrize(("now", "stops"), [(0.50049, False), (0.49951, False), (0.50051, True), (0.49949, True)])
def test_a_probe_may_differ_by_a_thousandth(now, stops):
    if stops:
        with pytest.raises(PlaitError, match="this is not the model that was saved"):
            changes.check_probe(0.5, now, False)
    else:
        assert changes.check_probe(0.5, now, False).endswith(" apart (another device, thread count or number of ranks)")


@pytest.mark.parametrize(("stored", "now"), [(math.nan, math.nan), (math.inf, math.inf), (math.inf, math.nan)])
def test_a_probe_with_a_sample_of_no_finite_loss_is_not_compared(stored, now):
    assert changes.check_probe(stored, now, False) == f"probe loss {now}, stored {stored}: not compared, one of its samples makes it so"


@pytest.mark.parametrize(("stored", "now"), [(0.5, math.nan), (math.nan, 0.5), (math.inf, 0.5), (0.5, math.inf)])
def test_a_probe_finite_on_one_side_alone_stops(stored, now):
    with pytest.raises(PlaitError, match="this is not the model that was saved"):
        changes.check_probe(stored, now, False)


def test_a_stored_loss_of_zero_divides_nothing():
    assert changes.check_probe(0.0, 0.0, False) == "probe loss 0.000000: exact"
    with pytest.raises(PlaitError, match=r"stored 0\.000000"):
        changes.check_probe(0.0, 1e-9, False)


def since(step, data):
    return SimpleNamespace(manifest={"data": data}, folder=Path("RUN/step-00000004"), step=step)


def test_data_that_left_came_or_changed_is_named(tmp_path):
    then, now = {"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9", "d": "4"}
    wanted = r"RUN/step-00000004 was trained on \(b: 2 -> 9; c: 3 -> gone; d: not there -> 4\); put it back, fork the run"
    with pytest.raises(PlaitError, match=wanted):
        changes.check_fingerprints(since(4, then), now, tmp_path, False)
    assert changes.check_fingerprints(since(4, then), now, tmp_path, True).startswith("data     changed: the training data is not what")
    assert changes.check_fingerprints(since(4, then), then, tmp_path, False) == "data     exact: a, b, c"


@pytest.mark.parametrize(
    ("kind", "step", "key", "allowed"),
    [
        ("fork", 4, "data.train", True),
        ("fork", 4, "data", True),
        ("fork", 5, "data.train", False),
        ("from", 4, "data.train", False),
        ("fork", 4, "optim.lr", False),
        ("fork", 4, "database", False),
    ],
)
def test_only_a_fork_at_this_step_that_changed_the_data_goes_on_with_other_data(tmp_path, kind, step, key, allowed):
    (tmp_path / changes.LINEAGE).write_text(json.dumps({"kind": kind, "step": step, "differences": [["seed", 0, 1], [key, 1, 2]]}))
    if allowed:
        assert "changed" in changes.check_fingerprints(since(4, {"a": "1"}), {"a": "2"}, tmp_path, False)
    else:
        with pytest.raises(PlaitError, match="put it back"):
            changes.check_fingerprints(since(4, {"a": "1"}), {"a": "2"}, tmp_path, False)


def test_a_curve_is_48_bars_with_its_peak_and_end():
    line = changes.curve(config(1e-3), 20)
    bars, rest = line.split(" peak ")
    assert (len(bars), bars[0], rest) == (48, "█", "0.001, end 5e-05, 20 steps")  # the last update of 20 has 1/20 left


def test_a_run_says_where_its_files_are_and_what_to_do_next(made, tmp_path):
    state = SimpleNamespace(step=18, best=None)
    lines = toy.run.next_steps(made[1], state, ["a", "b"], [], asks=True).splitlines()
    assert lines[0].split(maxsplit=1) == ["run", f"{made[1]}, 18 steps done"]
    assert lines[2].split(maxsplit=1) == ["checkpoint", str(checkpoint.published(made[1])[0])]
    assert lines[3].split(maxsplit=1) == ["measure", f"plait eval {made[1]} --bench a"]
    assert lines[5].split(maxsplit=1) == ["export", f"plait ckpt consolidate {made[1]} {made[1]}-export"]
    state.step = 0
    assert [line.split()[0] for line in toy.run.next_steps(tmp_path, state, [], [], asks=False).splitlines()] == ["run", "metrics", "more"]


def ahead(made, only, stage, done):
    resolved = open_config(made[0], ["run=x"])
    return [view.name for view in toy.run.stages_ahead(resolved, only, SimpleNamespace(stage=stage, stage_done=done))]


def test_the_stages_ahead_are_the_present_one_and_all_after_it(made):
    assert ahead(made, None, 1, None) == ["projection", "vision", "language"]
    assert ahead(made, None, 3, "flat") == ["language"]
    assert ahead(made, "vision", 2, None) == ["vision"]
    assert ahead(made, "vision", 1, "flat") == ["vision"]
    for only, stage, done, said in (
        ("language", 1, None, "stage 'language' comes after projection, which is not finished"),
        ("vision", 1, None, "stage 'vision' comes after projection, which is not finished; run that first"),
        ("language", 1, "flat", "stage 'language' comes after vision, which is not finished; run that first"),
        (
            "projection",
            2,
            None,
            "stage 'projection' is not one to run next: the stages are projection, vision, language, and the run is in v",
        ),
    ):
        with pytest.raises(PlaitError, match=said):
            ahead(made, only, stage, done)


def test_a_fresh_start_where_a_run_is_is_refused(made, tmp_path):
    with pytest.raises(PlaitError, match="is a run already, and a fresh one was asked for: give another --run, or --restart"):
        toy.train(made[0], made[1], fresh=True)
    assert toy.at(toy.train(made[0], tmp_path / "new", "stages=[]", "train.steps=1", fresh=True), 1)


def test_a_configuration_of_another_version_is_told(parent):
    without_copies(parent)
    (parent / "config.yaml").write_text("family: [")
    with pytest.raises(
        PlaitError,
        match=r"config\.yaml is damaged, or not of this version of plait \(.+\), and no checkpoint has a copy; use the version that",
    ):
        start.reconcile_configuration(parent, None, False)
