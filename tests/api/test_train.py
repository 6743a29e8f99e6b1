"""`plait.train`: the run that the command makes, continued by the same rules, with functions between its steps."""

import json
import os
import signal
import threading

import pytest
import torch
import yaml
from safetensors.torch import load_file

import plait
from plait import cli
from tests.api.test_python import CONFIG


def weights(run):
    return load_file(sorted(run.glob("stage-1-train/step-*"))[-1] / "weights.safetensors")


@pytest.fixture(scope="module")
def by_command(tmp_path_factory):
    """The run that the command makes."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    assert cli.main(["train", str(folder / "run.yaml"), f"--run={folder / 'run'}"]) == 0
    return folder / "run"


def test_callbacks_see_each_step_and_the_run_is_the_commands_to_the_bit(tmp_path, by_command):
    seen = []

    def look(row, model):
        model.eval()
        torch.rand(3)
        seen.append(
            (row["step"], row["loss"], torch.is_grad_enabled(), (tmp_path / f"run/stage-1-train/step-0000000{row['step']}").is_dir())
        )
        row.clear()

    run = plait.train(
        plait.load_config({**CONFIG, "checkpoint": {**CONFIG["checkpoint"], "async_save": False}}, run=tmp_path / "run"), callbacks=[look]
    )
    recorded = [row for row in map(json.loads, (by_command / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    assert seen == [(row["step"], row["loss"], False, True) for row in recorded] and len(seen) == 2
    ours, theirs = weights(run.folder), weights(by_command)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert run.checkpoint().step == run.checkpoint(2, stage="train").step == 2 and set(run.metrics()["step"]) == {1, 2}


def test_an_error_in_a_callback_ends_the_run_and_the_same_call_continues_it(tmp_path, by_command):
    def fail(row, model):
        raise ZeroDivisionError(f"at step {row['step']}")

    config = plait.load_config(CONFIG, run=tmp_path / "run")
    with pytest.raises(ZeroDivisionError, match=r"^at step 1$"):
        plait.train(config, callbacks=[fail])
    seen = []
    run = plait.train(config, callbacks=[lambda row, model: seen.append(row["step"])])
    ours, theirs = weights(run.folder), weights(by_command)
    assert seen == [2] and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_interrupt_saves_and_the_same_call_continues(tmp_path):
    config = plait.load_config(CONFIG, run=tmp_path / "run")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(plait.PlaitError, match=r"^stopped by SIGINT after step 1 of 2, all saved; the same command continues$"):
        plait.train(config, callbacks=[lambda row, model: os.kill(os.getpid(), signal.SIGINT) if row["step"] == 1 else None])
    assert signal.getsignal(signal.SIGINT) is before
    seen = []
    plait.train(config, callbacks=[lambda row, model: seen.append(row["step"])])
    assert seen == [2]


def test_a_callback_can_make_no_gradient(tmp_path):
    def backward(row, model):
        sum(value.sum() for value in model.parameters() if value.requires_grad).backward()

    with pytest.raises(RuntimeError, match="does not require grad"):
        plait.train(plait.load_config(CONFIG, run=tmp_path / "run"), callbacks=[backward])


def test_options_and_threads_are_refused_in_one_line(by_command):
    with pytest.raises(plait.PlaitError, match=r"is a run already, and a fresh one was asked for"):
        plait.train(by_command, fresh=True)
    told = []

    def start():
        with pytest.raises(plait.PlaitError, match=r"^plait\.train runs in the main thread only"):
            plait.train(by_command)
        told.append(True)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert told == [True]
    for enabled in (True, False):  # one that is off keeps copies as well
        with (
            torch.autocast("cpu", enabled=enabled),
            pytest.raises(plait.PlaitError, match=r"^plait\.train runs outside of torch\.autocast"),
        ):
            plait.train(by_command)
