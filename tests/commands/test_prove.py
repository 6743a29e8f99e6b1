"""`plait prove`: it covers every moment, calls the engine exact, and names faults planted on purpose (planted.py)."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from plait.assembly.configuration import open_config
from plait.commands.actions.passport import proofs
from plait.commands.prove import prove, smoke_config
from plait.commands.prove.prove import Event, Trial
from plait.config.schema import Track
from plait.engine.monitoring import signals
from plait.training import launch

HERE = Path(__file__).parent
TINY = {
    **{"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64, "image_size": 16, "image_tokens": 4},
    **{"vision_hidden": 32, "vision_layers": 1, "vision_heads": 2, "vision_mlp": 64, "world_base": 4},
}
SCENES = {"source": "scenes", "options": {"size": [32, 32], "objects": [1, 2], "tasks": ["colour", "count"]}}
CONFIG = {
    "family": "theworld",
    "preset": "tiny",
    "model": {"tiny": TINY, "world": {"image_size": 16}},
    "data": {"train": [SCENES | {"limit": 64}], "validation": [SCENES | {"limit": 16}], "max_tokens": 64},
    "stages": [
        {"name": "projection", "trainable": ["projector"], "train": {"epochs": 3}},
        {"name": "vision", "trainable": ["projector", "vision"], "train": {"steps": 500}},
    ],
    "train": {"steps": 1, "global_batch": 64, "micro_batch": 32},
    "optim": {"lr": 1e-3, "schedule": {"warmup_steps": 0}, "ema": {"decay": 0.9}},
    "checkpoint": {"best": "loss"},
    "evaluate": [{"bench": "loss", "every_steps": 100}],
}


def resolve(folder, **changes):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(CONFIG | changes))
    return open_config(path, [])


@pytest.fixture(scope="module")
def server():
    """One process that has imported everything, the planted faults too; generations are forked from it."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *([before] if before else [])])
    warm = launch.Warm(["plait.training.run", "plait.families.theworld.family", "planted"])
    yield warm
    warm.close()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture
def proof(server, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "Warm", lambda modules: server)
    monkeypatch.setattr(server, "close", lambda: None)

    def run(name, kills, seed=0, kept_in=None):
        out = tmp_path / name
        prove.prove(resolve(tmp_path), kills=kills, seed=seed, steps=4, warm=True, out=out, run=kept_in)
        return out

    return run


def test_a_run_killed_four_times_is_bit_exact_and_its_verdict_is_kept(proof, capsys, tmp_path):
    proof("sound", 4, kept_in=tmp_path)
    kept = proofs.newest(tmp_path)
    assert (kept["verdict"], kept["seed"], kept["ranks"], kept["steps"]) == ("bit-exact", 0, 1, 4)
    assert kept["kills"] == sum(kept["ways"].values())
    assert 1 <= kept["kills"] <= 4 and kept["ways"].keys() <= {"SIGKILL", "SIGTERM", "worker"}
    said = capsys.readouterr().out
    assert "bit-exact: 4 kills, 5 generations, theworld, 2 stages" in said
    assert "train.steps: 500 -> 4 (vision)" in said
    assert said.count("equal to the bit") == 12


def test_an_unkeyed_draw_in_encode_is_found_and_named(proof, tmp_path):
    with pytest.raises(prove.Diverged, match="before anything was resumed, so something is drawn without a key") as caught:
        proof("unkeyed", 1, kept_in=tmp_path)
    assert proofs.newest(tmp_path)["verdict"].startswith("the runs part before anything was resumed")
    assert ": loss terms: step 1: loss/loss is " in str(caught.value)


def test_a_moment_that_is_not_saved_is_found_and_named(proof):
    with pytest.raises(prove.Diverged, match=r"the two runs part after going on from step \d: .*first differing parameter: ") as caught:
        proof("forgetful", 2)
    assert "weights of projector.brackets (64 of 64 values differ" in str(caught.value)
    assert "were equal, so its update was not: moments did not come back" in str(caught.value)
    assert caught.value.exit_code == 1


EVENTS = [Event(phase, step, 0.1) for step in range(6) for phase in ("stage", "data", "step", "evaluate", "save")] + [Event("done", 6, 0.0)]


def test_six_kills_cover_every_phase_and_every_way():
    plan = prove.choose(EVENTS, 6, seed=0)
    assert {kill.phase for kill in plan} == {"stage", "data", "step", "evaluate", "save"}
    assert {kill.way for kill in plan} == {"SIGKILL", "SIGTERM", "worker"}
    assert [kill.step for kill in plan] == sorted(kill.step for kill in plan)


def test_the_moments_are_those_of_the_seed():
    assert prove.choose(EVENTS, 5, seed=3) == prove.choose(EVENTS, 5, seed=3)
    assert prove.choose(EVENTS, 5, seed=3) != prove.choose(EVENTS, 5, seed=4)


def test_shortening_keeps_the_cut_of_a_batch_and_tells_each_change(tmp_path):
    long = resolve(tmp_path)
    short = smoke_config.make_smoke_config(long, 6, tmp_path / "short" / "short.yaml")
    assert [(view.config.train.steps, view.config.train.global_batch, view.config.train.micro_batch) for view in short.stages] == [
        (6, 16, 8)
    ] * 2
    assert {view.config.checkpoint.every_steps for view in short.stages} == {2}
    assert "train.epochs: 3.0 -> none (projection)" in smoke_config.changes(long, short)
    assert "train.global_batch: 64 -> 16" in smoke_config.changes(long, short)


def test_nobody_hears_of_a_shortened_run(tmp_path):
    told = {"wandb": {"project": "p"}, "mlflow": {"experiment": "e"}, "trackio": {"project": "p"}}
    long = resolve(tmp_path, track=told, alert=["$ALERT_URL"], hub={"repo": "me/x"}, checkpoint={"mirror": "s3://a/b"})
    short = smoke_config.make_smoke_config(long, 6, tmp_path / "short" / "short.yaml")
    assert short.config.track.model_dump(exclude={"every_steps"}) == Track(tensorboard=False).model_dump(exclude={"every_steps"})
    assert not short.config.alert.wanted and short.config.hub is short.config.checkpoint.mirror is None


class Broken:
    """A launcher whose command fails at once."""

    ranks = 1

    def start(self, arguments, log):
        log.parent.mkdir(parents=True, exist_ok=True)
        return launch.Fresh.start(self, arguments, log)

    command = (sys.executable, "-c", "print('plait: the disk is full'); raise SystemExit(2)")


def test_a_configuration_that_fails_without_a_kill_says_why(tmp_path):
    with pytest.raises(prove.PlaitError, match=r"does not end well even without a kill \(exit code 2\): plait: the disk is full"):
        prove.run_straight(Trial(tmp_path / "short.yaml", Broken()), tmp_path / "straight")


def test_a_generation_that_does_not_go_on_is_a_divergence(tmp_path):
    plan = [prove.Kill("SIGTERM", "step", 3, 0.0)]
    with pytest.raises(
        prove.Diverged, match=r"was to end by SIGTERM in after its end did not go on \(exit code 2\): plait: the disk is full"
    ):
        prove.run_killed(Trial(tmp_path / "short.yaml", Broken()), tmp_path / "killed", plan)


class Early(Broken):
    """A launcher whose command ends as one that was stopped in its start."""

    command = (sys.executable, "-c", f"print('plait: stopped by SIGTERM {signals.EARLY}'); raise SystemExit(75)")


def test_a_stop_before_training_began_is_no_divergence(tmp_path):
    plan = [prove.Kill("SIGTERM", "stage", 8, 0.0)]
    with pytest.raises(prove.Diverged, match="the last generation did not reach the end"):
        prove.run_killed(Trial(tmp_path / "short.yaml", Early()), tmp_path / "killed", plan)
    assert plan[0].exit_code == 75


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "kept").write_text("something")
    with pytest.raises(prove.PlaitError, match="is not empty; give --out a new folder"):
        prove.prove(resolve(tmp_path), out=tmp_path)


def test_a_kill_is_told_by_its_exit_code(tmp_path):
    sleeper = launch.Fresh()
    sleeper.command = [sys.executable, "-c", "import time; time.sleep(60)"]
    process = sleeper.start([], tmp_path / "log")
    process.signal(signal.SIGKILL)
    while process.poll() is None:
        time.sleep(0.01)
    assert process.poll() == -signal.SIGKILL
