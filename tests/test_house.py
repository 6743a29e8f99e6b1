"""STYLE's budgets and the direction of imports, counted. When one pinches, the cure is a better idea, not a split in the middle."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "plait"
FILES = sorted(SOURCE.rglob("*.py"))

FILE_LINES = 400
FUNCTION_LINES = 60
FAMILY_CLOSURE_LINES = 4000

BOTTOM = {"errors", "keys", "files"}
CONFIGURATION = {"config", "reading", "schema", "provenance", "secrecy", "complaints", "ledger", "resolved", "conflicts", "mixture"}
DIALECTS = {"dialects", "translation", "flat_json", "nested_yaml", "dotted_flags", "launch_scripts"}
SIBLINGS = {"engine", "data", "nn"}
RUNNING = {"parts", "places", "saved", "start", "announcement", "stage", "run", "prove", "compare", "shorten", "launch", "agent"}
LOOKING = {"fork", "stages", "shard", "evaluate", "doctor", "ckpt", "inspect", "gallery", "export", "hf"}
LAYERS = [BOTTOM, CONFIGURATION | DIALECTS, SIBLINGS, {"families"}, RUNNING | LOOKING, {"cli"}, {"__main__"}]
OPTIONAL_PACKAGES = {"wandb", "datasets"}
"""Imported inside a function because plait runs without them."""


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imported(node):
    """The plait modules that one import statement names."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names if alias.name in MODULES}
    if not isinstance(node, ast.ImportFrom) or not node.module or node.level:
        return set()
    inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
    return inner or ({node.module} & MODULES.keys())


def imports(path):
    return set().union(*(imported(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Import | ast.ImportFrom)))


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def layer(module):
    return next((i for i, names in enumerate(LAYERS) if room(module) in names), None)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_keeps_to_its_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_function_keeps_to_its_lines(path):
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno - node.lineno >= FUNCTION_LINES}
    assert not long


def test_every_room_has_a_layer():
    assert {room(module) for module in MODULES} - {""} == set().union(*LAYERS) & {room(module) for module in MODULES}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path):
    own = name_of(path)
    if not room(own):
        return
    for other in imports(path):
        if not room(other):
            continue
        down = layer(other) < layer(own)
        same_room = room(other) == room(own)
        beside = layer(other) == layer(own) and room(own) not in SIBLINGS
        assert down or same_room or beside, f"{own} imports {other}"


def test_no_family_imports_another():
    for module, path in MODULES.items():
        parts = module.split(".")
        if parts[:2] == ["plait", "families"] and len(parts) > 3:
            others = [other for other in imports(path) if other.startswith("plait.families.") and other.split(".")[2] != parts[2]]
            assert not others, f"{module} imports {others}"


def test_there_are_no_import_cycles():
    graph = {module: imports(path) - {module} for module, path in MODULES.items()}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for other in sorted(graph[module]):
            visit(other)
        path.pop()
        done.add(module)

    for module in sorted(graph):
        visit(module)


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "cli.py"], ids=name_of)
def test_only_optional_packages_are_imported_inside_functions(path):
    for function in ast.walk(tree(path)):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                    assert {name.split(".")[0] for name in names} <= OPTIONAL_PACKAGES, f"{function.name} imports {names}"


@pytest.mark.parametrize("family", sorted(path.parent.name for path in SOURCE.glob("families/*/family.py")))
def test_a_newcomer_can_read_all_that_trains_one_family(family):
    """The loop and the family, with all they import: config reading, the kinds of data and checkpoints are read when one wants to."""
    waiting, seen = ["plait.engine.loop", f"plait.families.{family}.family"], set()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imports(MODULES[module])
    lines = sum(len(MODULES[module].read_text(encoding="utf-8").splitlines()) for module in seen)
    assert lines <= FAMILY_CLOSURE_LINES, f"{lines} lines in {len(seen)} files"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_says_what_it_is(path):
    if path.read_text(encoding="utf-8").strip():
        assert ast.get_docstring(tree(path)), "a file opens with a docstring"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_left_for_later_or_without_a_name(path):
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text(encoding="utf-8"))
    assert path.stem not in {"utils", "common", "misc", "helpers"}
    assert not any(isinstance(node, ast.ExceptHandler) and node.type is None for node in ast.walk(tree(path)))


@pytest.mark.parametrize("module", ["plait.cli", "plait.config", "plait.families.registry"])
def test_help_and_configuration_never_import_torch(module):
    heavy = "{'torch', 'transformers', 'diffusers', 'numpy'} & set(sys.modules)"
    code = f"import sys, {module}; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
