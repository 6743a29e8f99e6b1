"""Stages end to end on a toy: what each trains and keeps, when it ends, how it is shown, forked and compared."""

import json
import math
import re
import shutil

import pytest
import torch

from plait import cli, files
from plait.commands.actions import checkpoints as ckpt
from plait.commands.actions import fork, stages
from plait.engine.checkpoints import checkpoint, integrity, rundir
from plait.engine.loop import Loop
from plait.engine.parallel import distributed
from plait.engine.state import PLANNED, State
from plait.errors import PlaitError
from plait.keys import key
from tests import toy_family as toy

PLATEAU = "train.plateau={min_steps: 4, patience_steps: 2, window_steps: 99}"
NEVER_BETTER = ["train.steps=20", "checkpoint.better=lower", "optim.lr=10.0", PLATEAU]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        recipe = toy.install(patch, folder)
        yield recipe, toy.train(recipe, folder / "run")


@pytest.fixture
def parent(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "parent")


def part(tensors, name):
    return {key: value for key, value in tensors.items() if key.startswith(name)}


def test_what_trained_in_stage_2_and_is_frozen_in_stage_3_is_in_its_checkpoints_and_comes_back(made):
    second, third = toy.at(made[1], 12), toy.at(made[1], 18)
    assert third.manifest["trainable"] == ["language"]
    assert toy.same(part(third.tensors("weights"), "vision"), part(second.tensors("weights"), "vision"))
    fresh = State(toy.Net(4, 0))
    before = fresh.model.vision.weight.detach().clone()
    fresh.restore(third.manifest["state"], {group: third.tensors(group) for group in ("weights", "ema", "moments")})
    assert toy.same(part(dict(fresh.model.named_parameters()), "vision"), part(second.tensors("weights"), "vision"))
    assert not torch.equal(fresh.model.vision.weight, before)


def test_frozen_parts_are_bit_equal_after_a_stage_and_every_trained_one_moved(made, tmp_path):
    base = dict(toy.Net(4, seed_of(made)).named_parameters())
    first = toy.at(made[1], 6)
    assert set(first.tensors("weights")) == {"projector.weight", "projector.bias"}
    assert not any(torch.equal(value, base[name]) for name, value in first.tensors("weights").items())
    second, third = toy.at(made[1], 12).tensors("weights"), toy.at(made[1], 18).tensors("weights")
    assert toy.same(part(third, "projector"), part(second, "projector"))
    assert not any(torch.equal(value, base[name]) for name, value in third.items())


def seed_of(made):
    return key(0, "init")


def test_unfreezing_leaves_the_moments_of_other_parts_untouched(made, monkeypatch):
    seen = []
    begin = State.begin

    def spied(self, *arguments):
        begin(self, *arguments)
        seen.append({name: value.clone() for name, value in self.tensors()["moments"].items()})

    monkeypatch.setattr(State, "begin", spied)
    toy.train(made[0], made[1].with_name("spied"))
    for started, step in ((seen[1], 6), (seen[2], 12)):
        assert toy.same(started, toy.at(made[1], step).tensors("moments"))


@pytest.mark.parametrize(("option", "returned"), [("keep", 12.0), ("reset", 6.0)])
def test_a_part_that_pauses_and_returns_keeps_its_moments_or_loses_them(made, tmp_path, option, returned):
    plan = "stages=[{name: a, trainable: [vision]}, {name: b, trainable: [language]}, {name: c, trainable: [vision, language]}]"
    run = toy.train(made[0], tmp_path / "run", plan, f"optim.returning_moments={option}")
    assert toy.at(run, 18).tensors("moments")["vision.weight.step"].item() == returned
    assert toy.at(run, 18).tensors("moments")["language.weight.step"].item() == 12.0
    assert ("vision.weight.step" in toy.at(run, 12).tensors("moments")) == (option == "keep")


def test_each_stage_makes_its_own_replicas(made, tmp_path, monkeypatch):
    trainable = []
    replicate = distributed.replicate
    monkeypatch.setattr(
        distributed,
        "replicate",
        lambda model, ranks, hook: (
            trainable.append([name for name, value in model.named_parameters() if value.requires_grad]) or replicate(model, ranks, hook)
        ),
    )
    toy.train(made[0], tmp_path / "run")
    assert [len(names) for names in trainable] == [2, 4, 2]


def test_a_flat_figure_ends_the_stage_before_its_budget_and_the_next_begins(made, tmp_path):
    run = toy.train(made[0], tmp_path / "run", *NEVER_BETTER)
    ends = [json.loads((folder / "manifest.json").read_text())["state"] for folder in reversed(checkpoint.published(run))]
    done = [state for state in ends if state["stage_done"]]
    assert [state["stage"] for state in done] == [1, 2, 3]
    assert all(state["step"] - state["stage_start"] < 20 and "no new best since step" in state["stage_done"] for state in done[:1])


def test_a_stage_that_a_plateau_ended_stays_ended_after_a_kill(made, tmp_path):
    straight = toy.train(made[0], tmp_path / "straight", *NEVER_BETTER)
    killed = toy.train(made[0], tmp_path / "killed", *NEVER_BETTER, only="projection")
    reason = integrity.locate(killed).manifest["state"]["stage_done"]
    assert reason and reason != PLANNED
    toy.train(made[0], killed, *NEVER_BETTER)
    one, other = (integrity.locate(run) for run in (straight, killed))
    assert one.manifest["state"] == other.manifest["state"]
    assert all(toy.same(one.tensors(group), other.tensors(group)) for group in ("weights", "ema", "moments"))
    assert toy.figures(straight) == toy.figures(killed)


def test_the_history_of_a_plateau_survives_a_kill_in_the_middle(made, tmp_path, monkeypatch):
    straight = toy.train(made[0], tmp_path / "straight", *NEVER_BETTER)
    step = Loop.step

    def dies(self, net, batch, stage_steps, *, audit):
        if self.state.step == 5:
            raise KeyboardInterrupt
        return step(self, net, batch, stage_steps, audit=audit)

    monkeypatch.setattr(Loop, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        toy.train(made[0], tmp_path / "killed", *NEVER_BETTER)
    monkeypatch.setattr(Loop, "step", step)
    toy.train(made[0], tmp_path / "killed", *NEVER_BETTER)
    assert integrity.locate(straight).manifest["state"] == integrity.locate(tmp_path / "killed").manifest["state"]


def test_the_best_checkpoint_is_spared_by_keep(made, tmp_path):
    run = toy.train(made[0], tmp_path / "run", "stages=[]", "train.steps=12", "optim.lr=10.0", "checkpoint.keep=2")
    state = integrity.locate(run).manifest["state"]
    kept = sorted(int(folder.name[5:]) for folder in checkpoint.published(run))
    assert state["best"]["step"] < 10
    assert kept == [state["best"]["step"], 10, 12]
    losses = {row["step"]: row["eval/loss"] for row in toy.figures(run) if "eval/loss" in row}
    assert state["best"] == {"metric": "loss", "value": min(losses.values()), "step": min(losses, key=losses.__getitem__)}


def test_one_stage_runs_alone_and_in_order(made, tmp_path):
    run = tmp_path / "run"
    toy.train(made[0], run, only="projection")
    assert integrity.locate(run).manifest["state"]["stage_done"] == PLANNED
    with pytest.raises(PlaitError, match=r"stage 'language' comes after vision, which is not finished; run that first"):
        toy.train(made[0], run, only="language")
    with pytest.raises(PlaitError, match="stage 'visions' is not one to run next: the stages are projection, vision, language"):
        toy.train(made[0], run, only="visions")
    toy.train(made[0], run, only="vision")
    assert integrity.locate(run).step == 12
    toy.train(made[0], run)
    assert toy.figures(run) == toy.figures(made[1])


def test_a_stage_whose_budget_grew_goes_on_and_one_whose_budget_shrank_ends(made, tmp_path):
    run = toy.train(made[0], tmp_path / "run", "stages=[]")
    toy.train(made[0], run, "stages=[]", "train.steps=10", allow_inexact=True)
    assert (integrity.locate(run).step, integrity.locate(run).manifest["state"]["stage_done"]) == (10, PLANNED)
    half = shutil.copytree(run, tmp_path / "half")
    shutil.rmtree(half / "stage-1-train" / "step-00000010")
    toy.train(made[0], half, "stages=[]", "train.steps=7", allow_inexact=True)
    assert (integrity.locate(half).step, integrity.locate(half).manifest["state"]["stage_done"]) == (8, PLANNED)


def test_an_end_that_was_evaluated_only_after_a_restart_is_saved(made, tmp_path):
    run = toy.train(made[0], tmp_path / "run", "stages=[]")
    folder = run / "stage-1-train" / "step-00000006"
    saved = integrity.locate(folder)
    state = {**saved.manifest["state"], "evaluated_step": 4, "stage_done": None}
    groups = {group: saved.tensors(group) for group in ("weights", "ema", "moments")}
    checkpoint.write(folder, groups, {**saved.manifest, "state": state})
    toy.train(made[0], run, "stages=[]")
    assert integrity.locate(run).manifest["state"] == saved.manifest["state"]


# plait stages ----------------------------------------------------------------------------------------------------------------------


def test_stages_shows_what_each_trains_how_good_it_became_and_why_it_ended(made, capsys):
    stages.show(made[1])
    said = capsys.readouterr().out
    losses = [row for row in toy.figures(made[1]) if "eval/loss" in row and row["stage"] == 2]
    best = min(losses, key=lambda row: row["eval/loss"])
    assert said.startswith("stage 1 projection: done: planned steps done\n  trains     projector 20 (44.44% of 45)\n")
    assert "  trains     projector 20, vision 20 (88.89% of 45)\n  steps      6 of 6, from step 6; last saved at 12\n" in said
    assert f"best loss {best['eval/loss']:.4g} at step {best['step']}, last {losses[-1]['eval/loss']:.4g}" in said
    assert len(re.findall(r"  time       0:00:\d\d\n", said)) == 3


def test_stages_tells_stopped_running_and_not_begun_apart(made, tmp_path, capsys):
    run = toy.train(made[0], tmp_path / "run", only="projection")
    shutil.rmtree(run / "stage-1-projection" / "step-00000006")
    capsys.readouterr()
    with rundir.lock(run):
        stages.show(run)
    stages.show(run)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage 1")]
    assert said == ["stage 1 projection: running", "stage 1 projection: stopped; `plait train` goes on"]
    stages.show(run)
    assert "stage 3 language: not begun\n  trains     language 5\n" in capsys.readouterr().out


def test_stages_of_no_run_is_one_line(tmp_path, capsys):
    assert cli.main(["stages", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"plait: {tmp_path} is no run directory: it has no config.yaml\n"


def test_hours_leave_stops_out():
    rows = [{"step": step, "step_s": 2.0, "time_s": time} for step, time in ((10, 100.0), (20, 130.0), (30, 9000.0))]
    assert stages.hours(rows, 0) == pytest.approx((10 * 2 + 30 + 10 * 2) / 3600)
    assert stages.hours([], 0) == 0


def test_a_pause_of_minutes_is_no_training_time(tmp_path):
    times = {10: 100.0, 20: 130.0, 30: 400.0, 40: 430.0}
    rows = [{"step": step, "loss": 1.0, "step_s": 2.0, "time_s": time} for step, time in times.items()]
    files.append_rows(tmp_path / "metrics.jsonl", rows)
    assert stages.hours(stages.rows_of(tmp_path), 0) == pytest.approx((20 + 30 + 270 + 30) / 3600)
    files.append_rows(tmp_path / "migrations.jsonl", [{"from": "old", "rows": []}, {"from": "run/step-20", "time_s": 370.0, "rows": []}])
    assert [row["step"] for row in stages.rows_of(tmp_path) if "continued" in row] == [30]
    assert stages.hours(stages.rows_of(tmp_path), 0) == pytest.approx((20 + 30 + 20 + 30) / 3600)


# plait fork ------------------------------------------------------------------------------------------------------------------------


def test_a_fork_without_changes_goes_on_exactly_as_its_parent_did(made, tmp_path, capsys):
    new = tmp_path / "new"
    assert cli.main(["fork", f"{made[1]}@8", str(new)]) == 0
    assert f"continue it: plait train {new}" in capsys.readouterr().out
    assert cli.main(["train", str(new)]) == 0
    one, other = toy.at(made[1], 18), toy.at(new, 18)
    assert one.manifest["state"] == other.manifest["state"]
    assert all(toy.same(one.tensors(group), other.tensors(group)) for group in ("weights", "ema", "moments"))
    assert toy.figures(made[1]) == toy.figures(new)


def test_a_fork_says_where_it_came_from_and_leaves_its_parent_alone(parent, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in parent.rglob("*")}
    new = fork.fork(f"{parent}/vision", tmp_path / "new", ["stages.2.train.steps=3"])
    lineage = json.loads((new / "lineage.json").read_text())
    assert (lineage["kind"], lineage["step"], lineage["parent"]) == ("fork", 12, rundir.identity(parent))
    assert lineage["differences"] == [["stages.2.train.steps", "(absent)", 3]]
    assert rundir.identity(new) != rundir.identity(parent)
    assert {path: path.stat().st_mtime_ns for path in parent.rglob("*")} == before
    again = fork.fork(str(new), tmp_path / "again", [])
    assert json.loads((again / "lineage.json").read_text())["before"] == lineage


def test_a_fork_takes_its_new_settings_without_further_asking(made, tmp_path, capsys):
    new = fork.fork(f"{made[1]}@12", tmp_path / "new", ["stages.2.optim={lr: 5.0e-3}", "stages.2.train={steps: 3}"])
    said = capsys.readouterr().out
    assert "stages.2.optim.lr" in said
    assert "learning rate now" in said
    toy.train(new, new)
    assert integrity.locate(new).step == 15
    assert {row["lr/language"] for row in toy.figures(new) if row["stage"] == 3 and "loss" in row} == {5e-3}


def test_a_fork_may_go_on_with_other_data_but_only_by_saying_so(made, tmp_path, capsys):
    other = tmp_path / "train.jsonl"
    other.write_text("".join(json.dumps({"x": [i / 12, 0.5, 0.5, 0.5], "y": i / 12}) + "\n" for i in range(12)))
    new = fork.fork(f"{made[1]}@8", tmp_path / "new", [f"data.train.0.path={other}"])
    toy.train(new, new)
    assert "data     changed: the training data is not what" in capsys.readouterr().out
    silent = fork.fork(f"{made[1]}@8", tmp_path / "silent", ["optim.lr=1e-3"])
    (silent / "config.yaml").write_text((new / "config.yaml").read_text())
    with pytest.raises(PlaitError, match="fork the run with the new data"):
        toy.train(silent, silent)


def test_the_best_checkpoint_comes_along(made, tmp_path):
    run = toy.train(made[0], tmp_path / "run", "stages=[]", "train.steps=12", "optim.lr=10.0", "checkpoint.keep=2")
    best = integrity.locate(run).manifest["state"]["best"]["step"]
    new = fork.fork(str(run), tmp_path / "new", [])
    assert [int(folder.name[5:]) for folder in checkpoint.published(new)] == [12, best]


@pytest.mark.parametrize(
    ("spec", "overrides", "message"),
    [
        ("{run}@8", [], "exists already; a fork makes its own folder"),
        ("{run}@7", [], "has no checkpoint at step '7'; it has 2, 4, 6, 8"),
        ("{run}x", [], "did you mean"),
        ("{run}@8", ["optim.lrr=1"], r"optim\.lrr is not a key: did you mean optim\.lr\?"),
        ("{run}@8", ["run=elsewhere"], "leave out --run"),
    ],
)
def test_a_fork_that_cannot_be_is_one_line_and_leaves_nothing(made, tmp_path, spec, overrides, message):
    new = made[1] if "exists" in message else tmp_path / "new"
    with pytest.raises(PlaitError, match=message):
        fork.fork(spec.format(run=made[1]), new, overrides)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_fork_leaves_no_folder(made, tmp_path, monkeypatch):
    monkeypatch.setattr(fork.files, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        fork.fork(str(made[1]), tmp_path / "new", [])
    assert list(tmp_path.iterdir()) == []


# plait ckpt diff -------------------------------------------------------------------------------------------------------------------


def test_distance_is_the_norm_of_the_change_over_the_norm():
    moved = ckpt.distance([torch.tensor([3.0, 0.0]), torch.tensor([4.0])], [torch.tensor([3.0, 1.0]), torch.tensor([2.0])])
    assert moved == pytest.approx((math.sqrt(1 + 4) / 5, 2.0))
    assert ckpt.distance([torch.zeros(2)], [torch.zeros(2)]) == (0.0, 0.0)


def test_diff_tells_how_far_each_component_moved_and_what_else_differs(made, tmp_path, capsys):
    new = fork.fork(f"{made[1]}@12", tmp_path / "new", ["stages.2.trainable=[projector, language]", "optim.lr=2e-2"])
    toy.train(new, new)
    ckpt.diff(f"{made[1]}", str(new))
    said = capsys.readouterr().out
    one, other = toy.at(made[1], 18).tensors("weights"), toy.at(new, 18).tensors("weights")
    expected = ckpt.distance(list(part(one, "language").values()), list(part(other, "language").values()))
    assert f"{expected[0]:.3g}" in next(line for line in said.splitlines() if line.strip().startswith("language "))
    assert next(line for line in said.splitlines() if line.strip().startswith("vision ")).split()[1:4] == ["20", "0", "0"]
    assert "config optim.lr: 0.01 -> 0.02" in said
    assert "config trainable.0: language -> projector" in said


def test_diff_takes_what_was_still_frozen_from_the_base(made, capsys):
    ckpt.diff(f"{made[1]}@6", f"{made[1]}@12")
    said = capsys.readouterr().out
    base = dict(toy.Net(4, seed_of(made)).named_parameters())
    after = part(toy.at(made[1], 12).tensors("weights"), "vision")
    expected = ckpt.distance([base[name].detach() for name in after], list(after.values()))
    assert f"{expected[0]:.3g}" in next(line for line in said.splitlines() if line.strip().startswith("vision "))
    assert "language" in said and "frozen in both" in said


def test_diff_of_a_checkpoint_with_itself_is_nothing(made, capsys):
    assert cli.main(["ckpt", "diff", f"{made[1]}@12", f"{made[1]}/vision"]) == 0
    said = capsys.readouterr().out
    assert "config and data: the same" in said
    assert all(line.split()[2] == "0" for line in said.splitlines() if line.strip().startswith(("projector", "vision")))


NAMES = {
    "": 18,
    "@8": 8,
    "/vision": 12,
    "/vision@10": 10,
    "/vision@best": 12,
    "/stage-2-vision/step-00000010": 10,
    "/latest": 18,
    "/step4": 4,
}


@pytest.mark.parametrize("folder", ["plain", "my@run", "a [v2]", "x@8"])
def test_every_command_understands_every_name_of_a_checkpoint(made, tmp_path, monkeypatch, capsys, folder):
    run = shutil.copytree(made[1], tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    for name, step in NAMES.items():
        spec, which = f"{folder}{name}", f"step-{step:08d}"
        for number, command in enumerate(
            (
                ["ckpt", "inspect", spec],
                ["ckpt", "verify", spec],
                ["ckpt", "diff", spec, spec],
                ["ckpt", "consolidate", spec, f"whole-{step}-{len(name)}"],
                ["eval", spec, "--bench=loss", f"--out=eval-{step}-{len(name)}"],
                ["fork", spec, f"fork-{step}-{len(name)}"],
            )
        ):
            assert cli.main(command) == 0, (command, capsys.readouterr().err)
            said = capsys.readouterr().out
            assert number == 2 or which in said, (command, said)
    assert run.is_dir()
