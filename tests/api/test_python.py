"""The Python interface: light to import, every name documented, and the same as the commands."""

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import plait
import plait.theworld
from plait import cli
from plait.config.resolved import difference

PACKAGE = Path(plait.__file__).parent
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
SCENES = {"source": "scenes", "limit": 8, "options": {"size": [32, 32], "objects": [1, 2], "tasks": ["colour"]}}
CONFIG = {
    "family": "theworld",
    "preset": "tiny",
    "model": {"world": {"image_size": 16}},
    "data": {"train": [SCENES], "validation": [SCENES], "workers": 0},
    "train": {"steps": 2, "global_batch": 2},
    "checkpoint": {"every_steps": 1, "best": "loss"},
    "evaluate": [{"bench": "loss", "every_steps": 1}],
    "track": {"every_steps": 1, "tensorboard": False},
}
NAMES = sorted(set(plait.__all__) - {"__version__"})
MEMBERS = [f"{kind.__name__}.{name}" for kind in (plait.Checkpoint, plait.Run) for name in vars(kind) if not name.startswith("_")]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    assert cli.main(["train", str(folder / "run.yaml"), f"--run={folder / 'run'}"]) == 0
    return folder / "run"


def in_a_fresh_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_importing_plait_imports_next_to_nothing():
    """Counted, as time would measure the machine: a few modules of Python's own, a hundredth of a second."""
    modules = in_a_fresh_process("import sys; before = set(sys.modules); import plait; print(*sorted(set(sys.modules) - before))")
    assert {name for name in modules if name.split(".")[0] not in sys.stdlib_module_names} == {"plait"} and len(modules) < 10


def test_reading_a_configuration_imports_no_torch():
    code = f"import plait, sys; plait.load_config({CONFIG!r}); print(*{{'torch', 'transformers'}} & {{*sys.modules}})"
    assert in_a_fresh_process(code) == []


@pytest.mark.parametrize("name", [*NAMES, *MEMBERS])
def test_every_public_name_is_documented(name):
    owner, _, member = name.rpartition(".")
    assert inspect.getdoc(getattr(getattr(plait, owner), member) if owner else getattr(plait, member))
    assert f"`.{member}" in PAGE if owner else f"| `plait.{member}` |" in PAGE


@pytest.mark.parametrize("name", plait.theworld.__all__)
def test_every_public_name_of_theworld_is_documented(name):
    assert inspect.getdoc(getattr(plait.theworld, name)) and name in PAGE


def test_the_types_name_what_there_is():
    stub = (PACKAGE / "__init__.pyi").read_text()
    homes = {name: home for home, name in re.findall(r"^from (\S+) import \w+ as (\w+)$", stub, re.MULTILINE)}
    assert homes == vars(plait)["_HOME"] and (PACKAGE / "py.typed").is_file()
    assert all(vars(importlib.import_module(home))[name] is getattr(plait, name) for name, home in homes.items())
    assert dir(plait) == sorted(plait.__all__)


def test_another_name_is_told_with_those_that_there_are():
    with pytest.raises(AttributeError, match=r"module 'plait' has no attribute 'tarin'; its public names are Checkpoint, "):
        _ = plait.tarin


def test_a_dict_is_read_as_its_file_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert difference(plait.load_config(CONFIG), plait.load_config("config.yaml")) == []
    assert plait.load_config(CONFIG).config.run == "runs/config"
    assert plait.load_config(CONFIG).origins["seed"] == "default" and plait.load_config(CONFIG).origins["preset"] == "config"


def test_overrides_are_those_of_the_command_line():
    resolved = plait.load_config(CONFIG, train={"steps": 7}, data={"validation": [SCENES, SCENES]}, **{"optim.lr": 1e-5, "preset": "tiny"})
    assert (resolved.config.train.steps, resolved.config.train.global_batch, resolved.config.optim.lr) == (7, 2, 1e-5)
    assert len(resolved.config.data.validation) == 2 and resolved.origins["train.steps"] == "command line"
    staged = {**CONFIG, "stages": [{"name": "a", "train": {"steps": 3}}, {"name": "b"}]}
    assert [view.config.train.steps for view in plait.load_config(staged, train={"steps": 5}).stages] == [5, 5]


@pytest.mark.parametrize("text", ["007", "null", "a\u2028b", "été 😀", "[x", "'q'", 'a "b"', "1e-3", "yes", "a: b", "\t", " x ", "#1", "~"])
def test_text_is_taken_as_it_is(text):
    name = plait.load_config({**CONFIG, "run": text})
    assert name.config.run == plait.load_config(CONFIG, run=text).config.run
    assert text in (name.config.run, "~")  # the home directory


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": "x"}, "config: seed must be a whole number, got 'x'"),
        ({"sed": 1}, "config: sed is not a key: did you mean seed?"),
        ({"seed": {1}}, "config: {1} has the type set: a configuration holds text, finite numbers, true, false, null, lists and mappings"),
        (
            {"optim": {"lr": float("nan")}},
            "config: Out of range float values are not JSON compliant: a configuration holds text, finite numbers, true, false, null, "
            "lists and mappings",
        ),
        (
            {"hf_token": "x"},
            "config: hf_token looks like a secret, which no file or command line may hold: remove it and set the environment variable "
            "HF_TOKEN",
        ),
    ],
)
def test_a_wrong_value_is_one_line(values, message):
    with pytest.raises(plait.PlaitError) as told:
        plait.load_config({**CONFIG, **values})
    assert str(told.value).startswith(message)


def test_a_dict_that_holds_itself_is_one_line():
    endless: dict = {}
    endless["model"] = endless
    with pytest.raises(plait.PlaitError, match=r"^config: Circular reference detected: a configuration holds text"):
        plait.load_config(endless)


def test_a_checkpoint_answers_and_measures_as_the_commands_do(run, capsys):
    checkpoint = plait.open(f"{run}/train@best")
    assert checkpoint.run == run and checkpoint.folder.parent.name == "stage-1-train" and not checkpoint.model.training
    assert checkpoint.model is checkpoint.model and checkpoint.config.train.steps == 2
    capsys.readouterr()
    assert cli.main(["generate", str(checkpoint.folder), "--prompt=What is it?", "--max-new-tokens=4"]) == 0
    assert checkpoint.generate(prompt="What is it?", max_new_tokens=4) == [capsys.readouterr().out.removesuffix("\n")]
    assert cli.main(["eval", str(checkpoint.folder), "--bench=accuracy", f"--out={run / 'by-command'}"]) == 0
    result = checkpoint.evaluate("accuracy")
    written = json.loads((run / "by-command" / "metrics.json").read_text())
    assert result.figures == written["figures"] and len(result.rows) == written["count"] == 8


def test_metrics_end_with_the_checkpoint(run, monkeypatch):
    steps = list(plait.open(f"{run}@1").metrics()["step"])
    assert set(steps) == {1} and set(plait.open(run).metrics()["step"]) == {1, 2}
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert [row["step"] for row in plait.open(f"{run}@1").metrics()] == steps


def test_wrong_options_are_one_line(run):
    with pytest.raises(plait.PlaitError, match=r"^generate has no option --promt: did you mean --prompt\?$"):
        plait.open(run).generate(promt="x")
    with pytest.raises(plait.PlaitError, match=r"^'.*/nothing' does not exist; "):
        plait.open(run.parent / "nothing")
    with pytest.raises(plait.PlaitError, match="bench"):
        plait.open(run).evaluate("acuracy")


@pytest.mark.parametrize(
    ("use", "line"),
    [
        (lambda run: plait.load_config(5), "plait.load_config: `source` is to be a file, a run directory or a dict, and is the int 5"),
        (lambda run: plait.open(5), "plait.open: `spec` is to be a text or a path, and is the int 5"),
        (lambda run: plait.open(run, length="long"), "plait.open: `length` is to be a number, or None, and is the str 'long'"),
        (
            lambda run: plait.train(5),
            "plait.train: `config` is to be a file, a run directory or a dict, or what load_config",
        ),
        (lambda run: plait.train(run, callbacks=print), "plait.train: `callbacks` is to be a list, and is the builtin_function_or_method"),
        (lambda run: plait.train(run, callbacks=[3]), "plait.train: `callbacks` is to be a list of functions, and has the int 3"),
        (lambda run: plait.samples(run, n="3"), "plait.samples: `n` is to be a whole number, and is the str '3'"),
        (lambda run: plait.samples(run, n=True), "plait.samples: `n` is to be a whole number, and is the bool True"),
        (lambda run: plait.open(run).evaluate(5), "Checkpoint.evaluate: `bench` is to be a text, and is the int 5"),
        (lambda run: plait.open(run).evaluate("loss", samples="8"), "`samples` is to be a whole number, or None, and is the str '8'"),
        (lambda run: plait.open(run).generate(out=5), "Checkpoint.generate: `out` is to be a text or a path, or None, and is the int 5"),
        (
            lambda run: plait.Run(run).checkpoint(0.5),
            "`mark` is to be a step, or a text such as best, and is the float 0.5",
        ),
    ],
)
def test_a_wrong_argument_says_what_it_is_and_what_is_wanted(run, use, line):
    with pytest.raises(plait.PlaitError) as told:
        use(run)
    assert line in str(told.value)
