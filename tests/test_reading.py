"""What a newcomer reads, by what a plain run calls: the files up to a family's update, and the way of a stage change."""

import ast
import itertools
import json
import re
import subprocess
import sys

import pytest
import yaml

from tests.test_house import MODULES, ROOT, SOURCE, imports, tree

READING_LINES = 8000
LEFT_OUT = (
    "plait.config.",  # how settings are read
    "plait.engine.monitoring.tracking",  # trackers, and what they show
    "plait.engine.monitoring.screen",
    "plait.engine.monitoring.wrapping",
    "plait.engine.monitoring.event_files",
    "plait.engine.monitoring.beside.trackers",
    "plait.engine.monitoring.beside.shown",
    "plait.families.nanodit.monitors",
    "plait.families.molmo.tiny",  # random models of a few layers, in place of the published weights that a run begins with
    "plait.families.theworld.tiny",
    "plait.nn.tokenizer",
)
"""Left out by name: configuration, trackers, and what makes the tiny models that this test trains."""
READ = ("plait.engine.loss",)
"""Read although none of its functions runs: families' losses are subclasses of what it defines."""

PLAIN = """
data:
  train: [{source: scenes, limit: 16, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}]
  validation: []
  workers: 0
stages:
  - {name: first, train: {steps: 2}}
  - {name: second, train: {steps: 2}}
train: {global_batch: 4}
optim: {lr: 1.0e-3, ema: null, schedule: {name: constant, warmup_steps: 0}}
checkpoint: {every_steps: 2, reference: false, async_save: false}
evaluate: []
track: {every_steps: 1, tensorboard: false, monitor: false}
guard: {hang_timeout_s: null, spikes: ignore}
"""
"""A run with all that is optional left away: one process, which waits for its saves; no workers, averages, evaluation, watchdog, spikes."""
FAMILIES = {
    "theworld": """
        preset: tiny
        model: {world: {image_size: 16}, tiny: {hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16,
                image_tokens: 4, vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}}
        trainable: [projector, language]""",
    "molmo": "{preset: debug, trainable: [connector, language]}",
    "nanodit": """
        model: {space: pixels, depth: 2, hidden: 48, heads: 2, patch: 4, image_size: 32, text: words, text_dim: 16, words: 64, image_dim: 0,
                dropout: {neither: 0.1, text_only: 0.0, image_only: 0.0}}
        trainable: [embed, text, conditioning, blocks, final]""",
}


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    """What `tests/called.py` wrote of a plain run of each family, by name."""
    folder = tmp_path_factory.mktemp("reading")
    recipes = {family: folder / f"{family}.yaml" for family in FAMILIES}
    for family, path in recipes.items():
        path.write_text(yaml.dump(yaml.safe_load(PLAIN) | yaml.safe_load(FAMILIES[family]) | {"family": family}), encoding="utf-8")
    command = [sys.executable, "-m", "tests.called", *map(str, recipes.values())]
    done = subprocess.run(command, check=False, cwd=SOURCE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {family: json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) for family, path in recipes.items()}


def closure(*modules):
    """The modules that these import, they themselves included."""
    waiting, seen = list(modules), set()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imports(MODULES[module])
    return sorted(seen)


def test_what_is_left_out_by_name_is_there():
    assert all(any(f"{module}.".startswith(name) for module in MODULES) for name in (*LEFT_OUT, *READ))


def has_functions(path):
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) for node in ast.walk(tree(path)))


@pytest.mark.parametrize("family", sorted(path.parent.name for path in SOURCE.glob("families/*/family.py")))
def test_a_newcomer_can_read_from_a_runs_start_to_a_familys_update(family, called, record_property):
    """A file counts unless a plain run calls none of its functions, or it is left out by name."""
    ran = called[family]["functions"]
    assert {"training/run.py", "engine/loop.py", *(f"families/{family}/{name}.py" for name in ("inputs", "model", "loss"))} <= ran.keys()
    lines = {}
    for module in closure("plait.training.run", f"plait.families.{family}.family"):
        path = MODULES[module]
        optional = has_functions(path) and path.relative_to(SOURCE).as_posix() not in ran and module not in READ
        if not optional and not f"{module}.".startswith(LEFT_OUT):
            lines[module] = len(path.read_text(encoding="utf-8").splitlines())
    total = sum(lines.values())
    record_property("lines", total)
    print(f"{family}: {total:,} lines in {len(lines)} files", *(f"{count:6} {module}" for module, count in lines.items()), sep="\n")
    assert total <= READING_LINES, f"{total} lines in {len(lines)} files"


def stage_change(calls):
    """The calls from the plan of the second stage to its first step."""
    begins = [i for i, (_, _, function) in enumerate(calls) if function == "plan_stage"][1]
    ends = next(i for i in range(begins, len(calls)) if calls[i][2] == "Loop.run")
    return calls[begins : ends + 1]


def of_a_frozen_value(file, function):
    """Whether the function is a method of a frozen dataclass, or reads a property."""
    name, _, method = function.partition(".")
    kinds = [node for node in tree(SOURCE / file).body if isinstance(node, ast.ClassDef) and node.name == name and method]
    methods = [part for kind in kinds for part in kind.body if isinstance(part, ast.FunctionDef) and part.name == method]
    frozen = any(ast.unparse(decorator) == "dataclass(frozen=True)" for kind in kinds for decorator in kind.decorator_list)
    return frozen or any(ast.unparse(decorator) == "property" for part in methods for decorator in part.decorator_list)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_change_returns_to_no_file_more_than_once(family, called):
    visits = [file for caller, file, function in stage_change(called[family]["calls"]) if not of_a_frozen_value(file, function)]
    visits = [file for file in visits if file not in ("training/run.py", "training/stage.py", "training/layout.py")]
    turns = [file for file, _ in itertools.groupby(visits)]
    assert len(turns) > 15
    assert not {file: turns.count(file) for file in turns if turns.count(file) > 2}, turns


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_change_goes_as_the_table_of_the_architecture_says(family, called):
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `([\w.]+)[^|]*\| `([\w/]+\.py)` \|", text.partition("## The way of a stage change")[2], re.MULTILINE)
    assert [name for name, _ in table][::8] == ["plan_stage", "loop.run"]
    calls = stage_change(called[family]["calls"])
    waiting = iter(calls)
    for name, file in table:
        function = rf"(\w+\.)?{name.rpartition('.')[2]}(\.__init__)?"
        assert any(callee == file and re.fullmatch(function, callee_name) for _, callee, callee_name in waiting), (
            f"{name} of {file} is not its turn"
        )
    named = re.findall(r"`([\w/]+\.py)`", text.partition("## The way of a stage change")[2].partition("\n## ")[0])
    visited = {file for _, file, function in calls if not file.startswith("families/") and not of_a_frozen_value(file, function)}
    assert not {file for file in visited if not file.endswith(tuple(named))}
