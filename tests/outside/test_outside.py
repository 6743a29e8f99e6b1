"""A package that plait does not know adds a family, a bench, a verb, a dialect and a kind of source, as CONTRIBUTING.md says."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from plait import cli
from plait.families import contract, registry
from tests import processes

PACKAGE = Path(__file__).parent / "package"
FAMILY_LINES = 140
PAUSED = 75
THINGS, COLOURS = ("sky", "grass", "rose", "snow", "sea", "leaf", "wall", "hat"), ("blue", "green", "red", "white")
RECIPE = """
family: words
preset: tiny
data: {train: [{source: jsonl, path: talk.jsonl}], validation: [{source: jsonl, path: talk.jsonl, limit: 8}]}
train: {steps: 60}
optim: {schedule: {warmup_steps: 5}}
checkpoint: {every_steps: 20}
track: {every_steps: 1, tensorboard: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with sentences to learn, a configuration in plait's words, and one that shouts."""
    folder = tmp_path_factory.mktemp("stranger")
    pairs = [(f"What is the colour of {thing} {i}?", COLOURS[i % 4]) for i in range(4) for thing in THINGS]
    talks = [[{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for question, answer in pairs]
    (folder / "talk.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    (folder / "words.yaml").write_text(RECIPE)
    (folder / "loud.yaml").write_text("SENTENCES: talk.jsonl\nSTEPS: 7\nSPEED: 1e-2\n")
    return folder


def fresh(folder, *arguments):
    """What a command prints, in a process of its own that has the package on its path as an installed one is."""
    path = os.pathsep.join([str(PACKAGE), *(entry for entry in sys.path if entry)])
    command = [sys.executable, "-m", "plait", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def here(folder, monkeypatch):
    """This process in that folder, with the package on its path: what it forks starts without importing everything again."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(PACKAGE))
    registry.packages.cache_clear()
    registry.load("words")
    yield folder
    registry.packages.cache_clear()


def started(*arguments):
    """A command in a forked process, whose exit code is the command's."""
    process = processes.FORK.Process(target=lambda: os._exit(cli.main(list(arguments))))
    process.start()
    return process


def metrics(run):
    """What each step's row says of learning: its number, loss, gradient and samples, without times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.endswith("_s")} for row in rows]


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
    assert "measure      plait eval straight --bench first_word\nask          plait generate straight --prompt=..." in trained.printed
    rows = metrics(trained.run)
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


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
    assert {"question": "What is the colour of sky 0?", "answer": "blue", "gold": "blue", "correct": True}.items() <= rows[0].items()


def test_held_out_loss_is_a_bench_of_the_family_too(here, trained, capfd):
    assert processes.codes([started("eval", "straight", "--bench", "loss")]) == [0]
    assert "  loss/words " in capfd.readouterr().out


def test_generate_answers_a_prompt(folder, trained):
    assert fresh(folder, "generate", "straight", "--prompt=What is the colour of grass 1?") == "green\n"


def test_data_inspect_shows_what_the_family_sees(here, capsys):
    assert cli.main(["data", "inspect", "words.yaml", "--samples=2", "--out=seen"]) == 0
    assert "jsonl:talk.jsonl  2 of 32 samples" in capsys.readouterr().out
    assert "&lt;assistant&gt;" in (here / "seen/page.html").read_text()


def test_verb_runs_and_its_log_line_is_shown(folder):
    assert fresh(folder, "hello", "--name=stranger") == "hello, stranger\n"


def test_verb_is_listed_in_help(folder):
    assert "\n    hello     greet\n" in fresh(folder, "--help")


def test_file_in_the_dialect_loads_and_both_sides_are_shown(folder):
    printed = fresh(folder, "config", "loud.yaml", "--STEPS=9").splitlines()
    assert 'SENTENCES = "talk.jsonl"  data.train.0.path = "talk.jsonl"' in printed
    assert [line.split() for line in printed if line.startswith(("train.steps ", "optim.lr ", "family "))] == [
        ["family", "=", '"words"', "default", "of", "the", "shouting", "dialect"],
        ["train.steps", "=", "9", "command", "line"],
        ["optim.lr", "=", "0.01", "loud.yaml:3"],
    ]


def broken(**changes):
    """The module of the family with members changed; None: without it."""
    module = ModuleType("words_family.family")
    members = vars(registry._module("words", "family")) | changes
    module.__dict__.update({name: value for name, value in members.items() if value is not None})
    return module
