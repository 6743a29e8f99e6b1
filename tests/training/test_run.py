"""A run as a user sees it: started, killed, continued, damaged, refused. One tiny model on scenes, 12 steps in two stages."""

import json
import os
import pty
import select
import signal
import sys
import time

import pytest

from plait import cli
from plait.assembly.configuration import open_config
from plait.engine.checkpoints import checkpoint
from plait.engine.monitoring.signals import Paused
from plait.errors import PlaitError
from plait.training import run
from tests import processes
from tests.training.shard_runs import assert_same, metrics

CONFIG = """
family: theworld
preset: tiny
model:
  tiny: {hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16, image_tokens: 4,
         vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}
  world: {image_size: 16}
  augment: {flip: true}
data:
  train:
    - {source: scenes, weight: 3, limit: 30, options: &scenes {size: [32, 32], objects: [1, 2], tasks: [colour, count]}}
    - {source: scenes, limit: 9, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}
  validation: [{source: scenes, limit: 20, options: *scenes}]
stages:
  - {name: first, trainable: [projector, vision], train: {steps: 4}}
  - {name: second, trainable: ["*"], train: {steps: 8}}
train: {steps: 4, global_batch: 8, micro_batch: 4}
optim: {lr: 1.0e-3, schedule: {warmup_steps: 1}, ema: {decay: 0.9}}
checkpoint: {every_steps: 2, keep: 3}
evaluate: [{bench: loss, every_steps: 4, samples: 8}]
track: {every_steps: 1, tensorboard: false}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(CONFIG)
    return path


def resolve(recipe, folder, *overrides):
    return open_config(recipe, [f"run={folder}", *overrides])


def train(recipe, folder, *overrides, **options):
    return run.train(resolve(recipe, folder, *overrides), run.TrainOptions(**options))


@pytest.fixture(scope="module")
def straight(recipe, tmp_path_factory):
    return train(recipe, tmp_path_factory.mktemp("straight") / "run")


def kill_at(recipe, folder, step, number, *overrides):
    """`plait train` in a forked process, sent a signal once its metrics reach `step`; returns its exit code."""
    process = processes.forked(in_silence, ["train", str(recipe), f"--run={folder}", *(f"--{item}" for item in overrides)])
    path = folder / "metrics.jsonl"
    while process.is_alive() and not (path.is_file() and f'"step": {step},' in path.read_text()):
        time.sleep(0.002)
    os.kill(process.pid, number)
    return processes.codes([process])[0]


def in_silence(words):
    """End this process with the exit code of a command, whose lines nobody reads."""
    with open(os.devnull, "w") as sys.stdout, open(os.devnull, "w") as sys.stderr:
        os._exit(cli.main(words))


@pytest.mark.parametrize("workers", [("data.workers=0",), ("data.worker_kind=processes",)], ids=["inline", "processes"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(recipe, straight, tmp_path, workers):
    folder = tmp_path / "run"
    assert kill_at(recipe, folder, 7, signal.SIGKILL) == -signal.SIGKILL
    train(recipe, folder, *workers)
    assert_same(straight, folder)


def test_a_run_asked_to_stop_saves_and_says_try_again(recipe, straight, tmp_path):
    folder = tmp_path / "run"
    assert kill_at(recipe, folder, 5, signal.SIGTERM, "checkpoint.every_steps=1000") == Paused.exit_code == 75
    step = checkpoint.published(folder)[0].name
    assert "step-00000005" <= step <= "step-00000012"
    train(recipe, folder)
    assert_same(straight, folder)


def test_a_run_whose_terminal_closes_saves_and_stops(recipe, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "plait", "train", str(recipe), f"--run={folder}", "--checkpoint.every_steps=1000"]
    command.append('--stages=[{"name": "long", "train": {"steps": 900}}]')
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may be run under nohup
        os.execve(sys.executable, command, {**os.environ, "OMP_NUM_THREADS": "1"})
    shown, path, deadline = b"", folder / "metrics.jsonl", time.monotonic() + 120
    while not (path.is_file() and '"step": 3,' in path.read_text()) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.01)[0]:
            shown += os.read(terminal, 65536)
    os.close(terminal)  # the kernel sends SIGHUP, and what is written from now on fails
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == Paused.exit_code, shown
    assert 3 <= checkpoint.step_of(checkpoint.published(folder)[0]) < 900


def test_a_damaged_checkpoint_is_named_and_passed_over(recipe, straight, tmp_path, capsys):
    folder = train(recipe, tmp_path / "run")
    for newest in checkpoint.published(folder)[:2]:
        path = newest / "moments.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    train(recipe, folder)
    said = capsys.readouterr().out
    assert said.count("passed over: ") == 2
    assert "moments.safetensors is damaged: xxh3" in said
    assert f"continuing from {folder / 'stage-2-second' / 'step-00000008'}" in said
    assert_same(straight, folder)


def test_a_run_records_and_says_what_each_source_gave_in_its_last_stage(recipe, tmp_path, capsys):
    folder = train(recipe, tmp_path / "run")
    last, totals = metrics(folder)[-2], checkpoint.read(checkpoint.published(folder)[0]).manifest["state"]["totals"]
    names = ("scenes train", "scenes train (2)")
    assert [totals[f"drawn/{name}/samples"] for name in names] == [48, 16]  # of 8 steps of 8, 3 to 1
    assert [last[f"share/{name}/samples"] for name in names] == [0.75, 0.25]
    tokens = [totals[f"drawn/{name}/supervised_tokens"] for name in names]
    assert last["share/scenes train (2)/supervised_tokens"] == tokens[1] / sum(tokens) > 0.25  # captions are longer than one word
    part = last[f"share/{names[1]}/tokens"]
    assert f"{names[1]:<18} asked 25.00% of the samples; gave 25.00% of samples, {part:.2%} of tokens" in capsys.readouterr().out


def test_a_finished_run_stays_as_it_is(recipe, straight):
    before = metrics(straight)
    train(recipe, straight)
    assert metrics(straight) == before


def test_other_settings_that_change_the_answer_are_refused_by_name(recipe, straight):
    with pytest.raises(PlaitError, match=r"was begun with another configuration \(optim\.lr: 0\.001 -> 0\.5\); undo that"):
        train(recipe, straight, "optim.lr=0.5")


def test_restart_keeps_the_old_run_aside(recipe, tmp_path, capsys):
    folder = train(recipe, tmp_path / "run", "stages=[]")
    train(recipe, folder, "stages=[]", "seed=5", restart=True)
    assert f"the old run is kept at {folder}.before-1" in capsys.readouterr().out
    assert metrics(folder) != metrics(folder.with_name("run.before-1"))


def test_the_manifest_tells_where_everything_comes_from(straight):
    manifest = checkpoint.read(checkpoint.published(straight)[0]).manifest
    assert manifest["stage"] == "second"
    assert manifest["trainable"] == ["projector", "vision", "language", "world"]
    assert [part["part"] for part in manifest["base"]] == ["gemma", "world"]
    assert set(manifest["data"]) == {"scenes train", "scenes train (2)"}
    assert manifest["state"]["totals"]["samples"] == 12 * 8


def test_a_stage_of_frozen_parts_saves_only_what_was_trained(straight):
    folder = straight / "stage-1-first" / "step-00000004"
    names = set(checkpoint.read(folder).tensors("weights"))
    assert names
    assert all(name.startswith(("projector.", "gemma.model.vision_tower.", "gemma.model.multi_modal_projector.")) for name in names)


def test_settings_of_the_model_that_differ_though_shapes_agree_are_told(tmp_path, capsys):
    settings = {"family": "theworld", "preset": "tiny", "train": {"steps": 1, "global_batch": 2}, "track": {"tensorboard": False}}
    settings |= {"data": {"train": [{"source": "scenes", "options": {"size": [32, 32]}, "limit": 4}], "workers": 0}}
    recipe = tmp_path / "a.yaml"
    recipe.write_text(json.dumps(settings))
    assert cli.main(["train", str(recipe), f"--run={tmp_path / 'first'}", "--model.world.tokens=pooled"]) == 0
    capsys.readouterr()
    start = ["train", str(recipe), f"--from={tmp_path / 'first'}"]
    assert cli.main([*start, f"--run={tmp_path / 'second'}", "--model.world.tokens=spatial"]) == 0
    assert '  model.world.tokens: "pooled" there, "spatial" here\n' in capsys.readouterr().out
    assert cli.main([*start, f"--run={tmp_path / 'third'}", "--model.world.tokens=pooled"]) == 0
    assert " there, " not in capsys.readouterr().out
    for verb in (["export"], ["ckpt", "consolidate"]):  # folders that no configuration lies beside
        out = tmp_path / verb[-1]
        assert cli.main([*verb, str(tmp_path / "first"), str(out)]) == 0
        told = ["train", str(recipe), f"--from={out}", "--model.world.tokens=spatial", "--allow-inexact", f"--run={out}-run"]
        assert cli.main(told) == 0
        assert '  model.world.tokens: "pooled" there, "spatial" here\n' in capsys.readouterr().out


def test_settings_of_molmos_crops_that_differ_though_shapes_agree_are_told(tmp_path, capsys):
    settings = {
        "family": "molmo",
        "model": {"language": "debug"},
        "train": {"steps": 1, "global_batch": 2},
        "track": {"tensorboard": False},
    }
    settings |= {"data": {"train": [{"source": "scenes", "options": {"size": [32, 32]}, "limit": 4}], "workers": 0}}
    recipe = tmp_path / "a.yaml"
    recipe.write_text(json.dumps(settings))
    assert cli.main(["train", str(recipe), f"--run={tmp_path / 'first'}"]) == 0
    assert cli.main(["export", str(tmp_path / "first"), str(tmp_path / "out")]) == 0
    changed = ["--model.overlap=0", "--model.max_crops=6", "--model.style=none"]
    for start in ("first", "out"):
        capsys.readouterr()
        assert cli.main(["train", str(recipe), f"--from={tmp_path / start}", f"--run={tmp_path / start}-next", *changed]) == 0
        told = [line.strip() for line in capsys.readouterr().out.splitlines() if " there, " in line]
        assert told == [
            "model.max_crops: 4 there, 6 here",
            "model.overlap: 2 there, 0 here",
            'model.style: "demo_or_style" there, "none" here',
        ]
