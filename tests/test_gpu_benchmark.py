"""benchmarks/gpu.py: its cases name what the recipes have, its tiny form trains each family, and a run that was ended goes on."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def made():
    sys.modules["gpu_benchmark"] = module = type(sys)("gpu_benchmark")  # its dataclasses look their module up
    yield runpy.run_path(str(PATH), init_globals=module.__dict__, run_name="gpu_benchmark")
    del sys.modules["gpu_benchmark"]


def test_every_case_is_a_stage_of_a_recipe(made, tmp_path):
    for case in made["CASES"]:
        resolved, view = made["resolved_stage"](case, tmp_path)
        assert case.stage in (None, view.name)
        assert view.config.train.precision == "bf16", case.name
        assert made["planner"](resolved.config.family) is not None


def test_drawn_weights_have_the_positions_of_loaded_ones(made, tmp_path):
    """No file holds the frequencies of rotary positions: a model that is drawn without them would train on garbage, or fail."""
    for case in made["TINY"]:
        _, view = made["resolved_stage"](case, tmp_path)
        bundle = made["meta_bundle"](view.config, tmp_path)
        made["materialise"](bundle, torch.device("cpu"))
        built = bundle.family.build(bundle.section, tmp_path, seed=0)
        for name, value in built.named_buffers():
            if name in ("world.mean", "world.std"):  # measured of a tiny encoder's own weights
                continue
            torch.testing.assert_close(bundle.model.get_buffer(name), value, msg=f"{case.name} {name}")


@pytest.mark.parametrize("name", ["theworld 1 cached", "molmo captioner"])
def test_a_case_trains_by_both_loops(made, name):
    case = next(case for case in made["TINY"] if case.name == name)
    ours, bare = (made["measure"](case, loop, 1) for loop in ("plait", "bare"))
    assert ours["flops"] > 0
    assert ours["planned"] > ours["state"] > 0
    assert {"save_behind_s", "save_s"} <= set(ours)
    assert bare["step_s"] > 0


def test_a_run_that_was_ended_goes_on(made, tmp_path, capsys, monkeypatch):
    asked = []

    def run(case, loop, given, seconds):
        asked.append((case.name, loop))
        if asked[-1] == ("nanodit", "bare") and len(asked) == 2:
            return {"case": case.name, "loop": loop, "error": "out of memory"}
        return {"case": case.name, "loop": loop, **figures}

    figures = {"samples": 4, "tokens": 0, "step_s": 2.0, "flops": 3e12, "at_most": 1e13, "memory": 5e9, "planned": 6e9, "recompiled": 0}
    figures["state"] = 7e9
    monkeypatch.setitem(made["main"].__globals__, "run", run)
    words = ["--tiny", "--only", "nanodit", "--dir", str(tmp_path)]
    made["main"](words)
    assert "| nanodit | out of memory |" in capsys.readouterr().out
    made["main"](words)
    assert asked == [("nanodit", "plait"), ("nanodit", "bare"), ("nanodit", "bare")]
    assert "| nanodit | 2 | 2 | 1.00 |  | 1.5 | 15.0 % | 5.0 GB, 6 | 0 | state of 7 GB |" in capsys.readouterr().out
    assert len([json.loads(line) for line in (tmp_path / "gpu-tiny.jsonl").read_text().splitlines()]) == 2
