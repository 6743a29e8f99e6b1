"""The tables of `benchmarks/mutation.py`: every measured file has its tests, and nothing is named that does not exist."""

import ast

import pytest

from tests.test_house import ROOT, SOURCE, tree


@pytest.fixture(scope="module")
def tables():
    """The constants FILES, TESTS and EQUIVALENT, read without importing the benchmark."""
    body = tree(ROOT / "benchmarks/mutation.py").body
    named = [(node.target if isinstance(node, ast.AnnAssign) else node.targets[0], node.value) for node in body if is_assignment(node)]
    values = {target.id: value for target, value in named if isinstance(target, ast.Name)}
    return {name: ast.literal_eval(values[name]) for name in ("FILES", "TESTS", "EQUIVALENT")}


def is_assignment(node):
    return isinstance(node, ast.Assign | ast.AnnAssign)


def test_the_measured_files_are_those_that_have_tests(tables):
    measured = {path for pattern in tables["FILES"] for path in ROOT.glob(pattern) if path.read_text(encoding="utf-8").strip()}
    assert len(measured) > 50
    assert sorted(tables["TESTS"]) == sorted(path.relative_to(SOURCE).as_posix() for path in measured)


def test_the_tests_of_every_measured_file_exist(tables):
    missing = {file: [name for name in names.split() if not (ROOT / "tests" / name).is_file()] for file, names in tables["TESTS"].items()}
    assert not {file: names for file, names in missing.items() if names}


def test_a_mutant_without_effect_is_named_by_a_line_that_exists(tables):
    lines = {file: (SOURCE / file).read_text(encoding="utf-8") for file, *_ in tables["EQUIVALENT"]}
    assert not [(file, part) for file, part, _, _ in tables["EQUIVALENT"] if part not in lines[file]]
