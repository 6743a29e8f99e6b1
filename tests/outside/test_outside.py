"""A package that plait does not know adds a family, a bench, a verb, a dialect and a kind of source, as CONTRIBUTING.md says."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from plait import cli
from plait.training.monitor.learning import LOOKS
from tests import processes
from tests.families import test_conformance
from tests.outside.conftest import PACKAGE

FAMILY_LINES = 140
PAUSED = 75


def fresh(folder, *arguments):
    """What a command prints, in a process of its own that has the package on its path as an installed one is."""
    path = os.pathsep.join([str(PACKAGE), *(entry for entry in sys.path if entry)])
    command = [sys.executable, "-m", "plait", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True).stdout


def started(*arguments):
    """A command in a forked process, whose exit code is the command's."""
    process = processes.FORK.Process(target=lambda: os._exit(cli.main(list(arguments))))
    process.start()
    return process


def metrics(run):
    """What each step's row says of learning: its number, loss, gradient and samples, without times, and looks, which the clock allows."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [{name: value for name, value in row.items() if name != "spent" and not name.endswith("_s")} for row in rows]
    return [{name: value for name, value in row.items() if not name.startswith(LOOKS)} for row in told]


@pytest.fixture(scope="module")
def trained(folder):
    """A run from start to end, and what it printed."""
    return SimpleNamespace(printed=fresh(folder, "train", "words.yaml", "--run=straight"), run=folder / "straight")


def test_family_is_short():
    files = sorted((PACKAGE / "words_family").glob("*.py"))
    family = [file for file in files if file.stem in ("__init__", "config", "family", "evaluate")]
    assert sum(len(file.read_text().splitlines()) for file in family) <= FAMILY_LINES


def test_family_trains_and_says_what_can_be_done_next(trained):
    assert "stage 1 train: trains table 10,240, layers" in trained.printed
    assert "measure      plait eval straight --bench loss\nask          plait generate straight --prompt=..." in trained.printed
    rows = metrics(trained.run)
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def test_a_run_is_planned_as_it_is(here, trained, capsys):
    """It has no module `planning`; the batch is that of its data. Its held-out sentences are those that it trains on."""
    assert cli.main(["plan", "words.yaml", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    (stage,) = planned["stages"]
    assert stage["steps"] == 60 and not stage["assumed_batch"] and stage["flops_per_step"] > 0 and stage["memory"][0]["peak"] > 0
    assert [finding["what"] for finding in planned["findings"]] == ["held-out"]


def test_run_that_was_stopped_continues_exactly(here, trained):
    process = started("train", "words.yaml", "--run=stopped")
    while not (here / "stopped/metrics.jsonl").is_file() or len(metrics(here / "stopped")) < 3:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert processes.codes([process]) == [PAUSED]
    assert 3 <= len(metrics(here / "stopped")) < 60
    assert processes.codes([started("train", "words.yaml", "--run=stopped")]) == [0]
    assert metrics(here / "stopped") == metrics(trained.run)


def test_bench_of_the_family_measures_a_run(here, trained, capfd):
    assert processes.codes([started("eval", "straight", "--bench", "first_word", "--out=answers")]) == [0]
    assert "  accuracy                 1.0000" in capfd.readouterr().out
    rows = json.loads((here / "answers/predictions.json").read_text())
    row = next(row for row in rows if row["question"] == "One sky?")
    assert (row["answer"], row["gold"], row["correct"]) == ("blue", "blue", True)


def test_held_out_loss_is_a_bench_of_the_family_too(here, trained, capfd):
    assert processes.codes([started("eval", "straight", "--bench", "loss")]) == [0]
    assert "  loss/words " in capfd.readouterr().out


def test_generate_answers_a_prompt(folder, trained):
    assert fresh(folder, "generate", "straight", "--prompt=Another leaf?") == "green\n"


def test_data_inspect_shows_what_the_family_sees(here, capsys):
    assert cli.main(["data", "inspect", "words.yaml", "--samples=2", "--out=seen"]) == 0
    assert "jsonl:talk.jsonl  2 of 32 samples" in capsys.readouterr().out
    assert "&lt;assistant&gt;" in (here / "seen/page.html").read_text()


def test_verb_runs_and_its_log_line_is_shown(folder):
    assert fresh(folder, "hello", "--name=stranger") == "hello, stranger\n"


def test_verb_is_listed_in_help(folder):
    assert re.search(r"^    hello +greet$", fresh(folder, "--help"), re.MULTILINE)


def test_file_in_the_dialect_loads_and_both_sides_are_shown(folder):
    printed = fresh(folder, "config", "loud.yaml", "--STEPS=9").splitlines()
    assert f'SENTENCES = "talk.jsonl"  data.train.0.path = "{folder / "talk.jsonl"}"' in printed
    assert [line.split() for line in printed if line.startswith(("train.steps ", "optim.lr ", "family "))] == [
        ["family", "=", '"words"', "default", "of", "the", "shouting", "dialect"],
        ["train.steps", "=", "9", "command", "line"],
        ["optim.lr", "=", "0.01", "loud.yaml:3"],
    ]


def test_source_of_the_package_is_trained_on(here, capsys):
    source = "--data.train=[{source: poems, options: {lines: 6}}]"
    assert cli.main(["data", "inspect", "words.yaml", source, "--out=verses"]) == 0
    assert "  poems       6 of 6 samples" in capsys.readouterr().out
    assert processes.codes(
        [started("train", "words.yaml", "--run=verses-run", "--optim.schedule.warmup_steps=0", "--train.steps=2", source)]
    ) == [0]
    assert [row["samples"] for row in metrics(here / "verses-run")] == [8, 16]


MISTAKES = {
    "config words.yaml --family=wrods": "family 'wrods' is unknown: did you mean 'words'? known: molmo, nanodit, theworld, words",
    "config words.yaml --preset=huge": "preset 'huge' is not one of family 'words': known: tiny",
    "config words.yaml --model.hidden=3": "command line: model.hidden is not a key: did you mean model.hidden_size?",
    "config words.yaml --data.pad=to_max": "data.pad is 'to_max', which family words refuses: it pads to the longest of a micro-batch",
    "config words.yaml --data.train.0.source=poem": "did you mean 'poems'?",
    'data inspect words.yaml --data.train=[{"source":"poems","options":{"lines":0}}]': (
        "data source poems: options.lines must be a positive whole number, got 0"
    ),
    "config loud.yaml --LOUDER=1": "command line: LOUDER is not a key: known: run, seed",
    "eval straight --bench second": "--bench 'second' is unknown: known: first_word, loss",
    "generate straight --promt=hi": "generate has no option --promt: did you mean --prompt?",
    "generate straight": "generate needs --prompt=...",
    "hello --loud": "'--loud' is not an option of this command",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistake_with_what_the_package_adds_is_one_line(here, trained, capsys, line):
    assert cli.main(line.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("plait: ")
    assert MISTAKES[line] in error
    assert error.count("\n") == 1


def test_family_holds_to_what_every_family_must(here, tmp_path, monkeypatch):
    monkeypatch.setitem(test_conformance.TINY, "words", "preset: tiny")
    case = test_conformance.Case("words", tmp_path)
    test_conformance.test_components_are_disjoint_and_cover_the_model(case)
    test_conformance.test_blocks_are_modules_of_the_model(case)
    test_conformance.test_one_batch_cut_in_any_way_gives_one_gradient(case)
    test_conformance.test_every_trainable_parameter_gets_a_gradient_of_finite_numbers(case)
    test_conformance.test_the_same_seed_builds_the_same_model_and_another_another(case)
    test_conformance.test_the_model_builds_on_the_meta_device_without_memory(case)
