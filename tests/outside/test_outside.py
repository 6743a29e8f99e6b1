"""A package that plait does not know adds a family, a bench, a verb, a dialect and a kind of source, as CONTRIBUTING.md says."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from pydantic import BaseModel
from torch import nn

from plait import cli
from plait.engine.loss import Loss
from plait.errors import PlaitError
from plait.families import contract, registry
from tests import processes
from tests.families import test_conformance

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
    pairs = [(f"{number} {thing}?", COLOURS[i % 4]) for number in ("One", "Another", "A", "My") for i, thing in enumerate(THINGS)]
    talks = [[{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for question, answer in pairs]
    (folder / "talk.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    (folder / "words.yaml").write_text(RECIPE)
    (folder / "mumble.yaml").write_text(RECIPE.replace("words", "mumble").replace("preset: tiny", ""))
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
    assert "\n    hello     greet\n" in fresh(folder, "--help")


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
    assert "  poems       12 of 6 samples" in capsys.readouterr().out
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


CHANGES = {
    "it lacks blocks(model)": {"blocks": None},
    "it lacks components(model); it lacks Loss(config)": {"components": None, "Loss": None},
    "build cannot be called as build(config, assets, *, seed) (missing a required argument: 'device')": {
        "build": lambda config, assets, device, *, seed: None
    },
    "components cannot be called as components(model) (too many positional arguments)": {"components": lambda: {}},
    "Config is to be a subclass of plait.config.schema.ModelSection": {"Config": BaseModel},
    "Loss is to be a subclass of plait.engine.loss.Loss": {"Loss": object},
    "Loss lacks weights and sums": {"Loss": type("Loss", (Loss,), {})},
    "Loss.sums cannot be called as sums(model, batch) (too many positional arguments)": {
        "Loss": type(
            "Loss", (Loss,), {"__init__": lambda self, config: None, "weights": lambda self, batch: {}, "sums": lambda self, batch: {}}
        )
    },
    "Inputs lacks collate": {"Inputs": type("Inputs", (), {"encode": lambda self, sample, key: None})},
    "blocks is to be callable: blocks(model)": {"blocks": []},
    "never_trained is to be a frozenset of component names": {"never_trained": ["table"]},
    "generate and GenerateOptions belong together, and it has one of them": {"GenerateOptions": None},
}


@pytest.mark.parametrize("fault", CHANGES)
def test_family_that_breaks_the_contract_is_told_how(here, fault):
    module = ModuleType("words_family.family")
    members = vars(importlib.import_module("words_family.family")) | CHANGES[fault]
    vars(module).update({name: value for name, value in members.items() if value is not None})
    with pytest.raises(PlaitError) as caught:
        contract.check("words", module)
    assert str(caught.value) == f"family 'words' (words_family.family) does not fulfil the contract: {fault}"


@pytest.fixture
def install(here, monkeypatch):
    """Install a package `mumble` from the texts of its files and its entry points."""

    def install(entry_points, **modules):
        site = here / f"site-{len(list(here.glob('site-*')))}"
        (site / "mumble-2.0.dist-info").mkdir(parents=True)
        (site / "mumble").mkdir()
        (site / "mumble-2.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: mumble\nVersion: 2.0\n")
        (site / "mumble-2.0.dist-info/entry_points.txt").write_text(entry_points)
        for name, text in {"__init__": "", **modules}.items():
            (site / f"mumble/{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(site))
        registry.packages.cache_clear()

    yield install
    for name in [name for name in sys.modules if name.partition(".")[0] == "mumble"]:
        del sys.modules[name]


SECTION = "from plait.config.schema import ModelSection as Config"
BROKEN = [
    ("[plait.families]\nmumble = mumble", {}, "family 'mumble': there is no module mumble.config; a family is a package with "),
    (
        "[plait.families]\nmumble = mumble",
        {"config": ""},
        "family 'mumble': mumble.config has no Config, a subclass of plait.config.schema.",
    ),
    (
        "[plait.families]\nmumble = mumble",
        {"config": SECTION, "family": SECTION},
        "family 'mumble' (mumble.family) does not fulfil the contract: it lacks build(config, assets, *, seed); "
        "it lacks components(model); ",
    ),
    (
        "[plait.families]\nmumble = mumble",
        {"config": "1 / 0"},
        "family 'mumble': mumble.config cannot be imported: ZeroDivisionError: division by zero",
    ),
    (
        "[plait.families]\nmumble = mumble",
        {"config": "import no_such_thing"},
        "family 'mumble': mumble.config cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'",
    ),
    (
        "[plait.families]\nmumble = mumble",
        {"config": SECTION, "family": "def build(:"},
        "family 'mumble': mumble.family cannot be imported: SyntaxError: invalid syntax",
    ),
    (
        "[plait.commands]\nmumble = mumble.verb",
        {"verb": "1 / 0"},
        "verb 'mumble' cannot be loaded from mumble.verb: ZeroDivisionError: division by zero (package mumble 2.0)",
    ),
    (
        "[plait.commands]\nmumble = mumble.verb",
        {"verb": ""},
        "verb 'mumble' cannot be added: mumble.verb has no COMMANDS, a tuple of plait.commands.command.Command (package mumble 2.0)",
    ),
    (
        "[plait.commands]\nmumble = mumble.verb",
        {"verb": "from plait.commands.train import COMMANDS"},
        "verb 'mumble' cannot be added: there is `plait train` already (package mumble 2.0)",
    ),
    (
        "[plait.dialects]\nmumble = mumble.dialect:DIALECT",
        {"dialect": "DIALECT = 'mumble'"},
        "dialect 'mumble' cannot be loaded: mumble.dialect:DIALECT is a str, not a Dialect (package mumble 2.0)",
    ),
]


@pytest.mark.parametrize(("entry_points", "modules", "error"), BROKEN)
def test_package_that_is_broken_is_named_in_one_line(install, capsys, entry_points, modules, error):
    install(entry_points, **modules)
    recipe = "mumble.yaml" if "families" in entry_points else "words.yaml"
    assert cli.main(["train", recipe, "--run=never"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("plait: ") and said.count("\n") == 1
    assert said.removeprefix("plait: ").removeprefix("mumble.yaml:2: ").startswith(error)


def test_family_holds_to_what_every_family_must(here, tmp_path, monkeypatch):
    monkeypatch.setitem(test_conformance.TINY, "words", "preset: tiny")
    case = test_conformance.Case("words", tmp_path)
    test_conformance.test_components_are_disjoint_and_cover_the_model(case)
    test_conformance.test_blocks_are_modules_of_the_model(case)
    test_conformance.test_one_batch_cut_in_any_way_gives_one_gradient(case)
    test_conformance.test_every_trainable_parameter_gets_a_gradient_of_finite_numbers(case)
    test_conformance.test_the_same_seed_builds_the_same_model_and_another_another(case)
    test_conformance.test_the_model_builds_on_the_meta_device_without_memory(case)


@pytest.mark.parametrize("config", ["1 / 0", "import no_such_thing", "def build(:"])
def test_a_broken_family_breaks_no_command_that_does_not_name_it(install, here, capsys, config):
    install("[plait.families]\nmumble = mumble", config=config)
    assert cli.main(["config", "words.yaml"]) == 0
    with pytest.raises(SystemExit) as ended:
        cli.main(["eval", "--help"])
    assert ended.value.code == 0 and "--bench" in capsys.readouterr().out


EVALUATE = [
    ("", "mumble.evaluate has no benches, a mapping of name to plait.engine.evaluation.Bench"),
    ("benches = []", "mumble.evaluate.benches is a list, not a mapping of name to plait.engine.evaluation.Bench"),
    ("benches = {'one': print}", "mumble.evaluate.benches['one'] is no Bench: it is to be a mapping of name to plait."),
    ("1 / 0", "mumble.evaluate cannot be imported: ZeroDivisionError: division by zero"),
]


@pytest.mark.parametrize(("body", "error"), EVALUATE)
def test_benches_that_are_none_are_told_in_one_line(install, body, error):
    install("[plait.families]\nmumble = mumble", config=SECTION, family="", evaluate=body)
    with pytest.raises(PlaitError) as caught:
        registry.benches("mumble")
    assert str(caught.value).startswith(f"family 'mumble': {error}")


@pytest.mark.parametrize("body", ["", "exports = 3", "exports = {'hf': 3}"])
def test_exports_that_are_none_are_told_in_one_line(install, body):
    install("[plait.families]\nmumble = mumble", config=SECTION, family="", export=body)
    with pytest.raises(PlaitError, match=r"family 'mumble': mumble\.export has no exports, a mapping of layout"):
        registry.publisher("mumble")


def without(parts, name):
    return {part: {key: value for key, value in held.items() if key != name} for part, held in parts.items()}


BUILT = {
    "components(model) leaves out 1 of 9 parameters, the first 'layers.0.bias'": without,
    "components(model) has 'layers.0.bias' in two components": lambda parts, name: {**parts, "more": {name: None}},
    "components(model) names 'nothing', which is no parameter of the model": lambda parts, name: {**parts, "more": {"nothing": None}},
}


@pytest.mark.parametrize("change", [0, 1, 2])
def test_components_that_do_not_hold_each_parameter_once_are_told_before_training(here, capsys, monkeypatch, change):
    family = registry.load("words")
    sizes = []

    def components(model):
        parts = family.components(model)
        names = [name for held in parts.values() for name in held]
        sizes[:] = [len(names), names[-1]]
        return list(BUILT.values())[change](parts, names[-1])

    monkeypatch.setattr(registry, "load", lambda name: dataclasses.replace(family, components=components))
    assert cli.main(["train", "words.yaml", f"--run=never-{change}"]) == 2
    error = list(BUILT)[change].replace("layers.0.bias", str(sizes[1])).replace("1 of 9", f"1 of {sizes[0]}")
    assert f"family 'words': {error}" in capsys.readouterr().err


def test_blocks_and_losses_that_are_none_are_told_before_training(here, capsys, monkeypatch):
    family = registry.load("words")
    for number, (name, value, error) in enumerate(
        [
            ("blocks", lambda model: [nn.Linear(1, 1)], "blocks(model) returns a module that is none of the model's"),
            ("Loss", type("Bare", (family.Loss,), {"__init__": lambda self, config: None}), "its Loss sets no coefficients"),
        ]
    ):
        changed = dataclasses.replace(family, **{name: value})
        monkeypatch.setattr(registry, "load", lambda _, changed=changed: changed)
        assert cli.main(["train", "words.yaml", f"--run=never-built-{number}"]) == 2
        assert f"family 'words': {error}" in capsys.readouterr().err
