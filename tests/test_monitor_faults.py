"""`benchmarks/monitor_faults.py` in its quickest form: a fault in a real tiny run is named."""

import dataclasses
import re
from pathlib import Path

from benchmarks import monitor_faults as faults

SHORT = ("train.global_batch=2", "track.every_steps=2", "train.steps=200")


def test_a_fault_of_a_published_recipe_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planted = dataclasses.replace(faults.RUNS["projector frozen by mistake"], steps=4)
    row = faults.judged(planted, faults.observed(planted, tmp_path, tmp_path / "run", SHORT))
    assert (row["named_at"], row["as_it_should"], row["others"]) == (2, True, 0)
    assert len(row["loss"]) == 2 and all(value > 0 for value in row["loss"])


def test_every_family_has_planted_faults_and_healthy_runs():
    healthy = [name for name in faults.RUNS if name.startswith("healthy")]
    assert len(healthy) >= 10 and len(faults.RUNS) - len(healthy) >= 10
    assert all((faults.RUNS[name].named == "") == (name in healthy) for name in faults.RUNS)
    for names in (healthy, faults.RUNS.keys() - healthy):
        assert {faults.RUNS[name].recipe.partition(" ")[0] for name in names} == {"theworld", "molmo", "nanodit"}


def test_texts_are_mixed_up_and_pictures_are_not(tmp_path):
    good, bad = (write(tmp_path, 32, task="colour", count=12) for write in (faults.sound, faults.mixed_up))
    of_good, of_bad = (re.findall(r'"messages": (.*)\}', Path(entry["path"]).read_text()) for entry in (good, bad))
    assert sorted(of_good) == sorted(of_bad) and of_good != of_bad
    assert all((tmp_path / f"colour-{i}.png").read_bytes() == (tmp_path / f"colour-bad-{i}.png").read_bytes() for i in range(12))
