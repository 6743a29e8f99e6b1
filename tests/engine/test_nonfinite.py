"""A sample that makes the loss infinite, by policy: stopped at, skipped, gone back from; the same on two ranks, or after a restart."""

import json
import math

import pytest
import torch

from plait.commands.actions import fork
from plait.config.sections.guard import Guard
from plait.engine import nonfinite, nonfinite_report
from plait.engine.checkpoints import checkpoint
from plait.errors import Stopped, first_names
from plait.training import run
from tests import processes, toy_family

from .toy import ALONE, Net

SHORT = ("train.steps=6", "stages=[]", "evaluate=[]", "checkpoint.best=null", "checkpoint.every_steps=2", "seed=3")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The toy's recipe with two samples whose squared error is beyond float32."""
    path = toy_family.install(monkeypatch, tmp_path)
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    for index in (3, 17):
        rows[index] = json.dumps(json.loads(rows[index]) | {"y": 1e39})
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    return path


def rows(folder):
    return [row for row in toy_family.figures(folder) if "loss" in row]


def skipped(folder):
    return [row["step"] for row in rows(folder) if row.get("skipped") == 1]


@pytest.fixture
def bad_steps(recipe, tmp_path):
    """The steps, from 1, of the six that hold the samples."""
    toy_family.train(recipe, tmp_path / "skip", *SHORT, "guard.non_finite=skip")
    found = skipped(tmp_path / "skip")
    assert len(found) == 2
    return found


def test_stop_says_which_samples_and_leaves_statistics_of_every_module(recipe, bad_steps, tmp_path):
    with pytest.raises(Stopped, match=rf"step {bad_steps[0]} is not finite \(loss = inf.*stopped before the update; samples 0:\d+@0 "):
        toy_family.train(recipe, tmp_path / "run", *SHORT)
    told = json.loads((tmp_path / "run" / "non-finite" / f"step-{bad_steps[0]:08d}.json").read_text())
    assert len(told["samples"]) == 4
    assert told["modules"]["vision"]["gradients_not_finite"] == 20
    assert float(told["modules"]["language"]["weight_max"]) > 0


def test_skip_ends_the_step_without_an_update_and_counts_it(recipe, bad_steps, tmp_path):
    states = [toy_family.at(tmp_path / "skip", step) for step in (2, 4, 6)]
    assert all(value.isfinite().all() for value in states[-1].tensors("weights").values())
    assert states[-1].manifest["state"]["totals"] == {"samples": 24.0, "skipped": 2.0}
    updates = {int(value) for name, value in states[-1].tensors("moments").items() if name.endswith(".step")}
    assert updates == {6 - len(bad_steps)}


def test_rewind_goes_back_to_the_checkpoint_and_past_the_step(recipe, bad_steps, tmp_path, capsys):
    toy_family.train(recipe, tmp_path / "run", *SHORT, "guard.non_finite=rewind")
    said = capsys.readouterr().out
    for step in bad_steps:
        assert f"step {step} is not finite (loss = inf" in said
    assert said.count(": back to the newest checkpoint, and past this step from there; samples 0:") == 2
    assert skipped(tmp_path / "run") == bad_steps
    one, other = (toy_family.at(folder, 6) for folder in (tmp_path / "run", tmp_path / "skip"))
    assert toy_family.same(one.tensors("weights"), other.tensors("weights"))  # the toy has no dropout: passing over is skipping
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_rewind_is_exact_when_the_run_is_continued(recipe, bad_steps, tmp_path):
    for steps in (bad_steps[0], 6):
        toy_family.train(recipe, tmp_path / "run", *SHORT, "guard.non_finite=rewind", f"train.steps={steps}", allow_inexact=True)
    assert toy_family.same(toy_family.at(tmp_path / "run", 6).tensors("weights"), toy_family.at(tmp_path / "skip", 6).tensors("weights"))


def steps_saved(folder):
    return sorted(checkpoint.step_of(path) for path in checkpoint.published(folder))


@pytest.mark.parametrize("every", [1, 2, 9])
@pytest.mark.parametrize("policy", ["stop", "skip", "rewind"])
def test_weights_that_give_no_finite_loss_are_not_saved_and_the_update_is_named(monkeypatch, tmp_path, policy, every):
    toy_family.train(toy_family.install(monkeypatch, tmp_path), tmp_path / "run", *SHORT, "train.steps=4")
    changed = ["optim.lr=1e30", f"guard.non_finite={policy}", f"checkpoint.every_steps={every}", "checkpoint.keep=1", "train.steps=8"]
    new = fork.fork(f"{tmp_path / 'run'}@4", tmp_path / "new", changed)
    for _ in range(2):
        with pytest.raises(Stopped) as stopped:
            toy_family.train(new, new)
        if policy != "stop" or every == 1:
            saved_at = {1: 5, 2: 6, 9: 8}[every]
            said = f"the update at step 5 made the loss non-finite, and step {saved_at} is not saved; go on from before, with"
            assert str(stopped.value) == f"{said} a lower optim.lr or train.grad_clip: `plait fork {new}@4 NEW --optim.lr=...`"
        assert steps_saved(new) == [4]
    mended = fork.fork(f"{new}@4", tmp_path / "mended", ["optim.lr=1e-2"])
    toy_family.train(mended, mended)
    assert all(math.isfinite(row["loss"]) for row in rows(mended))


def stops_at_the_first_update(recipe, folder, *settings):
    with pytest.raises(Stopped, match=r"^the update at step 1 made the loss non-finite, and step 2 is not saved; no earlier checkpoint"):
        toy_family.train(recipe, folder, *settings)


def test_two_ranks_stop_together_at_weights_that_give_no_finite_loss(monkeypatch, tmp_path):
    recipe = toy_family.install(monkeypatch, tmp_path)
    settings = (*SHORT, "optim.lr=1e30", "guard.non_finite=skip")
    processes.fork(2, stops_at_the_first_update, recipe, tmp_path / "run", *settings)
    assert steps_saved(tmp_path / "run") == []


def test_a_checkpoint_that_gives_no_finite_loss_is_not_trained_on(monkeypatch, tmp_path):
    recipe = toy_family.install(monkeypatch, tmp_path)
    with monkeypatch.context() as patched:  # as it was saved before this was checked
        patched.setattr("plait.training.stage.stop_if_diverged", lambda *_, **__: None)
        toy_family.train(recipe, tmp_path / "run", *SHORT, "optim.lr=1e30", "guard.non_finite=skip")
    with pytest.raises(Stopped, match=r"^the checkpoint of step 6 gives no finite loss; go on from before, .*run@4 NEW --optim"):
        toy_family.train(recipe, tmp_path / "run", *SHORT, "optim.lr=1e30", "guard.non_finite=skip", "train.steps=8", allow_inexact=True)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_two_ranks_pass_over_the_same_steps(recipe, bad_steps, tmp_path, policy, strategy):
    settings = (f"guard.non_finite={policy}", f"distributed.strategy={strategy}")
    processes.fork(2, toy_family.train, recipe, tmp_path / "run", *SHORT, *settings)
    assert skipped(tmp_path / "run") == bad_steps
    alone, together = (toy_family.at(folder, 6).tensors("weights") for folder in (tmp_path / "skip", tmp_path / "run"))
    assert all(torch.allclose(value, together[name], rtol=1e-5, atol=1e-7) for name, value in alone.items())  # fp32: sums in another order


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_more_steps_than_allowed_stop_the_run(recipe, bad_steps, tmp_path, policy):
    with pytest.raises(Stopped, match=r"; 1 steps were passed over before, all that guard\.non_finite_steps allows: look at the data"):
        toy_family.train(recipe, tmp_path / "run", *SHORT, f"guard.non_finite={policy}", "guard.non_finite_steps=1")
    assert run.Rewind is nonfinite.Rewind


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "none"), (1, "a"), (5, "a, b, c, d, e"), (6, "a, b, c, d, e and 1 more"), (26, "a, b, c, d, e and 21 more")]
)
def test_five_names_are_shown_and_the_others_counted(count, shown):
    assert first_names([chr(97 + i) for i in range(count)]) == shown


def test_statistics_tell_the_largest_numbers_of_each_module_and_what_is_not_finite():
    net = Net()
    net.tower.weight.data.fill_(-3.0)
    net.tower.bias.data.fill_(2.0)
    net.head.weight.data[0, 0] = math.nan
    net.tower.weight.grad = torch.full((8, 4), -0.5)
    net.tower.weight.grad[0, :3] = torch.tensor([math.inf, math.nan, 7.0])
    net.head.bias.grad = torch.full((1,), -math.inf)
    assert nonfinite_report.statistics(net) == {
        "tower": {"weight_max": "3.0", "gradient_max": 7.0, "gradients_not_finite": 2},
        "head": {"weight_max": "nan", "gradient_max": None, "gradients_not_finite": 1},
    }


def test_a_parameter_without_values_has_no_statistics():
    net = torch.nn.Sequential(torch.nn.Linear(2, 1))
    net.register_parameter("empty", torch.nn.Parameter(torch.zeros(0)))
    assert list(nonfinite_report.statistics(net)) == ["0"]


def test_a_report_names_figures_samples_and_gradients_and_is_a_file(tmp_path):
    net = Net()
    net.head.bias.grad, net.tower.bias.grad = torch.full((1,), math.nan), torch.ones(8)
    values = {"loss": math.inf, "grad_norm": 2.0}
    said = nonfinite_report.make_report(7, values, ["0:3@1", "2:5@0"], model=net, ranks=ALONE, run=tmp_path)
    path = tmp_path / "non-finite" / "step-00000007.json"
    assert str(said) == (
        f"step 7 is not finite (loss = inf); samples 0:3@1 2:5@0; gradients not finite in head.bias; each module in {path}"
    )
    told = json.loads(path.read_text())
    assert (told["step"], told["figures"], told["samples"]) == (7, {"loss": "inf", "grad_norm": 2.0}, ["0:3@1", "2:5@0"])
    assert (told["gradients"], set(told["modules"])) == (["head.bias"], {"tower", "head"})


@pytest.mark.parametrize(("values", "answer"), [([1.0, -2.0], False), ([], False), ([1.0, math.inf], True), ([math.nan], True)])
def test_any_number_that_is_not_finite_is_found(values, answer):
    assert nonfinite.any_not_finite(dict(enumerate(values)), ALONE) is answer


@pytest.mark.parametrize(("skipped", "stops"), [(0, False), (2, False), (3, True), (4, True)])
def test_so_many_steps_may_be_skipped(tmp_path, capsys, skipped, stops):
    settings, said = Guard(non_finite="skip", non_finite_steps=3), nonfinite_report.Report("step 9 is not finite", "samples 0:1@0")
    if stops:
        with pytest.raises(Stopped, match=rf"^step 9 is not finite; samples 0:1@0; {skipped} steps were passed over before, all that"):
            nonfinite_report.respond(said, settings, ALONE, skipped=skipped, run=tmp_path, stage="a", step=8)
    else:
        nonfinite_report.respond(said, settings, ALONE, skipped=skipped, run=tmp_path, stage="a", step=8)
        assert capsys.readouterr().out == "step 9 is not finite, and ends without an update; samples 0:1@0\n"


def test_a_rewind_lists_the_step_under_its_stage_and_counts_those_listed(tmp_path):
    settings, said = Guard(non_finite="rewind", non_finite_steps=2), nonfinite_report.Report("bad", "here")
    for stage, step in (("a", 8), ("b", 3)):
        with pytest.raises(nonfinite.Rewind, match=r"^bad: back to the newest checkpoint, and past this step from there; here$"):
            nonfinite_report.respond(said, settings, ALONE, skipped=99, run=tmp_path, stage=stage, step=step)
    assert (nonfinite.steps_to_skip(tmp_path, "a"), nonfinite.steps_to_skip(tmp_path, "b")) == (frozenset({8}), frozenset({3}))
    with pytest.raises(Stopped, match="2 steps were passed over before"):
        nonfinite_report.respond(said, settings, ALONE, skipped=0, run=tmp_path, stage="a", step=9)
