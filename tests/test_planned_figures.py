"""The GB that heads of recipes state are those of `plait plan`; benchmarks/planning.py --stated has the large ones, which take minutes."""

import runpy
from pathlib import Path

import pytest

made = runpy.run_path(str(Path(__file__).resolve().parents[1] / "benchmarks" / "planning.py"))


def test_every_figure_that_is_compared_is_stated():
    names = [name for file in made["STATED"] for name, _ in made["stated"](file)]
    assert set(names) == set(made["PLANNED"])


def test_no_recipe_states_a_figure_that_is_not_compared():
    configs = made["ROOT"] / "configs"
    heads = {path.relative_to(made["ROOT"]).as_posix(): path.read_text()[:1500] for path in configs.rglob("*.*") if path.is_file()}
    assert {file for file, text in heads.items() if "by `plait plan`" in text} == {file for file in made["STATED"] if "configs" in file}


@pytest.mark.parametrize("name", ["small", "medium"])
def test_a_recipe_states_what_plait_plan_gives(name):
    assert list(made["differing"](iter([f"configs/nanodit/{name}.yaml"]))) == []


def test_a_sentence_that_is_gone_is_told(monkeypatch):
    monkeypatch.setitem(made["STATED"], "configs/nanodit/small.yaml", ["two GPUs ({small} GB)"])
    with pytest.raises(ValueError, match=r"configs/nanodit/small.yaml does not say: two GPUs"):
        list(made["stated"]("configs/nanodit/small.yaml"))
