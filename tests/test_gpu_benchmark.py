"""benchmarks/gpu.py: its cases are stages of recipes, its tiny form trains each family, and no case costs another its figures."""

import argparse
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


@pytest.mark.parametrize("gb", [80, 141])
def test_every_case_is_a_stage_of_a_recipe(made, tmp_path, gb):
    for case in made["CASES"]:
        resolved, view = made["resolved_stage"](case.on(gb), tmp_path)
        config = view.config
        assert case.stage in (None, view.name)
        assert config.train.precision in ("bf16", "pure_bf16"), case.name
        assert config.distributed.compile == "auto" and config.optim.name == "adamw", case.name
        assert config.train.micro_batch == config.train.global_batch == case.fits[gb][0]
        assert made["planner"](resolved.config.family) is not None


def test_the_cases_that_matter_most_come_first_and_failed_ones_last(made):
    cases = made["CASES"]
    first = [case.name for case in cases if case.first]
    assert {name.partition(" ")[0] for name in first} == {"theworld", "molmo", "nanodit"} and len(first) == 5
    turns = [(case.name, loop) for case, loop in made["waiting"](cases, [])]
    assert turns[:10] == [(name, loop) for loop in ("plait", "bare") for name in first]
    rows = [{"case": first[0], "loop": "plait", "error": "out of memory"}, {"case": first[1], "loop": "plait", "step_s": 1.0}]
    turns = [(case.name, loop) for case, loop in made["waiting"](cases, rows)]
    assert turns[-1] == (first[0], "plait") and (first[1], "plait") not in turns and len(turns) == 2 * len(cases) - 1


def test_drawn_weights_have_the_positions_of_loaded_ones(made, tmp_path):
    """No file holds the frequencies of rotary positions: a model that is drawn without them would train on garbage, or fail."""
    for case in made["TINY"]:
        _, view = made["resolved_stage"](case.on(0), tmp_path)
        bundle = made["meta_bundle"](view.config, tmp_path)
        made["materialise"](bundle, torch.device("cpu"))
        built = bundle.family.build(bundle.section, tmp_path, seed=0)
        for name, value in built.named_buffers():
            if name in ("world.mean", "world.std"):  # measured of a tiny encoder's own weights
                continue
            torch.testing.assert_close(bundle.model.get_buffer(name), value, msg=f"{case.name} {name}")


@pytest.mark.parametrize("name", ["theworld 1 cached", "molmo captioner"])
def test_a_case_trains_by_both_loops(made, tmp_path, name):
    case = next(case for case in made["TINY"] if case.name == name)
    ours, bare = {}, {}
    for loop, figures in (("plait", ours), ("bare", bare)):
        made["measure"](case.on(0), loop, 1, figures.update, tmp_path / "profile.txt")
    assert ours["flops"] > 0
    assert ours["planned"] > ours["state"] > 0
    assert {"save_behind_s", "save_s"} <= set(ours)
    assert bare["step_s"] > 0
    assert 0 < sum(seconds for _, seconds in ours["kernels"]) <= ours["kernels_s"]
    assert "Self CPU" in (tmp_path / "profile.txt").read_text()
    assert ours["device"] == "cpu" and {"torch", "transformers"} <= set(ours["versions"])
    config = made["resolved_stage"](case.on(0), tmp_path)[1].config
    assert (ours["samples"], ours["precision"]) == (2, config.train.precision)
    assert ours["recomputed"] == config.distributed.activation_checkpointing


FIGURES = {
    "samples": 4,
    "tokens": 0,
    "step_s": 2.0,
    "flops": 3e12,
    "at_most": 1e13,
    "memory": 5e9,
    "planned": 6e9,
    "recompiled": 0,
    "state": 7e9,
    "precision": "bf16",
    "compiled": True,
    "recomputed": "full",
    "kernels_s": 1.5,
    "kernels": [("gemm", 1.0), ("softmax", 0.25)],
}


@pytest.fixture
def measuring(made, tmp_path, monkeypatch):
    """Run the command with rows that need no training; returns its exit code. `asked`: the cases and loops that were measured."""
    asked, errors = [], {}

    def run(case, loop, given, seconds, halved):
        asked.append((case.name, loop))
        error = errors.get(asked[-1])
        return {"case": case.name, "loop": loop, "versions": {"torch": "2"}} | ({"error": error} if error else FIGURES)

    def measure(*words):
        asked.clear()
        with pytest.raises(SystemExit) as ended:
            made["main"](["--tiny", "--dir", str(tmp_path), *words])
        return ended.value.code

    monkeypatch.setitem(made["main"].__globals__, "run", run)
    measure.asked, measure.errors, measure.path = asked, errors, tmp_path / "gpu-tiny.jsonl"
    return measure


def on_device(made, monkeypatch, name, gb):
    monkeypatch.setitem(made["main"].__globals__, "device_here", lambda: (name, gb))


BOTH = [("nanodit", "plait"), ("nanodit", "bare")]
ROW = "| nanodit | 4 samples, bf16, recomputed | 2 | 2 | 1.00 |  | 1.5 | 15.0 % | 5.0 GB, 6 | 0 | state of 7 GB |"


def test_a_run_that_was_ended_goes_on(measuring, capsys):
    measuring.errors[BOTH[1]] = "out of memory"
    assert measuring("--only", "nanodit") == 1 and measuring.asked == BOTH
    told = capsys.readouterr().out
    assert "nanodit (bare): out of memory" in told and "1 of 2 are left: the same command goes on with them" in told
    measuring.errors.clear()
    assert measuring("--only", "nanodit", "--steps", "3") == 0 and measuring.asked == BOTH[1:]
    told = capsys.readouterr().out
    assert ROW in told and "are left" not in told
    assert len(measuring.path.read_text().splitlines()) == 2
    assert measuring("--only", "nanodit") == 0 and measuring.asked == []
    told = capsys.readouterr().out
    assert told.count(ROW) == 1 and told.startswith("cpu, torch 2\n")


def test_rows_of_another_device_or_torch_are_kept_and_measured_anew(made, measuring, capsys, monkeypatch):
    monkeypatch.setitem(FIGURES, "driver", "570")
    for number, (name, gb) in enumerate([("H100", 85.0), ("H100", 95.0), ("H200", 151.0)], start=1):
        on_device(made, monkeypatch, name, gb)
        assert measuring("--only", "nanodit") == 0 and measuring.asked == BOTH
        told = capsys.readouterr().out
        assert f"{name}, {gb:.0f} GB, driver 570, torch 2\n" in told
        assert (f"{2 * number - 2} rows of another device, torch or configuration are in gpu-tiny.jsonl" in told) == (number > 1)
        assert len(measuring.path.read_text().splitlines()) == 2 * number
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert measuring("--only", "nanodit") == 0 and measuring.asked == BOTH


def test_rows_of_other_settings_are_measured_anew(made, tmp_path):
    case = next(case for case in made["TINY"] if case.name == "nanodit")
    digest = made["digest"]
    assert digest(case, 80.0) == digest(made["dataclasses"].replace(case, settings=(*case.settings, "train.steps=7")), 80.0)
    others = ["train.precision=fp32", "model.depth=3", "optim.name=muon", "distributed.compile=false", "train.grad_clip=2"]
    changed = {digest(made["dataclasses"].replace(case, settings=(*case.settings, other)), 80.0) for other in others}
    assert len(changed | {digest(case, 80.0)}) == 6


def test_measuring_anew_loses_no_row(measuring, capsys):
    assert measuring("--only", "nanodit") == 0
    measuring.errors |= dict.fromkeys(BOTH, "out of memory")
    assert measuring("--only", "nanodit", "--again") == 1 and measuring.asked == BOTH
    assert "2 of 2 are left: the same command without --again goes on with them" in capsys.readouterr().out
    assert sum("step_s" in json.loads(line) for line in measuring.path.read_text().splitlines()) == 2


def test_a_torn_line_is_told_and_the_others_are_read(measuring, capsys):
    assert measuring("--only", "nanodit") == 0
    measuring.path.write_text(measuring.path.read_text() + '[1]\n{"case": "nanodit", "lo')
    capsys.readouterr()
    assert measuring("--only", "nanodit") == 0 and measuring.asked == []
    told = capsys.readouterr()
    assert ROW in told.out
    assert """gpu-tiny.jsonl: line 4 is no row of this benchmark and is left out: '{"case": "nanodit", "lo'""" in told.err


def test_an_unknown_case_is_refused(measuring, capsys):
    assert measuring("--only", "nanodit", "thewrold") == 2 and measuring.asked == []
    assert "no case is named thewrold; there are theworld 1 projection, theworld 1 cached, " in capsys.readouterr().err


def test_a_case_that_misses_its_goal_is_explained(made):
    case = next(case for case in made["TINY"] if case.mfu)
    lines = list(
        made["table"](
            [case], [{"case": case.name, "loop": "plait", **FIGURES}, {"case": case.name, "loop": "bare", **FIGURES, "step_s": 1.0}]
        )
    )
    assert lines[-1] == (
        f"{case.name}: MFU 15.0%, not 45% and 0.50 of the bare loop, not 0.97; kernels take 75% of a step: 50% gemm, 12% softmax "
        "(gpu-profiles/theworld-3-language.txt)"
    )
    assert len(list(made["table"]([case], [{"case": case.name, "loop": "plait", **FIGURES, "flops": 9e12}]))) == 5


STUB = """
import json, sys, time
print(json.dumps({"samples": 4}), flush=True)
halved = int(next(word for word in sys.argv if word.startswith("--halved=")).partition("=")[2])
if "hangs" in sys.argv:
    time.sleep(60)
if "memory" in sys.argv and halved < 2:
    print(json.dumps({"error": "out of memory"}), flush=True)
elif "dies" in sys.argv:
    sys.exit("Segmentation fault")
elif "silent" not in sys.argv:
    print(json.dumps({"step_s": 1.0}), flush=True)
if "saves" in sys.argv:
    time.sleep(60)
"""
ENDS = {
    "hangs": ({"samples": 4, "error": "not done in 1 s", "halved": 0}),
    "memory": ({"samples": 4, "step_s": 1.0, "halved": 2}),
    "dies": ({"samples": 4, "error": "Segmentation fault", "halved": 0}),
    "silent": ({"samples": 4, "error": "it told no figures", "halved": 0}),
    "saves": ({"samples": 4, "step_s": 1.0, "error": "not done in 1 s", "halved": 0}),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_process_has_a_box_of_time_and_keeps_what_it_told(made, tmp_path, monkeypatch, name):
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setitem(made["once"].__globals__, "__file__", str(tmp_path / "stub.py"))
    case = made["Case"](name, "theworld/stages", {0: (4, ())})
    asked = argparse.Namespace(steps=1, dir=tmp_path, tiny=True)
    seconds = 1.0 if name in ("hangs", "saves") else 60.0
    assert made["run"](case, "plait", asked, seconds, 0) == {"case": name, "loop": "plait", **ENDS[name]}


def test_out_of_memory_is_one_line(made, capsys, tmp_path, monkeypatch):
    def measure(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")

    monkeypatch.setitem(made["told_by"].__globals__, "measure", measure)
    made["main"](["--tiny", "--case", "nanodit", "--loop", "plait", "--dir", str(tmp_path)])
    assert capsys.readouterr().out == '{"error": "out of memory"}\n'


def test_what_the_end_of_all_cuts_short_is_no_fault_of_a_case(measuring, capsys):
    """And does not keep the others from their turns."""
    measuring.errors |= dict.fromkeys(BOTH, "not done in 30 s")
    assert measuring("--only", "nanodit", "--minutes", "0.5") == 0 and measuring.asked == BOTH[:1]
    told = capsys.readouterr().out
    assert "| nanodit |" not in told and "2 of 2 are left" in told
    assert measuring("--only", "nanodit", "--minutes", "0.5") == 0 and measuring.asked == BOTH[1:]
    assert measuring("--only", "nanodit", "--box", "10") == 1
    assert "| nanodit | not done in 30 s |" in capsys.readouterr().out
