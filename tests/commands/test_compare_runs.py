"""`plait compare` shows runs side by side, and `plait prove` takes a run by every name of its checkpoints."""

import re

import pytest

from plait import cli
from plait.assembly import checkpoint_specs
from plait.commands.actions import compare
from plait.commands.prove import prove
from plait.engine.evaluation import Bench
from plait.errors import PlaitError
from tests import toy_family as toy


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The recipe of the toy, and two runs of it that differ in their learning rate."""
    monkeypatch.chdir(tmp_path)
    recipe = toy.install(monkeypatch, tmp_path)
    for name, rate in (("low", "1e-3"), ("high", "1e-2")):
        toy.train(recipe, name, f"optim.lr={rate}")
    return recipe


def table(text):
    return {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())}


def losses(run, stage):
    rows = [row for row in toy.figures(run) if "eval/loss" in row]
    return [(row["eval/loss"], row["step"]) for row in rows if row["stage"] == stage]


def test_two_learning_rates_are_compared_in_one_command(made, tmp_path, capsys):
    capsys.readouterr()
    assert cli.main(["compare", "low", "high"]) == 0
    rows = table(capsys.readouterr().out)
    assert rows["low"] == ["high"], "the head"
    assert rows["optim.lr"] == ["0.001", "0.01"]
    assert [name for name, cells in rows.items() if "." in name and cells] == ["optim.lr"], "the only setting that differs"
    for number, stage in ((1, "projection"), (3, "language")):
        assert rows[f"{stage} steps"] == ["6 of 6", "6 of 6"]
        best = [min(losses(tmp_path / run, number)) for run in ("low", "high")]
        assert rows[f"{stage} best loss"] == [f"{value:.4g} at step {step}" for value, step in best]
        assert rows[f"{stage} last loss"] == [f"{losses(tmp_path / run, number)[-1][0]:.4g}" for run in ("low", "high")]
        assert all(re.fullmatch(r"\d:\d\d:\d\d", cell) for cell in rows[f"{stage} time"])


def last_lines(capsys, *runs):
    """What `plait compare` says below its table."""
    capsys.readouterr()
    assert cli.main(["compare", *runs]) == 0
    return [line for line in capsys.readouterr().out.splitlines() if not re.search(r"\S  ", line) and line.strip()]


def test_the_better_run_is_named_with_its_figure(made, tmp_path, capsys):
    low, high = (min(losses(tmp_path / run, 3))[0] for run in ("low", "high"))
    better, worse = ("low", "high") if low < high else ("high", "low")
    values = f"({min(low, high):.4g} against {max(low, high):.4g}; lower is better)"
    end = "; there is no interval, so another seed may say otherwise"
    line = f"language, best loss: {better} is better than {worse} by {abs(low - high):.4g} {values}{end}"
    assert last_lines(capsys, "low", "high") == last_lines(capsys, "high", "low") == [line]


@pytest.fixture
def scored(made, monkeypatch):
    """Train runs of the toy that answer so many of 30 questions: a function of the number and the run's name."""
    right = [0]

    def predict(model, samples, inputs, *, batch, moment):
        return [{"id": sample["id"], "correct": number < right[0]} for number, sample in enumerate(samples)]

    monkeypatch.setitem(toy.BENCHES, "hits", Bench(predict, lambda rows: {"hits": sum(row["correct"] for row in rows) / len(rows)}))
    held = f"[{{bench: hits, batch: 30, data: [{{source: jsonl, path: {made.parent}/train.jsonl}}]}}]"

    def train(count, name, *settings):
        right[0] = count
        toy.train(made, name, "stages=[]", "train.steps=1", "checkpoint.best=null", f"evaluate={held}", *settings)

    return train


def test_a_difference_is_held_against_its_interval(scored, capsys):
    for count, name in ((29, "most"), (8, "few"), (10, "some")):
        scored(count, name)
    assert re.fullmatch(
        r"train, best hits: most is better than few by 0\.7 \(0\.9667 against 0\.2667; higher is better\), "
        r"which is more than the 95 % interval of a difference, ±0\.\d+",
        *last_lines(capsys, "few", "most"),
    )
    (line,) = last_lines(capsys, "few", "some")
    assert line.startswith(
        "train, best hits: some is better than few by 0.06667 (0.3333 against 0.2667; higher is better), which is within"
    )
    assert line.endswith(": these samples do not tell; paired, they tell more: plait eval some --bench hits --against few")


def test_what_cannot_be_compared_is_said(made, scored, capsys):
    scored(3, "hits")
    nothing = (
        "nothing can be compared: no stage has a held-out figure in all runs; evaluate: measures while training, plait eval RUN after it"
    )
    assert last_lines(capsys, "low", "hits") == [nothing]
    for name, seed in (("one", 1), ("two", 2)):
        toy.train(made, name, f"seed={seed}", "evaluate.0.samples=4", "stages=[]")
    said = "cannot be compared, as it is not of the same held-out data: seed differs; plait eval measures both on the same"
    assert last_lines(capsys, "one", "two") == [f"train, best loss: {said}"]
    for name, samples in (("three", 4), ("four", 5)):
        toy.train(made, name, f"evaluate.0.samples={samples}", "stages=[]")
    assert last_lines(capsys, "three", "four") == [f"train, best loss: {said.replace('seed differs', 'evaluate.samples differs')}"]


def test_stages_shows_what_a_bench_measured_though_no_checkpoint_is_chosen_by_it(scored, capsys):
    scored(15, "half")
    capsys.readouterr()
    assert cli.main(["stages", "half"]) == 0
    assert "  held out   best hits 0.5 at step 1, last 0.5\n" in capsys.readouterr().out


def test_a_table_too_wide_for_the_terminal_has_the_runs_one_below_another(made, monkeypatch, capsys):
    monkeypatch.setattr(compare, "columns", lambda stream: 30)
    capsys.readouterr()
    assert cli.main(["compare", "low", "high"]) == 0
    assert capsys.readouterr().out.startswith("optim.lr\n  low   0.001\n  high  0.01\nprojection steps\n  low   6 of 6\n")


def test_three_runs_are_compared_and_what_one_has_not_is_a_dash(made, tmp_path, capsys):
    toy.train(made, "short", "train.steps=4", "optim.lr=1e-3", only="projection")
    capsys.readouterr()
    assert cli.main(["compare", "low", "high", "short"]) == 0
    rows = table(capsys.readouterr().out)
    assert rows["optim.lr"] == ["0.001", "0.01", "0.001"]
    assert rows["train.steps"] == ["6", "6", "4"]
    assert rows["projection steps"] == ["6 of 6", "6 of 6", "4 of 4"]
    assert rows["vision steps"] == ["6 of 6", "6 of 6", "-"]


def test_runs_that_cannot_be_compared_are_one_line(made, capsys):
    for words, line in (
        (["low", "./low"], "low is given twice: a run is compared with others"),
        (["low", "nowhere"], "nowhere is no run directory: it has no config.yaml"),
    ):
        capsys.readouterr()
        assert cli.main(["compare", *words]) == 2
        assert capsys.readouterr().err == f"plait: {line}\n"
    assert cli.main(["compare", "low"]) == 2
    assert "the following arguments are required: RUN" in capsys.readouterr().err


@pytest.mark.parametrize("spec", ["low", "low@4", "low/vision", "low/vision@best", "low/latest", "low/stage-1-projection/step-00000002"])
def test_prove_takes_every_name_of_a_checkpoint(spec, made, monkeypatch, capsys):
    taken = []
    monkeypatch.setattr(prove, "prove", lambda resolved, **_: taken.append(resolved.config))
    assert cli.main(["prove", spec, "--steps=2"]) == 0, capsys.readouterr().err
    assert [(config.optim.lr, str(config.run)) for config in taken] == [(0.001, "low")]


def test_prove_says_which_checkpoint_or_file_there_is_not(made, capsys):
    missing = {"low@5": "low has no checkpoint at step '5'; it has 2, 4, 6", "lo@4": "'lo@4' does not exist; did you mean low?"}
    for spec, said in missing.items():
        capsys.readouterr()
        assert cli.main(["prove", spec]) == 2
        assert said in capsys.readouterr().err
    assert cli.main(["prove", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
    assert checkpoint_specs.run_named("nowhere.yaml") is None
    with pytest.raises(PlaitError, match="at step '7'"):
        checkpoint_specs.run_named("low@7")
