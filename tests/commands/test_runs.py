"""`plait runs` lists the runs of a folder, of any family, with what was set differently."""

import json
import re

import pytest

from plait import cli
from plait.commands.actions.runs import find
from plait.engine.checkpoints import rundir
from tests import toy_family as toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three runs of the toy, one of them deeper, one stopped after a stage; a recipe beside them; and one run that is damaged."""
    place = tmp_path_factory.mktemp("listed")
    with pytest.MonkeyPatch.context() as patch:
        recipe = toy.install(patch, place)
        toy.train(recipe, place / "runs/low", "optim.lr=1e-3")
        toy.train(recipe, place / "runs/sweep/high", "optim.lr=1e-1")
        toy.train(recipe, place / "runs/short", "optim.lr=1e-3", only="projection")
        (place / "runs/recipes").mkdir()
        (place / "runs/recipes/config.yaml").write_text(recipe.read_text())
        (place / "runs/broken").mkdir()
        (place / "runs/broken/config.yaml").write_text("family: [\n")
        (place / "runs/broken/identity").write_text("0" * 12)
        yield place


def listed(capsys, *words):
    capsys.readouterr()
    assert cli.main(["runs", *words]) == 0
    return capsys.readouterr().out.splitlines()


def last_loss(run):
    return [row["loss"] for row in toy.figures(run) if "loss" in row][-1]


def test_each_run_is_a_line_with_how_far_and_how_good_it_is(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    head, *lines = listed(capsys)
    columns = ["run", "family", "state", "stage", "step", "loss", "best held out", "time", "checkpoints", "last record"]
    assert re.split(r"\s{2,}", head) == columns
    cells = {(row := re.split(r"\s{2,}", line))[0]: row[1:] for line in lines[:3]}
    assert list(cells) == ["low", "short", "sweep/high"]
    assert cells["low"][:5] == ["theworld", "done", "language (3 of 3)", "18", f"{last_loss(folder / 'runs/low'):.4g}"]
    assert cells["short"][1:4] == ["stopped", "projection (1 of 3)", "6"]
    best = min((row["eval/loss"], row["step"]) for row in toy.figures(folder / "runs/low") if "eval/loss" in row and row["stage"] == 3)
    assert cells["low"][5] == f"loss {best[0]:.4g} at {best[1]}"
    assert re.fullmatch(r"\d+\.\d kB", cells["low"][7])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", cells["low"][8])


def test_a_run_that_cannot_be_read_costs_its_own_line_only(folder, capsys):
    lines = listed(capsys, str(folder / "runs"))
    (line,) = [line for line in lines if line.startswith("cannot be read: ")]
    assert "broken/config.yaml" in line


def test_what_was_set_differently_stands_below(folder, capsys):
    lines = listed(capsys, str(folder / "runs"))
    start = lines.index("set differently among the 3 runs of theworld")
    assert lines[start + 1].split() == ["optim.lr", "0.001", "(low,", "short),", "0.1", "(sweep/high)"]


def test_runs_are_ordered_by_a_held_out_figure(folder, capsys):
    best = {
        name: min(row["eval/loss"] for row in rows if row["stage"] == max(row["stage"] for row in rows))
        for name in ("low", "short", "sweep/high")
        for rows in [[row for row in toy.figures(folder / "runs" / name) if "eval/loss" in row]]
    }
    names = [line.split()[0] for line in listed(capsys, str(folder / "runs"), "--by=loss")[1:4]]
    assert names == sorted(best, key=best.__getitem__)
    assert cli.main(["runs", str(folder / "runs"), "--by=recall"]) == 2
    assert capsys.readouterr().err == "plait: no run has a held-out figure 'recall'; they have loss\n"


def test_json_has_the_figures_of_every_run_and_the_faults(folder, capsys):
    told = json.loads("\n".join(listed(capsys, str(folder / "runs"), "--json")))
    low = told["runs"][0]
    assert (low["run"], low["state"], low["step"], low["stages"]) == (str(folder / "runs/low"), "done", 18, 3)
    assert low["loss"] == pytest.approx(last_loss(folder / "runs/low"))
    assert low["held_out"][0]["name"] == "loss"
    assert low["checkpoint_bytes"] == sum(path.stat().st_size for path in (folder / "runs/low").glob("stage-*/step-*/*"))
    assert list(told["unreadable"]) == [str(folder / "runs/broken")]


def test_a_run_that_trains_now_is_running(folder, capsys):
    with rundir.lock(folder / "runs/short"):
        assert re.search(r"^short +theworld  running ", "\n".join(listed(capsys, str(folder / "runs"))), re.M)


def test_a_folder_of_recipes_is_no_run_and_a_run_itself_may_be_given(folder, capsys):
    assert [path.name for path in find.runs_below(folder / "runs")] == ["broken", "low", "short", "high"]
    assert listed(capsys, str(folder / "runs/low"))[1].startswith("low ")


def test_a_folder_without_runs_is_one_line(tmp_path, capsys):
    for place, line in (
        (tmp_path, f"{tmp_path} holds no run; plait runs DIR looks into folders of DIR, and their folders"),
        (tmp_path / "no", f"{tmp_path / 'no'} is not there: give a folder with runs in it"),
    ):
        assert cli.main(["runs", str(place)]) == 2
        assert capsys.readouterr().err == f"plait: {line}\n"
