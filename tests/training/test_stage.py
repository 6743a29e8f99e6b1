"""One stage of a run: its plan, the rows and checkpoints it leaves, and the probes it makes."""

import json
import os
import signal
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from plait import files
from plait.assembly.configuration import open_config
from plait.assembly.model import build_model
from plait.config.schema import RunConfig
from plait.data.order import Order, digest
from plait.engine.checkpoints import checkpoint, integrity
from plait.engine.checkpoints.saver import Saver
from plait.engine.evaluation import Bench
from plait.engine.guards import Quarantine
from plait.engine.monitoring.heartbeat import Heartbeat
from plait.engine.monitoring.memory_trial import probed_steps
from plait.engine.monitoring.signals import Paused
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.memory_estimate import Layout
from plait.engine.parallel.sharding import Sharding
from plait.engine.state import PLANNED, State
from plait.errors import PlaitError, Stopped
from plait.training import layout, probes, stage_evaluation
from plait.training.stage_plan import plan_stage, planned_steps
from tests import processes
from tests import toy_family as toy

CPU, GPU = (Ranks(0, 1, torch.device(name)) for name in ("cpu", "cuda"))
ONE_STAGE = ("stages=[]", "evaluate=[]", "checkpoint.best=null", "checkpoint.every_steps=100")


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    return toy.install(monkeypatch, tmp_path)


def planned(recipe, folder, *overrides):
    """The plan of the first stage, without a run."""
    resolved = open_config(recipe, [f"run={folder}", *overrides])
    return plan_stage(resolved.stages[0], build_model(resolved.config, folder, CPU))


def config(**train):
    optim = {"schedule": {"name": "constant", "warmup_steps": 2}}
    return RunConfig.model_validate({"family": "toy", "train": {"global_batch": 16, **train}, "optim": optim})


@pytest.mark.parametrize(
    ("budget", "steps"), [({"steps": 7}, 7), ({"samples": 48}, 3), ({"samples": 49}, 4), ({"samples": 47}, 3), ({"epochs": 2.5}, 25)]
)
def test_a_budget_in_steps_samples_or_epochs_is_rounded_up_to_whole_steps(budget, steps):
    assert planned_steps(config(**budget), Order([160], [1.0], 0, 16)) == steps


def test_a_warm_up_that_would_not_end_in_the_stage_is_refused():
    with pytest.raises(PlaitError, match=r"^optim\.schedule\.warmup_steps is 2, but the stage has 2 steps"):
        planned_steps(config(samples=32), Order([160], [1.0], 0, 16))


@pytest.mark.parametrize(("ranks", "configured", "samples"), [(1, "null", 10), (4, "null", 3), (5, "null", 2), (4, "2", 2)])
def test_a_rank_takes_its_whole_slice_at_a_time_unless_told(recipe, tmp_path, ranks, configured, samples):
    settings = ("train.global_batch=10", f"train.micro_batch={configured}")
    assert planned(recipe, tmp_path / "run", *settings).micro_batch(ranks) == samples


@pytest.mark.parametrize(("wanted", "on_cpu", "on_gpu"), [("never", False, False), ("always", True, True), ("auto", False, True)])
def test_memory_is_probed_where_it_is_wanted(recipe, tmp_path, wanted, on_cpu, on_gpu):
    plan = planned(recipe, tmp_path / "run", f"guard.memory_probe={wanted}")
    assert (probes.wants_memory_probe(plan, CPU), probes.wants_memory_probe(plan, GPU)) == (on_cpu, on_gpu)


@pytest.mark.parametrize(
    ("batch", "start", "steps"), [(4, 0, (0, 16)), (4, 20, (20, 36)), (4, 90, (90, 100)), (100, 3, (3, 4)), (33, 0, (0, 1))]
)
def test_the_probe_for_memory_looks_at_64_samples_and_at_least_a_step(recipe, tmp_path, batch, start, steps):
    plan = planned(recipe, tmp_path / "run", "stages=[]", "train.steps=100", f"train.global_batch={batch}")
    assert probed_steps(start, plan.steps, batch) == steps


def test_the_manifest_says_what_the_stage_trains_and_holds(recipe, tmp_path):
    plan = planned(recipe, tmp_path / "run")
    told = plan.manifest(toy.Net(4, 0), {"projector.weight", "vision.bias"}, 3, "2.99")
    assert told["components"] == {
        name: {"values": values, "trains": trains, "weights": weights, "names": [f"{name}.weight", f"{name}.bias"]}
        for name, values, trains, weights in (
            ("projector", 20, 20, ["projector.weight"]),
            ("vision", 20, 0, ["vision.bias"]),
            ("language", 5, 0, []),
        )
    }
    assert (told["stage"], told["trainable"], told["steps"], told["ranks"]) == ("projection", ["projector"], 6, 3)
    assert told["versions"]["torch"] == "2.99" and len(told["data"]) == 1
    assert {"plait", "python", "numpy", "safetensors", "transformers"} <= told["versions"].keys()


def rows(run):
    return [row for row in toy.figures(run) if "loss" in row]


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (100, [7])])
def test_rows_come_every_so_many_steps_and_at_the_last(recipe, tmp_path, every, steps):
    run = toy.train(recipe, tmp_path / "run", *ONE_STAGE, "train.steps=7", f"track.every_steps={every}")
    assert [row["step"] for row in rows(run)] == steps


def test_a_row_has_the_digest_of_the_samples_of_its_step(recipe, tmp_path):
    plan = planned(recipe, tmp_path / "plan", *ONE_STAGE)
    run = toy.train(recipe, tmp_path / "run", *ONE_STAGE)
    assert [row["ids"] for row in rows(run)] == [f"{digest(plan.order.ids(step)) & 0xFFFFFFFF:08x}" for step in range(6)]


def test_shares_of_sources_are_told_every_hundred_steps_and_at_the_end(recipe, tmp_path):
    two = f"data.train=[{{source: jsonl, path: {tmp_path}/train.jsonl}}, {{source: jsonl, path: {tmp_path}/held.jsonl}}]"
    run = toy.train(recipe, tmp_path / "run", *ONE_STAGE, two, "train.steps=103", "optim.lr=1e-4", "track.every_steps=2")
    told = [row["step"] for row in rows(run) if any(name.startswith("share/") for name in row)]
    assert told == [100, 103]


def saves(monkeypatch):
    """The steps that a run saves, as they are saved."""
    save, steps = Saver.save, []

    def noted(self, folder, *given, **more):
        steps.append(checkpoint.step_of(folder))
        return save(self, folder, *given, **more)

    monkeypatch.setattr(Saver, "save", noted)
    return steps


@pytest.mark.parametrize(("every", "steps"), [("2", [2, 4, 6, 7]), ("7", [7]), ("null", [7]), ("1", [1, 2, 3, 4, 5, 6, 7])])
def test_a_stage_saves_at_its_interval_and_once_at_its_end(recipe, tmp_path, monkeypatch, every, steps):
    saved = saves(monkeypatch)
    run = toy.train(recipe, tmp_path / "run", *ONE_STAGE, "train.steps=7", f"checkpoint.every_steps={every}")
    assert saved == steps
    toy.train(recipe, run, *ONE_STAGE, "train.steps=7", f"checkpoint.every_steps={every}")
    assert saved == steps  # a finished run writes nothing


def test_a_better_figure_is_saved_when_it_is_found(recipe, tmp_path, monkeypatch):
    saved = saves(monkeypatch)
    settings = ("stages=[]", "checkpoint.every_steps=null", "evaluate=[{bench: loss, every_steps: 2}]", "train.steps=6", "optim.lr=1e-3")
    run = toy.train(recipe, tmp_path / "run", *settings)
    losses = {row["step"]: row["eval/loss"] for row in toy.figures(run) if "eval/loss" in row}
    assert list(losses) == [2, 4, 6]
    assert losses[2] > losses[4] > losses[6] and saved == [2, 4, 6]


@pytest.mark.parametrize(("better", "best"), [("lower", 6), ("higher", 2)])
def test_the_best_figure_is_the_lowest_or_the_highest_as_asked(recipe, tmp_path, better, best):
    settings = ("stages=[]", "evaluate=[{bench: loss, every_steps: 2}]", "train.steps=6", "optim.lr=1e-3", f"checkpoint.better={better}")
    state = integrity.locate(toy.train(recipe, tmp_path / "run", *settings)).manifest["state"]
    assert (state["best"]["metric"], state["best"]["step"]) == ("loss", best)


def test_every_checkpoint_has_the_loss_of_the_first_four_training_samples(recipe, tmp_path):
    run = toy.train(recipe, tmp_path / "run", *ONE_STAGE, "trainable=['*']", "train.steps=3")
    net = toy.Net(4, 0)
    net.load_state_dict(toy.at(run, 3).tensors("weights"))
    samples = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()[:4]]
    inputs, targets = torch.tensor([row["x"] for row in samples]), torch.tensor([row["y"] for row in samples])
    expected = ((net({"x": inputs}) - targets) ** 2).mean().item()
    assert toy.at(run, 3).manifest["state"]["probe"] == pytest.approx(expected, rel=1e-5)  # float32 sum of four


def test_the_probe_samples_are_of_the_first_source_and_the_first_epoch_whatever_the_mixture(recipe, tmp_path):
    two = f"data.train=[{{source: jsonl, path: {tmp_path}/train.jsonl}}, {{source: jsonl, path: {tmp_path}/held.jsonl}}]"
    plan = planned(recipe, tmp_path / "run", *ONE_STAGE, two)
    (batch,) = probes.probe_loss(plan, build_model(plan.config, tmp_path / "run", CPU), CPU).batches
    assert [tuple(identity) for micro in batch.micro for identity in micro.ids] == [(0, place, 0) for place in range(4)]


def test_a_source_of_fewer_samples_is_probed_whole(recipe, tmp_path):
    plan = planned(recipe, tmp_path / "run", *ONE_STAGE, f"data.train=[{{source: jsonl, path: {tmp_path}/train.jsonl, limit: 3}}]")
    (batch,) = probes.probe_loss(plan, build_model(plan.config, tmp_path / "run", CPU), CPU).batches
    assert [len(micro.ids) for micro in batch.micro if not micro.padding] == [3]


@pytest.mark.parametrize(("wanted", "before"), [("always", 1), ("never", 0)])
def test_memory_is_probed_before_the_first_step_and_leaves_no_trace(recipe, tmp_path, monkeypatch, wanted, before):
    settings = (*ONE_STAGE, "train.steps=2", "train.micro_batch=2")
    straight = toy.train(recipe, tmp_path / "straight", *settings)
    phase, sums, seen = Heartbeat.phase, toy.Loss.sums, []

    def noted(self, name, step):
        seen.append(name)
        phase(self, name, step)

    def watched(self, model, batch):
        if torch.is_grad_enabled():
            seen.append(len(batch["y"]))
        return sums(self, model, batch)

    monkeypatch.setattr(Heartbeat, "phase", noted)
    monkeypatch.setattr(toy.Loss, "sums", watched)
    run = toy.train(recipe, tmp_path / "run", *settings, f"guard.memory_probe={wanted}")
    assert seen[: seen.index("data")] == ["start", "stage", *[2] * before]  # one micro-batch of the two of a step
    assert toy.same(toy.at(run, 2).tensors("weights"), toy.at(straight, 2).tensors("weights"))


@pytest.mark.parametrize(
    ("settings", "pad"),
    [(["data.max_tokens=7"], "to_max"), (["data.max_tokens=7", "data.pad=none"], "none"), (["data.pad=to_128"], "to_128")],
)
def test_memory_is_probed_at_the_length_that_a_sample_may_have(recipe, tmp_path, monkeypatch, settings, pad):
    made = {"never": [], "always": []}

    class Spied(toy.Inputs):
        def __init__(self, section, assets, *, max_tokens, pad, train):
            made[wanted].append((max_tokens, pad, train))

    monkeypatch.setattr(toy, "FAMILY", SimpleNamespace(**{**vars(toy.FAMILY), "Inputs": Spied}))
    for wanted in made:
        toy.train(recipe, tmp_path / wanted, *ONE_STAGE, "train.steps=1", *settings, f"guard.memory_probe={wanted}")
    (more,) = (Counter(made["always"]) - Counter(made["never"])).elements()
    assert more[1:] == (pad, True)


def test_inputs_train_for_steps_alone(recipe, tmp_path, monkeypatch):
    made = {True: set(), False: set()}

    class Spied(toy.Inputs):
        def __init__(self, section, assets, *, max_tokens, pad, train):
            self.train = train

        def collate(self, examples):
            made[self.train].update(y for _, y in examples)
            return super().collate(examples)

    monkeypatch.setattr(toy, "FAMILY", SimpleNamespace(**{**vars(toy.FAMILY), "Inputs": Spied}))
    settings = ("stages=[]", "train.steps=2", "train.global_batch=30", "evaluate=[{bench: loss, every_steps: 1}]")
    toy.train(recipe, tmp_path / "run", *settings)
    train, held = ([json.loads(line)["y"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "held"))
    assert made == {True: set(train), False: {*held, *train[:4]}}  # the four are the probe's


def test_the_heartbeat_goes_through_the_phases_of_a_stage(recipe, tmp_path, monkeypatch):
    phase, seen = Heartbeat.phase, []

    def noted(self, name, step):
        seen.append((name, step))
        phase(self, name, step)

    monkeypatch.setattr(Heartbeat, "phase", noted)
    settings = ("stages=[]", "train.steps=2", "evaluate=[{bench: loss, every_steps: 2}]", "checkpoint.every_steps=null")
    toy.train(recipe, tmp_path / "run", *settings)
    step = [("data", 0), ("step", 0), ("data", 1), ("step", 1), ("evaluate", 2), ("save", 2)]
    assert seen == [("start", 0), ("stage", 0), *step, ("done", 2)]


def test_a_stage_says_what_it_trains_on_what_and_what_looks_odd(recipe, tmp_path, capsys):
    toy.train(recipe, tmp_path / "run", *ONE_STAGE, "trainable=[vision]", "optim.ema.decay=0.99")
    said = capsys.readouterr().out.splitlines()
    assert "stage 1 train: trains vision 20 of 45 parameters (44.44%)" in said
    assert any(line.startswith("data: ") and line.endswith(" 30 samples; 6 steps of 4") for line in said)
    assert any(line.startswith("warning: optim.ema.decay = 0.99 has a half-life of 69 updates") for line in said)
    assert "stage 1 train is done after step 6: planned steps done" in said


def test_a_stage_is_shown_by_its_name_and_last_step(recipe, tmp_path, capsys):
    toy.train(recipe, tmp_path / "run", "train.steps=5", only="projection")
    assert "projection step 5/5  loss " in capsys.readouterr().err


def test_bad_samples_of_steps_that_are_taken_again_are_listed_once(recipe, tmp_path):
    run = toy.train(recipe, tmp_path / "run", *ONE_STAGE, "train.steps=4")
    files.append_rows(run / "quarantine.jsonl", [{"step": step, "id": "x", "reason": "torn"} for step in (2, 4, 5)])
    toy.train(recipe, run, *ONE_STAGE, "train.steps=6", allow_inexact=True)
    assert [row["step"] for row in files.read_rows(run / "quarantine.jsonl")] == [2, 4]


def test_a_budget_that_has_grown_opens_a_finished_stage_again(recipe, tmp_path):
    run = toy.train(recipe, tmp_path / "run", *ONE_STAGE, "train.steps=4")
    toy.train(recipe, run, *ONE_STAGE, "train.steps=7", allow_inexact=True)
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4, 5, 6, 7]
    assert toy.same(
        toy.at(run, 7).tensors("weights"), toy.at(toy.train(recipe, tmp_path / "b", *ONE_STAGE, "train.steps=7"), 7).tensors("weights")
    )


def nothing(model, samples, inputs, **options):
    """What a bench without answers predicts."""
    return [{} for _ in samples]


def test_a_stage_that_a_plateau_ends_is_judged_by_every_bench_at_its_end(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(toy.BENCHES, "count", Bench(nothing, summarise=lambda rows: {"seen": float(len(rows))}))
    rule = "train.plateau={min_steps: 2, patience_steps: 99, window_steps: 2, min_gain: 0.99}"  # no figure improves that much
    settings = ("evaluate=[{bench: loss, every_steps: 2}, {bench: count}]", "train.steps=50", rule, "stages=[]")
    run = toy.train(recipe, tmp_path / "run", *settings, "train.plateau.min_steps=4")
    held_out = [row for row in toy.figures(run) if "loss" not in row]
    assert [row["step"] for row in held_out if "eval/loss" in row] == [2, 4]
    assert [(row["step"], row["eval/count/seen"]) for row in held_out if "eval/count/seen" in row] == [(4, 8.0)]


def failing(monkeypatch, at):
    """Add the bench `breaks`, which fails at its `at`-th call, counted from 1."""
    calls = []

    def predict(model, samples, inputs, **options):
        calls.append(options["moment"])
        if len(calls) == at:
            raise RuntimeError("out of luck")
        return nothing(model, samples, inputs, **options)

    monkeypatch.setitem(toy.BENCHES, "breaks", Bench(predict, summarise=lambda rows: {"seen": float(len(rows))}))
    return calls


EVALUATED = (
    "guard.forgetting=null",
    "stages=[]",
    "checkpoint.every_steps=null",
    "checkpoint.best=null",
    "evaluate=[{bench: breaks, every_steps: 2}, {bench: loss}]",
)


def test_a_bench_that_fails_is_saved_before_reported_and_the_run_goes_on(recipe, tmp_path, monkeypatch, capsys):
    calls = failing(monkeypatch, at=3)  # the rehearsal, step 2, step 4
    run = toy.train(recipe, tmp_path / "run", *EVALUATED)
    assert calls == ["rehearsal", "step-00000002", "step-00000004", "step-00000006"]
    assert [checkpoint.step_of(folder) for folder in checkpoint.published(run)] == [6, 4]
    assert "warning: bench breaks failed after step 4: RuntimeError: out of luck; the run saves and goes on" in capsys.readouterr().err
    assert [row["step"] for row in toy.figures(run) if "eval/breaks/seen" in row] == [2, 6]
    (failure,) = files.read_rows(run / "bench_failures.jsonl")
    assert failure["reason"] == "RuntimeError: out of luck" and "Traceback" in failure["traceback"]


def test_no_file_of_a_run_holds_what_a_failing_bench_says_of_a_secret(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MY_API_KEY", "sesame-sesame")

    def fails(model, samples, inputs, **options):
        if options["moment"] != "rehearsal":
            raise RuntimeError("no answer to sesame-sesame")
        return nothing(model, samples, inputs, **options)

    monkeypatch.setitem(toy.BENCHES, "breaks", Bench(fails, summarise=lambda rows: {"seen": float(len(rows))}))
    run = toy.train(recipe, tmp_path / "run", *EVALUATED)
    rows = files.read_rows(run / "bench_failures.jsonl")
    assert len(rows) == 3
    assert all("no answer to $MY_API_KEY" in row["reason"] and "no answer to $MY_API_KEY" in row["traceback"] for row in rows)
    said = capsys.readouterr()
    assert "sesame" not in said.out + said.err
    assert not [path for path in run.rglob("*") if path.is_file() and b"sesame-sesame" in path.read_bytes()]


def test_a_bench_that_fails_ends_the_run_where_that_is_set_and_the_step_is_saved(recipe, tmp_path, monkeypatch):
    failing(monkeypatch, at=3)
    with pytest.raises(Stopped, match=r"^bench breaks failed after step 4: RuntimeError: out of luck; everything is saved"):
        toy.train(recipe, tmp_path / "run", *EVALUATED, "guard.bench_failure=stop")
    assert [checkpoint.step_of(folder) for folder in checkpoint.published(tmp_path / "run")] == [4]
    toy.train(recipe, tmp_path / "run", *EVALUATED, "guard.bench_failure=stop")
    assert checkpoint.step_of(checkpoint.published(tmp_path / "run")[0]) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((), "bench breaks cannot be run, and would fail during the run: RuntimeError: out of luck"),
        (
            ("evaluate=[{bench: loss}]", "checkpoint.best=accuracy"),
            "no bench of evaluate gives a figure 'accuracy'; they give loss",
        ),
        (
            ("evaluate=[{bench: loss}]", "train.plateau={metric: acc}"),
            "no bench of evaluate gives a figure 'acc'; they give loss",
        ),
        (
            ("evaluate=[{bench: loss, data: [{source: jsonl, path: none.jsonl}]}]",),
            "data source jsonl:none.jsonl: there is no file",
        ),
    ],
)
def test_what_an_evaluation_will_need_is_tried_before_the_first_step(recipe, tmp_path, monkeypatch, settings, message):
    failing(monkeypatch, at=1)
    with pytest.raises(PlaitError, match=message):
        toy.train(recipe, tmp_path / "run", *EVALUATED, *settings)
    assert not checkpoint.published(tmp_path / "run")
    toy.train(recipe, tmp_path / "run", *EVALUATED, "evaluate=[]")


@pytest.mark.parametrize(("better", "best"), [("lower", 4), ("higher", 2)])
def test_a_figure_that_is_not_finite_is_never_the_best_and_no_part_of_a_plateau(recipe, tmp_path, monkeypatch, capsys, better, best):
    figures = iter([0.0, 2.0, 1.0, float("nan"), float("inf"), float("-inf")])  # the first is the rehearsal's
    monkeypatch.setitem(toy.BENCHES, "odd", Bench(nothing, summarise=lambda rows: {"odd": next(figures)}))
    settings = (
        "stages=[]",
        "guard.forgetting=null",
        "train.steps=10",
        "evaluate=[{bench: odd, every_steps: 2}]",
        "checkpoint.best=odd",
        f"checkpoint.better={better}",
    )
    rule = "train.plateau={metric: odd, min_steps: 2, patience_steps: 99, window_steps: 99}"
    run = toy.train(recipe, tmp_path / "run", *settings, rule, f"checkpoint.better={better}")
    state = toy.at(run, 10).manifest["state"]
    assert state["best"]["step"] == best
    assert state["history"] == [[2, 2.0], [4, 1.0]]
    assert "warning: step 6: held out, odd is nan: it counts neither as the best nor for a plateau" in capsys.readouterr().err


def test_settings_of_a_component_that_the_model_lacks_are_refused_before_the_run(recipe, tmp_path):
    with pytest.raises(PlaitError, match="nose"):
        planned(recipe, tmp_path / "run", "optim.components={nose: {lr: 0.1}}")


def asked_to_stop(monkeypatch, moment, number=signal.SIGTERM):
    """Send this process a signal when a run reaches (phase, step)."""
    phase = Heartbeat.phase

    def noted(self, name, step):
        phase(self, name, step)
        if (name, step) == moment:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Heartbeat, "phase", noted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize(("moment", "saved"), [(("step", 3), [4]), (("data", 3), [3]), (("evaluate", 4), [4])])
def test_a_run_that_is_asked_to_stop_saves_where_it_is_and_goes_on_from_there(recipe, tmp_path, monkeypatch, moment, saved, number):
    settings = ("stages=[]", "checkpoint.every_steps=null", "checkpoint.best=null", "evaluate=[{bench: loss, every_steps: 4}]")
    straight = toy.train(recipe, tmp_path / "straight", *settings)
    with monkeypatch.context() as patch:
        asked_to_stop(patch, moment, number)
        with pytest.raises(Paused, match=rf"^stopped by {number.name} after step {saved[0]} of 6, all saved; the same command continues$"):
            toy.train(recipe, tmp_path / "run", *settings)
    assert [checkpoint.step_of(folder) for folder in checkpoint.published(tmp_path / "run")] == saved
    toy.train(recipe, tmp_path / "run", *settings)
    assert toy.figures(tmp_path / "run") == toy.figures(straight)
    assert toy.same(toy.at(tmp_path / "run", 6).tensors("weights"), toy.at(straight, 6).tensors("weights"))


def test_a_stage_that_stopped_within_its_last_evaluation_only_repeats_that(recipe, tmp_path, monkeypatch):
    calls = failing(monkeypatch, at=99)
    with monkeypatch.context() as patch:
        asked_to_stop(patch, ("evaluate", 6))
        with pytest.raises(Paused, match=r"^stopped by SIGTERM after step 6 of 6, all saved"):
            toy.train(recipe, tmp_path / "run", *EVALUATED, "evaluate=[{bench: breaks}]")
    assert calls == ["rehearsal"]
    toy.train(recipe, tmp_path / "run", *EVALUATED, "evaluate=[{bench: breaks}]")
    assert calls == ["rehearsal", "step-00000006"]
    assert toy.at(tmp_path / "run", 6).manifest["state"]["stage_done"] == PLANNED


def test_a_stop_while_the_evaluation_of_a_step_is_made_up_for_rehearses_nothing(recipe, tmp_path, monkeypatch):
    settings = ("stages=[]", "checkpoint.every_steps=null", "checkpoint.best=null", "evaluate=[{bench: loss, every_steps: 4}]")
    rehearse = stage_evaluation.Evaluations.rehearse

    def noted(self, state, wanted):
        with (tmp_path / "rehearsed").open("a") as file:
            file.write(f"{state.step} ")
        rehearse(self, state, wanted)

    monkeypatch.setattr(stage_evaluation.Evaluations, "rehearse", noted)
    asked_to_stop(monkeypatch, ("evaluate", 4))
    with pytest.raises(Paused, match=r"^stopped by SIGTERM after step 4 of 6"):
        toy.train(recipe, tmp_path / "run", *settings)
    codes = processes.codes(processes.start(1, toy.train, recipe, tmp_path / "run", *settings))
    assert codes == [Paused.exit_code]  # it ends at once: nothing is trained since the checkpoint
    assert checkpoint.step_of(checkpoint.published(tmp_path / "run")[0]) == 4
    assert (tmp_path / "rehearsed").read_text() == "0 "


def test_only_a_stage_that_goes_on_is_compared_with_its_checkpoint(recipe, tmp_path, capsys):
    run = toy.train(recipe, tmp_path / "run", "train.steps=2", only="projection")
    assert "probe loss" not in capsys.readouterr().out
    toy.train(recipe, run, "train.steps=4", only="projection", allow_inexact=True)
    said = capsys.readouterr().out
    assert said.count("probe loss") == 1 and ": exact" in said.split("probe loss")[1].splitlines()[0]


@pytest.mark.parametrize(("samples", "size", "accumulating"), [(4, 2, False), (2, 2, True), (3, 2, True)])
def test_a_layout_knows_whether_gradients_wait_for_several_micro_batches(
    recipe, tmp_path, monkeypatch, capsys, samples, size, accumulating
):
    asked = []
    monkeypatch.setattr(layout.strategy, "choose", lambda *_, accumulating: asked.append(accumulating) or (Layout(), "as asked"))
    resolved = open_config(recipe, [f"run={tmp_path / 'run'}", "train.global_batch=8"])
    bundle = build_model(resolved.config, tmp_path / "run", CPU)
    bundle = replace(bundle, sharding=Sharding(bundle.model))
    with layout.lay_out(plan_stage(resolved.stages[0], bundle), bundle, State(bundle.model), Ranks(0, size, torch.device("cpu")), samples):
        assert asked == [accumulating]
    assert "as asked" in capsys.readouterr().out


def test_one_rank_divides_nothing_whatever_is_set(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(layout.strategy, "choose", None)  # it would fail if it was called
    toy.train(recipe, tmp_path / "run", *ONE_STAGE, "distributed.strategy=fsdp", "train.steps=1")
    assert toy.at(tmp_path / "run", 1).manifest["ranks"] == 1


def test_blocks_are_as_they_were_once_a_stage_has_ended(recipe, tmp_path):
    resolved = open_config(recipe, [f"run={tmp_path / 'run'}", "distributed.activation_checkpointing=full"])
    bundle = build_model(resolved.config, tmp_path / "run", CPU)
    blocks = bundle.family.blocks(bundle.model)
    with layout.lay_out(plan_stage(resolved.stages[0], bundle), bundle, State(bundle.model), CPU, 1):
        assert blocks and all("forward" in block.__dict__ for block in blocks)
    assert not any("forward" in block.__dict__ for block in blocks)


def test_the_digest_of_a_step_counts_no_sample_that_fills_a_rank(recipe, tmp_path):
    settings = (*ONE_STAGE, "train.global_batch=3", "train.micro_batch=1", "train.steps=3")
    alone = toy.train(recipe, tmp_path / "alone", *settings)
    processes.fork(2, toy.train, recipe, tmp_path / "two", *settings)  # 1 sample and a repetition there, 2 here
    assert [row["ids"] for row in rows(tmp_path / "two")] == [row["ids"] for row in rows(alone)]


def test_what_ends_a_run_is_told_although_its_last_checkpoint_cannot_be_written_either(recipe, tmp_path, monkeypatch, capsys):
    def full(folder, *others):
        raise PlaitError("no space left")

    def stop(self, step, *others):
        if step == 3:
            raise Stopped("too many bad samples")

    monkeypatch.setattr(checkpoint, "write", full)
    monkeypatch.setattr(Quarantine, "add", stop)
    with pytest.raises(Stopped, match="too many bad samples"):
        toy.train(recipe, tmp_path / "run", *ONE_STAGE, "checkpoint.async_save=true", "checkpoint.every_steps=2")
    assert "warning: the last checkpoint: no space left\n" in capsys.readouterr().err
