"""Losses by source: wrong labels are named within 50 steps, healthy sources are left alone, and looking changes no training."""

import json

import pytest

from plait import cli, files
from plait.assembly import sample_losses
from plait.keys import rng
from plait.training.monitor import source_rule
from plait.training.monitor.source_rule import Fall
from tests import processes
from tests import toy_family as toy

SETTINGS = (
    "stages=[]",
    "trainable=[projector,vision,language]",
    "checkpoint.every_steps=25",
    "checkpoint.best=null",
    "evaluate=[]",
    "optim.ema=null",
    "train.global_batch=64",
    "model.width=8",
    "train.steps=50",
)


def write(folder, name, *, wrong=False, task=None, count=200):
    """Samples whose answer is the sum of their numbers, or that of another sample's."""
    xs = rng(name).standard_normal((count, 4)).round(3)
    truths = xs[rng("shuffled", name).permutation(count)] if wrong else xs
    rows = [{"x": x, "y": round(sum(truth), 3), "text": "a"} for x, truth in zip(xs.tolist(), truths.tolist(), strict=True)]
    rows = [{**row, "task": task} if task else row for row in rows]
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    return toy.install(monkeypatch, tmp_path)


def sources(folder, *names):
    return "data.train=[" + ", ".join(f"{{source: jsonl, path: {folder}/{name}.jsonl}}" for name in names) + "]"


def rows(run):
    return [row for row in files.read_rows(run / "metrics.jsonl") if source_rule.is_row(row)]


def warnings(run):
    return [line for row in rows(run) for line in row.get("warnings", [])]


def test_a_source_with_wrong_labels_is_named_within_50_steps(recipe, tmp_path, capsys):
    write(tmp_path, "good")
    write(tmp_path, "bad", wrong=True)
    toy.train(recipe, tmp_path / "run", *SETTINGS, sources(tmp_path, "good", "bad"))
    start, end = rows(tmp_path / "run")
    assert (start["step"], end["step"]) == (0, 50)
    (line,) = warnings(tmp_path / "run")
    first, now = (next(value for name, value in row.items() if name.startswith("loss_by/") and "bad" in name) for row in (start, end))
    assert "bad" in line.partition(": its loss has not fallen in 50 steps (")[0] and f"({first:.3g} at first, {now:.3g} now)" in line
    assert line.endswith("Look at its samples (plait data inspect); data.train.1.weight and .limit take less of it")
    assert cli.main(["why", str(tmp_path / "run")]) == 0
    assert f"{first:.4g} at step 0, {now:.4g} at step 50" in capsys.readouterr().out


def test_a_task_with_wrong_labels_is_named(recipe, tmp_path):
    for task in ("count", "caption", "colour"):
        write(tmp_path, "all", task=task, wrong=task == "count")
    toy.train(recipe, tmp_path / "run", *SETTINGS, sources(tmp_path, "all"), "train.global_batch=96")
    assert {name.rpartition("/")[2] for name in rows(tmp_path / "run")[0] if name.startswith("loss_by/")} >= {"count", "caption", "colour"}
    (line,) = warnings(tmp_path / "run")
    assert line.partition(": its loss")[0].endswith("/count")


TASKS = ("sum", "count", "mean", "most", "least", "shade")


def of_tasks(recipe, folder, steps):
    """The looks of a run over two sources of six tasks each."""
    toy.train(recipe, folder / "run", *SETTINGS, sources(folder, "one", "two"), f"train.steps={steps}", "checkpoint.every_steps=null")
    return rows(folder / "run")


def test_many_tasks_are_looked_at_by_fewer_samples_each_and_of_a_shorter_stage_the_sources_which_is_told(recipe, tmp_path, capsys):
    for source in ("one", "two"):
        for task in TASKS:
            write(tmp_path, source, task=task, count=40)
    first, *later = of_tasks(recipe, tmp_path, 80)
    assert {name: len(values) for name, values in first[source_rule.SAMPLES].items()} == {"jsonl_one.jsonl": 8, "jsonl_two.jsonl": 8}
    assert [row["step"] for row in later] == [50]
    told = "the losses of tasks are not looked at, those of sources are: 80 steps are too few to pay for them"
    assert told in capsys.readouterr().out
    *_, last = of_tasks(recipe, tmp_path, 120)  # the same run goes on, and what was never looked at is not compared
    groups = last[source_rule.SAMPLES]
    assert last["step"] == 100, "twice 96 samples forward are 1 % of 100 steps of 64, which count three times"
    assert {len(values) for name, values in groups.items() if "/" in name} == {8} and len(groups) == 14
    assert all(len(values) == 48 for name, values in groups.items() if "/" not in name) and warnings(tmp_path / "run") == []
    assert told not in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(10))
def test_healthy_sources_are_left_alone(recipe, tmp_path, seed):
    write(tmp_path, "one")
    write(tmp_path, "two")
    settings = (f"seed={seed}", f"optim.lr={(1e-2, 1e-3, 3e-4)[seed % 3]}", "train.steps=200", "checkpoint.every_steps=null")
    toy.train(recipe, tmp_path / "run", *SETTINGS, sources(tmp_path, "one", "two"), *settings)
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 50, 100, 200] and warnings(tmp_path / "run") == []


def test_looking_changes_no_weights_and_is_off_without_a_monitor(recipe, tmp_path):
    write(tmp_path, "good")
    write(tmp_path, "bad", wrong=True)
    on, off = (
        toy.train(recipe, tmp_path / name, *SETTINGS, sources(tmp_path, "good", "bad"), f"track.monitor={name}")
        for name in ("true", "false")
    )
    assert len(rows(on)) == 2 and rows(off) == []
    assert toy.same(toy.at(on, 50).tensors("weights"), toy.at(off, 50).tensors("weights"))


def test_a_look_that_fails_is_told_and_costs_no_training(recipe, tmp_path, monkeypatch):
    def broken(*given):
        raise ZeroDivisionError("no loss today")

    write(tmp_path, "one")
    write(tmp_path, "two")
    monkeypatch.setattr(sample_losses, "row", broken)
    toy.train(recipe, tmp_path / "run", *SETTINGS, sources(tmp_path, "one", "two"))
    (failure,) = files.read_rows(tmp_path / "run/bench_failures.jsonl")
    assert (failure["step"], failure["bench"], failure["reason"]) == (0, "source losses", "ZeroDivisionError: no loss today")
    assert rows(tmp_path / "run") == [] and toy.at(tmp_path / "run", 50)


def test_one_source_without_tasks_and_a_short_stage_are_not_looked_at(recipe, tmp_path):
    write(tmp_path, "one")
    write(tmp_path, "two")
    toy.train(recipe, tmp_path / "alone", *SETTINGS, sources(tmp_path, "one"))
    toy.train(recipe, tmp_path / "short", *SETTINGS, sources(tmp_path, "one", "two"), "train.steps=49")
    toy.train(
        recipe, tmp_path / "small", *SETTINGS, sources(tmp_path, "one", "two"), "train.global_batch=4"
    )  # 1 % of the passes is too few
    assert [rows(tmp_path / name) for name in ("alone", "short", "small")] == [[], [], []]


def test_a_continued_run_compares_with_the_first_start_and_repeats_no_warning(recipe, tmp_path):
    write(tmp_path, "good")
    write(tmp_path, "bad", wrong=True)
    given = (*SETTINGS, sources(tmp_path, "good", "bad"), "train.steps=100")
    straight = toy.train(recipe, tmp_path / "straight", *given)
    for step in (10, 30, 60):
        with pytest.raises(ZeroDivisionError):
            toy.train(recipe, tmp_path / "cut", *given, hooks=(lambda state, row, step=step: 1 // (state.step - step),))
    toy.train(recipe, tmp_path / "cut", *given)
    assert rows(tmp_path / "cut") == rows(straight) and len(warnings(straight)) == 1


def test_ranks_measure_together_what_one_measures(recipe, tmp_path):
    write(tmp_path, "good")
    write(tmp_path, "bad", wrong=True)
    given = (*SETTINGS, sources(tmp_path, "good", "bad"))
    toy.train(recipe, tmp_path / "one", *given)
    processes.fork(2, toy.train, recipe, tmp_path / "two", *given, "distributed.strategy=fsdp")
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for group, losses in one[source_rule.SAMPLES].items():
            assert two[source_rule.SAMPLES][group] == pytest.approx(losses, rel=1e-3)  # sums of gradients have another order


def test_a_source_that_the_model_knows_or_that_falls_with_the_others_is_left_alone():
    falling, still = Fall(2.0, 1.0, 0.5, True, 0.6), Fall(2.0, 2.1, -0.05, False, 0.1)
    assert [group for group, _, _ in source_rule.stuck({"a": falling, "b": falling, "c": still})] == ["c"]
    assert not [*source_rule.stuck({"a": falling, "b": Fall(0.4, 0.4, 0.0, False, 0.1)})], "it is known already"
    assert not [*source_rule.stuck({"a": falling, "b": Fall(2.0, 1.95, 0.025, False, 0.5)})], "it may have fallen as far"
    assert not [*source_rule.stuck({"a": still, "b": still})] and not [*source_rule.stuck({"b": still})]


def test_falls_are_of_the_samples_that_both_looks_have():
    first = {"a": [2.0] * 8 + [None], "b": [1.0] * 7, "c": [1.0, 3.0] * 4}
    now = {"a": [1.0] * 9, "b": [0.5] * 7, "c": [3.0, 1.0] * 4}
    found = source_rule.falls(first, now)
    assert found.keys() == {"a", "c"} and found["a"] == Fall(2.0, 1.0, 0.5, True, 0.5)
    assert found["c"].share == 0.0 and not found["c"].sure and found["c"].high > 0
