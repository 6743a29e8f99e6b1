"""Averages of any length made from what a run kept, against averages taken over its weights at every step."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from plait.commands.actions import checkpoints as ckpt
from plait.engine import averages
from plait.engine.checkpoints import checkpoint, post_hoc_ema
from plait.errors import PlaitError
from tests import toy_family

ONE_STAGE = ["--stages=[{name: all, trainable: ['*']}]", "train.steps=64", "train.plateau=null", "evaluate=[]", "checkpoint.best=null"]
ON = "optim.ema={decay: 0.5, post_hoc: true}"


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """A run of 64 steps with averages, of whose 16 checkpoints two stay; and the weights after each of its steps."""
    recipe, walk = toy_family.install(monkeypatch, tmp_path), []
    update = averages.PowerEma.update

    def noted(self, parameters, k):
        if self.length == 0.05:
            walk.append({name: value.detach().double().clone() for name, value in parameters.items()})
        update(self, parameters, k)

    monkeypatch.setattr(averages.PowerEma, "update", noted)
    kept = ["checkpoint.every_steps=4", "checkpoint.keep=2"]
    run = toy_family.train(recipe, tmp_path / "run", *(item.removeprefix("--") for item in [*ONE_STAGE, *kept, ON]))
    return recipe, run, walk


def directly(walk, length):
    """The power-function average over all steps, by its recursion in float64."""
    g, found = averages.exponent(length), dict(walk[0])
    for k, weights in enumerate(walk):
        keep = (1 - 1 / (k + 1)) ** (g + 1)
        found = {name: keep * found[name] + (1 - keep) * value for name, value in weights.items()}
    return found


def flat(tensors):
    return np.concatenate([tensors[name].double().flatten().numpy() for name in sorted(tensors)])


@pytest.mark.parametrize("length", [0.05, 0.08, 0.15])
def test_an_average_of_any_length_is_what_training_would_have_kept(trained, length):
    _, run, walk = trained
    assert len(checkpoint.published(run)) == 2 and len(walk) == 64
    found, last = post_hoc_ema.of_length(run, length, 64), flat(walk[-1])
    wanted = flat(directly(walk, length))
    assert found.saves == 16 and found.misfit < 0.05
    error, moved = np.linalg.norm(flat(found.tensors) - wanted), np.linalg.norm(last - wanted)
    assert error < 0.1 * moved  # 16 moments of 64 steps: the fitted profile is steps wide, not smooth


def test_the_command_writes_weights_that_a_run_can_begin_with(trained, capsys):
    recipe, run, walk = trained
    ckpt.ema(run, 0.1, None)
    folder = run / "averages" / "length-0.1-step-00000064"
    assert "average of length 0.1 (share of the run) at step 64" in capsys.readouterr().out
    weights = load_file(folder / "weights.safetensors")
    assert np.allclose(flat(weights), flat(directly(walk, 0.1)), atol=1e-4)  # float32, and saved as it was kept
    second = toy_family.train(
        recipe, run.with_name("second"), *(item.removeprefix("--") for item in ONE_STAGE), f"from={folder}", "train.steps=1"
    )
    assert toy_family.at(second, 1).manifest["state"]["trained"] == sorted(weights)


def test_a_resumed_run_keeps_the_same_averages(trained, monkeypatch, tmp_path):
    recipe, run, _ = trained
    settings = [item.removeprefix("--") for item in [*ONE_STAGE, "checkpoint.every_steps=4", "checkpoint.keep=9", ON]]
    again = toy_family.train(recipe, tmp_path / "again", *settings)
    for step in (36, 40, 44, 48, 52, 56, 60, 64):
        checkpoint.shutil.rmtree(again / "stage-1-all" / f"step-{step:08d}")
    (again / "averages" / "step-00000048").mkdir(parents=True)  # of steps that will be taken again
    toy_family.train(recipe, again, *settings)
    for group in averages.KEPT:
        assert toy_family.same(*(toy_family.at(one, 64).tensors(group) for one in (run, again))), group
    assert not (again / "averages" / "step-00000048").exists()


def test_a_run_that_kept_none_says_what_to_set(monkeypatch, tmp_path):
    recipe = toy_family.install(monkeypatch, tmp_path)
    run = toy_family.train(recipe, tmp_path / "run", *(item.removeprefix("--") for item in ONE_STAGE), "train.steps=2")
    with pytest.raises(PlaitError, match=r"kept no averages up to step 2: train with optim\.ema\.post_hoc=true"):
        ckpt.ema(run, 0.1, None)


def test_a_damaged_average_is_named(trained):
    _, run, _ = trained
    file = run / "averages" / "step-00000008" / "ema-0.05.safetensors"
    body = bytearray(file.read_bytes())
    body[-1] ^= 1
    file.write_bytes(body)
    with pytest.raises(PlaitError, match=r"ema-0\.05\.safetensors is damaged: .*; remove .*step-00000008 to go on without it"):
        post_hoc_ema.of_length(run, 0.1, 64)


def test_without_the_setting_nothing_more_is_kept(monkeypatch, tmp_path):
    run = toy_family.train(toy_family.install(monkeypatch, tmp_path), tmp_path / "run", "train.steps=2")
    assert {name.split(".")[0] for name in toy_family.at(run, 2).manifest["files"]} == {"weights", "ema", "moments"}
    assert torch.is_tensor(next(iter(toy_family.at(run, 2).tensors("ema").values())))
