"""The guide's two commands, run: a captioner, continued and begun anew, and a multitask run from it."""

import json
import math

import pytest
import yaml

from plait import cli

SHORT = ("--data.train.0.limit=8", "--evaluate=[]", "--data.num_workers=0", "--global_train_batch_size=4")


def run(*words):
    return cli.main(["train", *map(str, words), *SHORT])


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide") / "captioner"
    assert run("molmo/captioner", "debug", f"--save_folder={folder}", "--max_steps=2", "--save_interval=1") == 0
    return folder


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_save_interval_is_how_often_a_checkpoint_is_written(captioner):
    assert sorted(path.name for path in captioner.glob("stage-*/step-*")) == ["step-00000001", "step-00000002"]


def test_allow_resume_false_refuses_to_go_on(captioner, capsys):
    assert run("molmo/captioner", "debug", f"--save_folder={captioner}", "--max_steps=2", "--allow_resume=False") == 2
    assert "is a run already, and a fresh one was asked for: give another --run, or --restart" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["step2", "latest"])
def test_multitask_starts_from_a_captioners_step(captioner, tmp_path, name):
    assert run("molmo/multitask", "debug", captioner / name, f"--save_folder={tmp_path / 'run'}", "--max_steps=1") == 0
    assert json.loads((tmp_path / "run" / "lineage.json").read_text())["step"] == 2
    assert (tmp_path / "run/assets/tokenizer/tokenizer.json").read_text() == (captioner / "assets/tokenizer/tokenizer.json").read_text()


@pytest.mark.parametrize(("length", "count"), [("--max_duration=2ep", 4), ("--train.epochs=1", 2), ("--train.samples=8", 2)])
def test_a_length_in_epochs_or_samples_is_warmed_up_by_a_share_of_it(captioner, tmp_path, length, count):
    assert run("molmo/multitask", "debug", captioner, f"--save_folder={tmp_path / 'run'}", length) == 0
    assert steps(tmp_path / "run")[-1] == count
    schedule = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["optim"]["schedule"]
    assert (schedule["warmup"], schedule["warmup_steps"]) == (0.1, 0)


def test_a_captioners_step_that_is_not_there_is_one_line(captioner, tmp_path, capsys):
    assert run("molmo/multitask", "debug", captioner / "step15000", f"--save_folder={tmp_path / 'run'}") == 2
    assert "has no checkpoint at step '15000'; it has 1, 2" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["fp16", "pure_bf16"])
def test_the_guides_precisions_train(tmp_path, precision):
    flags = ("--max_steps=2", f"--fsdp.precision={precision}", "--track.every_steps=1")
    assert run("molmo/captioner", "debug", f"--save_folder={tmp_path / 'run'}", *flags) == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["train"]["precision"] == precision
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(math.isfinite(row["loss"]) and row.get("skipped", 0) == 0 for row in rows)
    assert rows[1]["loss"] != rows[0]["loss"]


def test_save_overwrite_begins_anew_and_keeps_the_old_run_aside(captioner):
    identity = (captioner / "identity").read_text()
    assert run("molmo/captioner", "debug", f"--save_folder={captioner}", "--max_steps=1", "--save_overwrite") == 0
    assert steps(captioner) == [1]
    assert (captioner.with_name("captioner.before-1") / "identity").read_text() == identity != (captioner / "identity").read_text()
