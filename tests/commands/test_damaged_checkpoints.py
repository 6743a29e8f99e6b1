"""A run whose checkpoints are damaged: every command says how many there are, why the newest is not intact, and what to do."""

import json
import shutil

import pytest

from plait import cli, files
from plait.engine.checkpoints import checkpoint
from tests import toy_family as toy


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    with pytest.MonkeyPatch.context() as patch:
        recipe = toy.install(patch, folder)
        yield recipe, toy.train(recipe, folder / "run", "stages=[]", "train.steps=6")


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    """A copy of the run, `run` in the working folder, with checkpoints of steps 2, 4 and 6."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made[1], "run")
    shutil.copy(made[0], "recipe.yaml")
    return checkpoint.published(tmp_path / "run")


def flip(folder):
    body = bytearray((folder / "weights.safetensors").read_bytes())
    body[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(body)


DAMAGES = {
    "weights": (flip, r"run/stage-1-train/step-00000006/weights.safetensors is damaged: xxh3 "),
    "manifest": (
        lambda folder: (folder / "manifest.json").write_text("[" * 9),
        "step-00000006/manifest.json is damaged: it is not",
    ),
    "missing": (lambda folder: (folder / "weights.safetensors").unlink(), "step-00000006/weights.safetensors is missing"),
    "no manifest": (
        lambda folder: (folder / "manifest.json").unlink(),
        "step-00000006 is no finished checkpoint: it has no manifest.json",
    ),
}
VERBS = (
    "train run", "eval run --bench=loss", "export run new --to=hf", "generate run --prompt=hi",
    "fork run new", "stages run", "ckpt verify run", "ckpt consolidate run new", "ckpt diff run run", "eval run@best --bench=loss",
    "train recipe.yaml --run=other --from=run", "eval run/train --bench=loss", "ckpt verify run/train",
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_command_says_that_all_are_damaged_why_the_newest_is_and_what_to_do(run, verb, damage, capsys):
    spoil, fault = DAMAGES[damage]
    for folder in run:
        spoil(folder)
    assert cli.main(verb.split()) == (1 if verb.startswith("ckpt verify") else 2)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "3 checkpoints, up to step 6, and none is intact: " in said
    assert fault in said
    assert "`plait ckpt verify " in said
    assert ("--restart` begins anew and keeps this run aside" in said) == (not verb.startswith("eval run/train"))


def test_stages_tells_what_is_known_of_a_run_without_an_intact_checkpoint(run, capsys):
    for folder in run:
        flip(folder)
    assert cli.main(["stages", "run"]) == 2
    said = capsys.readouterr().out
    assert "stage 1 train: stopped; no checkpoint is intact\n" in said
    assert "6 of 6, from step 0" in said
    assert "`plait train` goes on" not in said


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_damaged_checkpoint_is_named_and_the_one_that_counts_as_well(run, damage, capsys):
    spoil, fault = DAMAGES[damage]
    spoil(run[0])
    assert cli.main(["stages", "run"]) == 0
    said = capsys.readouterr().out
    assert "passed over: " in said and fault in said
    assert "last saved at 4" in said and "stopped; `plait train` goes on" in said
    assert cli.main(["ckpt", "verify", "run"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("plait: 1 of 3 damaged: ")
    assert said.endswith("; `plait train run` goes on from run/stage-1-train/step-00000004\n")
    assert cli.main(["ckpt", "verify", "run@6"]) == 1
    assert capsys.readouterr().err.endswith("; `plait ckpt verify run` says what is intact\n")
    assert cli.main(["fork", "run", "new"]) == 0
    told = capsys.readouterr()
    assert "passed over: " in told.err and fault in told.err and "; this is of run/stage-1-train/step-00000004\n" in told.err
    assert "new goes on from run/stage-1-train/step-00000004" in told.out


def test_an_older_damaged_manifest_costs_stages_nothing(run, capsys):
    (run[1] / "manifest.json").write_text("{}")
    assert cli.main(["stages", "run"]) == 0
    assert "last saved at 6" in capsys.readouterr().out


def test_a_run_with_one_checkpoint_says_one(run, capsys):
    for folder in run[1:]:
        shutil.rmtree(folder)
    flip(run[0])
    assert cli.main(["ckpt", "verify", "run"]) == 1
    assert "plait: run has 1 checkpoint, of step 6, and it is not intact: " in capsys.readouterr().err


def test_verify_counts_a_manifest_that_lacks_what_a_start_needs_as_damaged(run, capsys):

    path = run[0] / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["ranks"]
    files.write_json(path, manifest | {"xxh3": checkpoint.manifest_hash(manifest)})
    assert cli.main(["ckpt", "verify", "run"]) == 1
    assert "manifest.json lacks ranks; `plait train run` goes on from run/stage-1-train/step-00000004" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["ckpt inspect run", "ckpt ema run --length=0.1"])
def test_a_command_that_reads_the_newest_manifest_says_where_to_look_on(run, verb, capsys):
    (run[0] / "manifest.json").write_text("{}")
    assert cli.main(verb.split()) == 2
    said = capsys.readouterr().err
    assert "step-00000006/manifest.json is damaged: " in said
    assert "`plait ckpt verify run` says which checkpoints are intact" in said


@pytest.mark.parametrize("damage", DAMAGES)
def test_more_steps_go_by_the_checkpoint_that_the_start_is_from(run, damage, capsys):
    spoil, fault = DAMAGES[damage]
    assert cli.main(["train", "run", "--train.steps=8"]) == 0
    newest = checkpoint.published(run[0].parent.parent)[0]
    spoil(newest)
    capsys.readouterr()
    assert cli.main(["train", "run", "--train.steps=10"]) == 0  # the checkpoint of step 6 is one of a finished stage
    said = capsys.readouterr().out
    assert fault.replace("00000006", "00000008") in said
    assert "more steps: stage train was done after 6 and goes on to 10" in said
    assert "continuing from run/stage-1-train/step-00000006" in said


@pytest.mark.parametrize("damage", DAMAGES)
def test_more_steps_are_refused_where_the_checkpoint_of_the_start_is_of_a_stage_that_is_not_over(run, damage, capsys):
    spoil, fault = DAMAGES[damage]
    spoil(run[0])
    assert cli.main(["train", "run", "--train.steps=9"]) == 2
    said = capsys.readouterr()
    assert fault in said.out and "a stage is given more steps once its planned ones are done" in said.out
    assert "plait: run was begun with another configuration (train.steps: 6 -> 9)" in said.err


def test_a_command_that_reads_headers_alone_says_that_weights_are_torn(run, capsys):
    (run[0] / "weights.safetensors").write_bytes((run[0] / "weights.safetensors").read_bytes()[:100])
    assert cli.main(["ckpt", "inspect", "run"]) == 2
    said = capsys.readouterr().err
    assert "plait: the weights of run/stage-1-train/step-00000006 cannot be read: " in said
    assert said.endswith("; `plait ckpt verify run` says which checkpoints are intact\n")


def test_doctor_does_not_call_a_damaged_run_to_begin_from_there(run, capsys):
    for folder in run:
        flip(folder)
    cli.main(["doctor", "recipe.yaml", "--run=other", "--from=run"])
    said = capsys.readouterr()
    assert "run (from) is here" not in said.out + said.err
    assert "3 checkpoints, up to step 6, and none is intact: " in said.out + said.err
