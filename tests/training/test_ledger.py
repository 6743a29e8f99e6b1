"""The ledger of a run's stages: what each gained and forgot on the same samples, kept whole, shown, and warned of."""

import json
import logging
import os
import signal

import pytest
from PIL import Image

from plait import cli, files
from plait.engine.evaluation import Bench
from plait.engine.monitoring.signals import Paused
from plait.training import ledger
from plait.training.figures import forgetting
from plait.training.figures.forgetting import BASE, RUN_START, START, TEXT
from tests import processes
from tests import toy_family as toy


def near(model, samples, inputs, *, batch, moment):
    """Whether the toy's answer is within 1 of the right one."""
    examples = [inputs.encode(sample, 0) for sample in samples]
    answers = model(inputs.collate(examples)).tolist()
    return [{"id": sample["id"], "correct": abs(answer - y) < 1} for sample, answer, (_, y) in zip(samples, answers, examples, strict=True)]


def share(rows):
    return {"near": sum(row["correct"] for row in rows) / len(rows), "samples": float(len(rows))}


@pytest.fixture
def recipe(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(logging.getLogger("plait"), "propagate", True)
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(toy.BENCHES, "near", Bench(near, share))
    return toy.install(monkeypatch, tmp_path)


def boundaries(run):
    return {path.stem: json.loads(path.read_text()) for path in (run / "ledger").iterdir()}


def losses(run, moment):
    """The held-out loss at a boundary, by hand."""
    rows = boundaries(run)[moment]["benches"]["loss"]["rows"]
    return sum(row["sums"]["error"] for row in rows) / sum(row["weights"]["error"] for row in rows)


def entry(run, stage, bench, against=START):
    (found,) = [one for one in forgetting.of_run(run) if (one["stage"], one["bench"], one["against"]) == (stage, bench, against)]
    return found


def test_each_stage_is_compared_with_its_start_on_the_same_samples(recipe, tmp_path):
    run = toy.train(recipe, tmp_path / "run")
    assert sorted(boundaries(run)) == ["stage-1-projection", "stage-2-vision", "stage-3-language", "start"]
    assert [one["step"] for _, one in sorted(boundaries(run).items())] == [6, 12, 18, 0]
    steps = {row["step"]: row["eval/loss"] for row in files.read_rows(run / "metrics.jsonl") if "eval/loss" in row}
    for stage, step, before in (("projection", 6, "start"), ("vision", 12, "stage-1-projection"), ("language", 18, "stage-2-vision")):
        shown = entry(run, stage, "loss")
        assert shown["after"] == pytest.approx(steps[step], rel=1e-6)  # a batch of one adds up in another order
        assert shown["before"] == pytest.approx(losses(run, before), rel=1e-12)
        assert shown["difference"] == shown["after"] - shown["before"] and shown["low"] < shown["difference"] < shown["high"]


def test_benches_of_later_stages_are_measured_from_the_boundary_before_them(recipe, tmp_path):
    vision = {"name": "vision", "trainable": ["vision"], "evaluate": [{"bench": "near", "samples": 5}]}
    stages = f"stages=[{{name: projection, trainable: [projector]}}, {json.dumps(vision)}, {{name: language, trainable: [language]}}]"
    run = toy.train(recipe, tmp_path / "run", stages, "checkpoint.best=null")
    measured = {name: [*one["benches"]] for name, one in boundaries(run).items()}
    assert measured["start"] == ["loss", TEXT] and measured["stage-1-projection"] == ["loss", "near", TEXT]
    compared = [(one["stage"], one["bench"]) for one in forgetting.of_run(run) if one["against"] == START and one["bench"] != TEXT]
    assert compared == [
        ("projection", "loss"),
        *(("vision", bench) for bench in ("loss", "near")),
        ("language", "loss"),
        ("language", "near"),
    ]
    assert entry(run, "language", "near")["samples"] == 5


def test_texts_are_compared_with_the_stage_before_and_with_the_untrained_base(recipe, tmp_path):
    run = toy.train(recipe, tmp_path / "run")
    base = entry(run, "projection", TEXT)["before"]
    assert [entry(run, stage, TEXT, BASE)["before"] for stage in ("vision", "language")] == [base, base]
    assert entry(run, "language", TEXT)["before"] == entry(run, "vision", TEXT)["after"] != base
    assert entry(run, "vision", TEXT)["on"] == "held-out rows of text alone"


def test_texts_are_those_of_samples_without_their_pictures_where_few_rows_have_none(recipe, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    pictured = [{"x": [0.5] * 4, "y": number, "text": "a", "image": "a.png"} for number in range(20)]
    for alone, on in ((15, "held-out samples, their pictures taken away"), (16, "held-out rows of text alone")):
        rows = [*pictured, *({"x": [0.1] * 4, "y": number, "text": "a"} for number in range(alone))]
        (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        shown = entry(toy.train(recipe, tmp_path / f"run-{alone}"), "vision", TEXT)
        assert (shown["on"], shown["samples"]) == (on, 20 if alone == 15 else 16)
        assert f"text only: the loss of {on}" in forgetting.table([shown])[-1]


def test_a_chained_run_is_compared_with_the_base_of_the_first(recipe, tmp_path):
    first = toy.train(recipe, tmp_path / "first")
    chained = ("stages=[]", "trainable=[vision]", f"from={first}")
    second = toy.train(recipe, tmp_path / "second", *chained)
    third = toy.train(recipe, tmp_path / "third", *chained[:2], f"from={second}")
    base = entry(first, "projection", TEXT)["before"]
    assert [entry(run, "train", TEXT, BASE)["before"] for run in (second, third)] == [base, base]
    (first / "ledger" / "start.json").unlink()
    alone = toy.train(recipe, tmp_path / "alone", f"from={first}")
    assert entry(alone, "vision", TEXT, RUN_START)["before"] == entry(alone, "projection", TEXT)["before"] != base


@pytest.fixture
def more_held_out(recipe):
    """Forty held-out samples, of which the toy's eight say too little."""
    held = recipe.parent / "held.jsonl"
    held.write_text(
        held.read_text() + (recipe.parent / "train.jsonl").read_text() + held.read_text()[: held.read_text().index("\n") + 1] * 2
    )


@pytest.mark.usefixtures("more_held_out")
def test_a_stage_that_forgets_warns_once_with_figures_and_advice(recipe, tmp_path, caplog, capsys):
    run = toy.train(recipe, tmp_path / "run", "stages.2.optim.lr=30.0")
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("after stage ")]
    shown = entry(run, "language", "loss")
    worse = (shown["after"] - shown["before"]) / shown["before"]
    assert lines[0].startswith(
        f"after stage language loss is {shown['after']:.4f}, and was {shown['before']:.4f} at the stage's start: {worse:.1%} worse, more "
        f"than guard.forgetting, 5.0% (40 samples, {shown['difference']:+.4f} [{shown['low']:+.4f}, {shown['high']:+.4f}]). A lower rate "
    )
    assert "rows of text alone in data.train" in lines[1]
    assert [row["warnings"] for row in files.read_rows(run / "metrics.jsonl") if "warnings" in row] == [lines]
    assert boundaries(run)["stage-3-language"]["warnings"] == lines
    assert cli.main(["stages", str(run)]) == 0
    assert f"language    loss       {START}   " in (out := capsys.readouterr().out) and "worse" in out


@pytest.mark.usefixtures("more_held_out")
def test_what_was_forgotten_since_the_base_and_since_the_start_alike_is_told_once(recipe, tmp_path, caplog):
    still = json.dumps([{"name": "still", "trainable": ["vision"], "optim": {"lr": 1e-30}}, {"name": "wild", "trainable": ["language"]}])
    run = toy.train(recipe, tmp_path / "run", f"stages={still}", "stages.1.optim.lr=30.0")
    assert entry(run, "wild", TEXT)["before"] == entry(run, "wild", TEXT, BASE)["before"]
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("after stage wild ")]
    assert [line.split()[3] for line in told] == ["loss", "text"]


def test_a_bench_answers_as_many_samples_at_a_time_as_its_evaluations_do(recipe, tmp_path, monkeypatch):
    calls = []

    def noted(model, samples, inputs, *, batch, moment):
        calls.append((moment, batch))
        return near(model, samples, inputs, batch=batch, moment=moment)

    monkeypatch.setitem(toy.BENCHES, "near", Bench(noted, share))
    settings = ("stages=[]", "trainable=[vision]", "checkpoint.best=null", "evaluate=[{bench: near, batch: 8}]")
    toy.train(recipe, tmp_path / "run", *settings, "guard.forgetting=0.05")
    assert calls.count(("step-00000000", 8)) == 1
    assert [batch for moment, batch in calls if moment == "step-00000006"] == [8, 8]


def test_a_run_of_one_stage_is_measured_where_that_is_asked_for_or_it_goes_on_from_another(recipe, tmp_path):
    one = ("stages=[]", "trainable=[vision]")
    plain = toy.train(recipe, tmp_path / "plain", *one)
    asked = toy.train(recipe, tmp_path / "asked", *one, "guard.forgetting=0.05")
    chained = toy.train(recipe, tmp_path / "chained", *one, f"from={plain}")
    assert [(run / "ledger").exists() for run in (plain, asked, chained)] == [False, True, True]


def test_a_boundary_of_another_step_is_not_the_one_before(recipe, tmp_path):
    run = toy.train(recipe, tmp_path / "run", only="projection")
    toy.train(recipe, run, "stages.0.train.steps=8", "guard.forgetting=null", only="projection")
    stale = boundaries(run)["stage-1-projection"]
    toy.train(recipe, run, "stages.0.train.steps=8")
    fresh = boundaries(run)["stage-1-projection"]
    assert (stale["step"], fresh["step"]) == (6, 8)
    assert entry(run, "vision", "loss")["before"] == pytest.approx(losses(run, "stage-1-projection"))
    assert stale["benches"]["loss"] != fresh["benches"]["loss"]


@pytest.mark.usefixtures("more_held_out")
@pytest.mark.parametrize(("setting", "warned"), [("0.99", True), ("0.0", True), ("stages", True), ("null", None)])
def test_the_limit_is_a_share_and_null_measures_nothing(recipe, tmp_path, caplog, setting, warned):
    run = toy.train(recipe, tmp_path / "run", "stages.2.optim.lr=30.0", f"guard.forgetting={setting}")
    assert (run / "ledger").exists() is (warned is not None)
    assert any("worse, more than guard.forgetting" in record.getMessage() for record in caplog.records) is bool(warned)


def test_nothing_is_measured_for_one_stage_without_benches(recipe, tmp_path):
    plain = ("stages=[]", "evaluate=[]", "checkpoint.best=null", "trainable=[vision]")
    assert not (toy.train(recipe, tmp_path / "one", *plain) / "ledger").exists()
    several = toy.train(recipe, tmp_path / "several", *plain[1:3])
    assert [*boundaries(several)["start"]["benches"]] == ["loss", TEXT]
    assert not (toy.train(recipe, tmp_path / "unheld", *plain[1:3], "data.validation=[]") / "ledger").exists()


def test_training_is_to_the_bit_what_it_is_without_the_ledger(recipe, tmp_path):
    with_it, without = (toy.train(recipe, tmp_path / name, f"guard.forgetting={value}") for name, value in (("a", "0.05"), ("b", "null")))
    assert toy.same(toy.at(with_it, 18).tensors("weights"), toy.at(without, 18).tensors("weights"))
    assert toy.figures(with_it) == toy.figures(without)


@pytest.mark.parametrize("moment", [0, 6, 18])
def test_a_stop_at_a_boundary_measures_it_after_the_restart(recipe, tmp_path, monkeypatch, moment):
    straight = toy.train(recipe, tmp_path / "straight")
    stopped, losses_of = [], ledger.Ledger._losses

    def interrupted(self, *arguments):
        if self.state.step == moment and not stopped:
            stopped.append(moment)
            os.kill(os.getpid(), signal.SIGTERM)
        return losses_of(self, *arguments)

    monkeypatch.setattr(ledger.Ledger, "_losses", interrupted)
    with pytest.raises(Paused):
        toy.train(recipe, tmp_path / "run")
    run = toy.train(recipe, tmp_path / "run")
    assert stopped and boundaries(run) == boundaries(straight)
    assert toy.figures(run) == toy.figures(straight)
    assert toy.same(toy.at(run, 18).tensors("moments"), toy.at(straight, 18).tensors("moments"))


def dies_at(recipe, run, moment):
    write = ledger.Ledger._write

    def dying(self, *arguments):
        write(self, *arguments)
        if self.state.step == moment:
            os._exit(9)

    ledger.Ledger._write = dying
    toy.train(recipe, run)


@pytest.mark.parametrize("moment", [0, 6, 18])
def test_a_kill_between_the_ledger_and_the_checkpoint_changes_nothing(recipe, tmp_path, moment):
    straight = toy.train(recipe, tmp_path / "straight")
    process = processes.forked(dies_at, recipe, tmp_path / "run", moment)
    assert processes.codes([process]) == [9] and (tmp_path / "run" / "ledger").is_dir()
    run = toy.train(recipe, tmp_path / "run")
    assert boundaries(run) == boundaries(straight) and toy.figures(run) == toy.figures(straight)


def test_a_bench_that_fails_costs_neither_the_training_nor_the_other_benches(recipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(ledger, "benches", lambda config, entries: {"near": Bench(lambda *_, **__: 1 / 0, share)})
    run = toy.train(recipe, tmp_path / "run", "evaluate=[{bench: loss}, {bench: near}]")
    assert {*boundaries(run)["start"]["benches"]} == {"loss", TEXT}
    (line, *_) = [record.getMessage() for record in caplog.records if "of the ledger failed" in record.getMessage()]
    assert line.startswith("bench near of the ledger failed after step 0: ZeroDivisionError: division by zero; the run goes on, and what")
    assert len(files.read_rows(run / "bench_failures.jsonl")) == 6  # tried again before a stage


def broken(rows):
    raise ValueError("too few")


@pytest.mark.parametrize(
    ("bench", "reason"),
    [
        (
            Bench(lambda model, samples, *_, **__: [{"id": {1, 2}, "correct": True} for _ in samples], share),
            "its rows are not JSON values: Object of type set",
        ),
        (Bench(near, broken), "ValueError: too few"),
    ],
)
def test_what_a_bench_makes_of_its_rows_costs_no_training(recipe, tmp_path, monkeypatch, bench, reason):
    monkeypatch.setattr(ledger, "benches", lambda config, entries: {"near": bench})
    run = toy.train(recipe, tmp_path / "run", "evaluate=[{bench: loss}, {bench: near}]")
    assert toy.at(run, 18).manifest["state"]["stage_done"]
    assert {one["bench"] for one in forgetting.of_run(run)} == {"loss", TEXT}
    assert any(row["reason"].startswith(reason) for row in files.read_rows(run / "bench_failures.jsonl"))


def test_other_samples_are_not_compared(recipe, tmp_path, monkeypatch):
    run = toy.train(recipe, tmp_path / "run", only="projection")
    path = run / "ledger" / "stage-1-projection.json"
    boundary = json.loads(path.read_text())
    boundary["benches"]["loss"]["rows"][0]["id"] = "another"
    path.write_text(json.dumps(boundary))
    toy.train(recipe, run)
    assert [one["bench"] for one in forgetting.of_run(run) if one["stage"] == "vision" and one["against"] == START] == [TEXT]


def test_a_file_that_cannot_be_read_is_told_and_its_figures_are_not_known(recipe, tmp_path, caplog):
    run = toy.train(recipe, tmp_path / "run", only="projection")
    (run / "ledger" / "stage-1-projection.json").write_text("{")
    toy.train(recipe, run)
    assert any("stage-1-projection.json cannot be read: what it says of" in record.getMessage() for record in caplog.records)
    assert entry(run, "vision", "loss")["before"] == pytest.approx(losses(run, "stage-1-projection"))  # measured again before stage 2


def test_a_fork_takes_the_boundaries_before_it(recipe, tmp_path):
    run = toy.train(recipe, tmp_path / "run")
    assert cli.main(["fork", f"{run}@12", str(tmp_path / "fork"), "--stages.2.optim.lr=1e-3"]) == 0
    assert sorted(boundaries(tmp_path / "fork")) == ["stage-1-projection", "stage-2-vision", "start"]
    forked = toy.train(tmp_path / "fork", tmp_path / "fork")
    assert entry(forked, "language", "loss")["before"] == entry(run, "language", "loss")["before"]
    assert cli.main(["fork", f"{run}@8", str(tmp_path / "earlier")]) == 0
    assert sorted(boundaries(tmp_path / "earlier")) == ["stage-1-projection", "start"]


def test_more_steps_of_a_finished_run_are_compared_with_the_start_of_its_stage(recipe, tmp_path):
    run = toy.train(recipe, tmp_path / "run")
    before = entry(run, "language", "loss")
    toy.train(recipe, run, "stages.2.train.steps=9")
    after = entry(run, "language", "loss")
    assert after["before"] == before["before"] and after["after"] != before["after"]
    assert boundaries(run)["stage-3-language"]["step"] == 21


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_ledger_is_the_same_on_any_number_of_ranks(recipe, tmp_path, strategy):
    settings = ("train.global_batch=6", "evaluate=[{bench: loss}, {bench: near, samples: 5}]")
    one = toy.train(recipe, tmp_path / "one", *settings)
    processes.fork(3, toy.train, recipe, tmp_path / "three", *settings, f"distributed.strategy={strategy}")
    three = boundaries(tmp_path / "three")
    assert three["start"] == boundaries(one)["start"]
    assert three["stage-3-language"]["benches"].keys() == boundaries(one)["stage-3-language"]["benches"].keys()
    for ours, theirs in zip(forgetting.of_run(one), forgetting.of_run(tmp_path / "three"), strict=True):
        assert (theirs["stage"], theirs["bench"], theirs["samples"]) == (ours["stage"], ours["bench"], ours["samples"])
        assert theirs["after"] == pytest.approx(ours["after"], rel=1e-3)  # sums of gradients have another order


def test_stages_as_json_has_the_ledger(recipe, tmp_path, capsys):
    run = toy.train(recipe, tmp_path / "run")
    capsys.readouterr()
    assert cli.main(["stages", str(run), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ledger"] == forgetting.of_run(run) and len(told["ledger"]) == 8
    assert [stage["name"] for stage in told["stages"]] == ["projection", "vision", "language"]
    assert [told["stages"][0][name] for name in ("done", "planned", "start")] == [6, 6, 0]
    assert told["stages"][0]["held_out"][0]["name"] == "loss"


def of(before, after, **more):
    values = {"stage": "s", "bench": "accuracy", "figure": "accuracy", "against": START, "low": None, "high": None, "lower": False}
    return forgetting.Entry(**{**values, "before": before, "after": after, "samples": 64, "on": "x", **more})


@pytest.mark.parametrize(
    ("entry", "loss", "verdict"),
    [
        (of(0.5, 0.45), 0.1, "worse"),
        (of(0.5, 0.45, low=-0.2, high=0.1), 0.1, "not sure"),
        (of(0.5, 0.45, low=-0.09, high=-0.01), 0.1, "worse"),
        (of(0.45, 0.5, low=0.01, high=0.09), 0.0, "better"),
        (of(2.0, 2.5, lower=True, low=0.1, high=0.9), 0.25, "worse"),
        (of(2.0, 1.5, lower=True, low=-0.9, high=-0.1), 0.0, "better"),
        (of(1.0, 1.0), 0.0, "the same"),
        (of(1.0, None), 0.0, "not sure"),
    ],
)
def test_an_entry_says_how_much_was_lost_and_how_surely(entry, loss, verdict):
    assert (entry.loss, entry.verdict) == (pytest.approx(loss), verdict)
    warned = forgetting.warning(entry, 0.05)
    assert (warned is not None) is (verdict == "worse" and loss > 0.05)
    assert forgetting.warning(entry, 0.3) is None


def test_a_run_without_a_ledger_is_shown_without_one(recipe, tmp_path, capsys):
    run = toy.train(recipe, tmp_path / "run", "guard.forgetting=null")
    assert cli.main(["stages", str(run)]) == 0
    assert "gained and forgotten" not in capsys.readouterr().out
