"""The budgets of the code and the direction of imports, counted. When one pinches, the cure is a better idea, not a split in the middle."""

import ast
import functools
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from plait.commands import verbs

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "plait"
FILES = sorted(SOURCE.rglob("*.py"))

FILE_LINES, FUNCTION_LINES, FUNCTION_MEDIAN, PACKAGE_FILES = 400, 60, 10, 18
SENTENCE_WORDS, POSITIONAL = 22, 6
ROOT_FILES = {"__init__.py", "__main__.py", "cli.py", "errors.py", "files.py", "keys.py"}

LAYERS = [
    {"errors", "keys", "files"},
    {"config"},
    {"engine", "data", "nn"},
    {"families"},
    {"assembly"},
    {"training"},
    {"commands", "lmms_eval"},
    {"cli", "api", "theworld"},
    {"hf"},
    {"__main__"},
]
"""Rooms of one floor that do not know each other."""
OPTIONAL_PACKAGES = {
    "wandb",
    "pandas",
    "datasets",
    "pyarrow",
    "httpx",
    "aiohttp",
    "yarl",
    "pycocoevalcap",
    "py3langid",
    "sacrebleu",
    "lmms_eval",
    "av",
    "apprise",
    "mlflow",
    "trackio",
    "peft",
    "bitsandbytes",
    "torchao",
    "deepspeed",
}
"""Imported inside a function because plait runs without them."""


@functools.cache
def tree(path):
    return ast.parse(text(path))


@functools.cache
def text(path):
    return path.read_text(encoding="utf-8")


def name_of(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imported(node, package):
    """The plait modules that one import statement, or call of import_module with a name as it stands, names in a file of `package`."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names if alias.name in MODULES}
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "import_module":
        return {part.value for part in node.args if isinstance(part, ast.Constant)} & MODULES.keys()
    if not isinstance(node, ast.ImportFrom):
        return set()
    above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
    module = ".".join(filter(None, [above, node.module]))
    inner = {f"{module}.{alias.name}" for alias in node.names} & MODULES.keys()
    return inner or ({module} & MODULES.keys())


@functools.cache
def imports(path):
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    return set().union(*(imported(node, package) for node in nodes(path)))


@pytest.mark.parametrize(
    ("line", "modules"),
    [
        ("import plait.files", {"plait.files"}),
        ("from plait.engine import loop, state", {"plait.engine.loop", "plait.engine.state"}),
        ("from plait.engine.loop import Loop", {"plait.engine.loop"}),
        ("from . import loop", {"plait.engine.loop"}),
        ("from .loop import Loop", {"plait.engine.loop"}),
        ("from .. import files", {"plait.files"}),
        ("from ..data.order import Order", {"plait.data.order"}),
        ("importlib.import_module('plait.data.order')", {"plait.data.order"}),
        ("import_module('plait.data.order')", {"plait.data.order"}),
        ("import torch", set()),
    ],
)
def test_every_way_to_import_is_counted(line, modules):
    assert set().union(*(imported(node, "plait.engine") for node in ast.walk(ast.parse(line)))) == modules


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def package(module):
    """The folder of a module; a file at the root is a room of its own."""
    if len(module.split(".")) < 3 and MODULES[module].name != "__init__.py":
        return module
    return name_of(MODULES[module].parent / "__init__.py")


def layer(module):
    return next((i for i, names in enumerate(LAYERS) if room(module) in names), None)


@functools.cache
def nodes(path):
    return list(ast.walk(tree(path)))


def functions(path):
    return [node for node in nodes(path) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def cycle(graph):
    """A cycle of a graph as a list of its nodes, or None."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        path.append(node)
        for other in sorted(graph.get(node, ())):
            if found := visit(other):
                return found
        path.pop()
        done.add(node)
        return None

    return next((found for node in sorted(graph) if (found := visit(node))), None)


def faults(found):
    """What `found(path)` finds wrong with each file, by module, but for files without a fault."""
    return {name_of(path): wrong for path in FILES if (wrong := found(path))}


def hold(found, rule=""):
    """Fail with a line for each file in which `found(path)` finds something wrong."""
    assert not (wrong := faults(found)), "\n".join([rule, *(f"{module}: {fault}" for module, fault in wrong.items())])


def test_a_fault_is_told_with_its_file():
    assert len(FILES) > 500
    with pytest.raises(AssertionError, match=r"lines\n *plait\.cli: \[3\]"):
        hold(lambda path: [3] if path.name == "cli.py" else [], "lines")


def test_a_file_keeps_to_its_lines():
    hold(lambda path: max(0, len(text(path).splitlines()) - FILE_LINES), f"lines beyond {FILE_LINES}")


def test_the_command_line_fits_on_a_screen_or_two():
    assert len((SOURCE / "cli.py").read_text(encoding="utf-8").splitlines()) <= 80


def test_a_function_keeps_to_its_lines():
    def long(path):
        lines = {node.name: node.end_lineno - node.lineno + 1 for node in functions(path)}
        return {name: count for name, count in lines.items() if count > FUNCTION_LINES}

    hold(long)


def test_functions_are_short():
    assert statistics.median(node.end_lineno - node.lineno + 1 for path in FILES for node in functions(path)) <= FUNCTION_MEDIAN


def test_a_package_keeps_to_its_files_and_the_root_to_six():
    counts = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in FILES}}
    assert {path.name for path in SOURCE.glob("*.py")} == ROOT_FILES
    assert not {str(folder): count for folder, count in counts.items() if count > PACKAGE_FILES}


def test_every_room_has_a_layer():
    assert {room(module) for module in MODULES} - {""} == set().union(*LAYERS)


def test_imports_point_down():
    def upward(path):
        own = name_of(path)
        others = [other for other in imports(path) if room(own) and room(other) != room(own) and room(other)]
        return [other for other in others if layer(other) >= layer(own)]

    hold(upward)


def test_no_family_imports_another():
    for module, path in MODULES.items():
        parts = module.split(".")
        if parts[:2] == ["plait", "families"] and len(parts) > 3:
            others = [other for other in imports(path) if other.startswith("plait.families.") and len(other.split(".")) > 3]
            assert all(other.split(".")[2] == parts[2] for other in others), f"{module} imports {others}"


def test_only_a_family_and_dialects_name_it():
    """A dialect translates another trainer's configurations into those of one family."""
    families = {path.parent.name for path in SOURCE.glob("families/*/family.py")}
    core = [path for path in FILES if path.parent != SOURCE / "config/dialects" and not families & set(path.relative_to(SOURCE).parts)]
    assert len(families) > 2 and len(core) > 100
    named = {
        name_of(path): re.findall(rf"(?i)(?<![a-z])(?:{'|'.join(families)})(?![a-z])", path.read_text(encoding="utf-8")) for path in core
    }
    assert not {module: found for module, found in named.items() if found}


def test_there_are_no_import_cycles_of_files():
    assert cycle({module: imports(path) - {module} for module, path in MODULES.items()}) is None


def test_there_are_no_import_cycles_of_packages():
    graph = {}
    for module, path in MODULES.items():
        graph.setdefault(package(module), set()).update({package(other) for other in imports(path)} - {package(module)})
    assert cycle(graph) is None


def test_only_optional_packages_and_a_commands_work_are_imported_inside_functions():
    def inside(path):
        of_prove = path.parent.name == "prove" and path.name not in ("prove.py", "compare.py", "smoke_config.py")
        a_command = path.parent in (SOURCE / "commands", SOURCE / "commands/runs") or of_prove
        found = []
        for function in functions(path):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                    allowed = {name.split(".")[0] for name in names} <= OPTIONAL_PACKAGES
                    found += [] if allowed or (a_command and function.name.startswith("run")) else [f"{function.name} imports {names}"]
        return found

    hold(inside)


def test_every_file_says_what_it_is():
    hold(lambda path: text(path).strip() and not ast.get_docstring(tree(path)), "a file opens with a docstring")


def public(path):
    """Every (name, node) of a file that others may use: the module, its public classes and functions, and their public methods."""

    def inside(node, above):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and (not child.name.startswith("_") or child.name == "__init__"):
                yield f"{above}{child.name}", child
                if isinstance(child, ast.ClassDef):
                    yield from inside(child, f"{above}{child.name}.")

    return [("", tree(path)), *inside(tree(path), "")]


def first_sentence(said):
    """The first sentence of a docstring; "et al. 2023" does not end one."""
    return re.split(r"(?<!al)[.!?](?=\s+[^a-z\s])", " ".join(said.partition("\n\n")[0].split()))[0]


def test_a_docstring_begins_with_a_short_sentence():
    def long(path):
        sentences = {name: first_sentence(ast.get_docstring(node) or "") for name, node in public(path)}
        return {name: sentence for name, sentence in sentences.items() if len(sentence.split()) > SENTENCE_WORDS}

    hold(long)


def test_the_first_sentence_is_told_from_the_rest():
    assert first_sentence("Read a file. Its rows\nfollow.") == "Read a file"
    assert first_sentence("Read a\nfile, e.g. one of Lu et al. 2023. More.") == "Read a file, e.g. one of Lu et al. 2023"
    assert first_sentence("Read a file\n\nmore.") == "Read a file"


@functools.cache
def errors():
    """The names of PlaitError and all that is derived from it."""
    classes = [node for path in FILES for node in nodes(path) if isinstance(node, ast.ClassDef)]
    names, before = {"PlaitError"}, set()
    while names != before:
        before = set(names)
        names |= {node.name for node in classes if names & {ast.unparse(base).rpartition(".")[2] for base in node.bases}}
    return names


def raised(function):
    """The names of plait's errors that a function itself raises, not one inside it."""
    waiting, names = [*function.body], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            names.add(ast.unparse(error).rpartition(".")[2])
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)
    return names & errors()


def test_what_raises_says_so():
    def silent(path):
        of_file, found = dict(public(path)), {}
        for name, node in of_file.items():
            if isinstance(node, ast.FunctionDef) and (names := raised(node)):
                owner = of_file[name.rpartition(".")[0]] if node.name == "__init__" else node
                said = f"{ast.get_docstring(node) or ''} {ast.get_docstring(owner) or ''}"
                found |= {} if re.search("[Rr]aise", said) else {name: names}
        return found

    hold(silent)


def test_what_raises_is_found():
    assert {"BadSample", "Stopped", "BenchFailed"} < errors()
    assert raised(ast.parse("def f():\n  if x: raise errors.BadSample('')\n  def g(): raise Stopped").body[0]) == {"BadSample"}
    assert sum(bool(raised(node)) for path in FILES for node in functions(path)) > 200


def test_a_call_names_its_arguments_beyond_the_sixth():
    """Except shapes of tensors, and what takes any number of arguments, such as the parts of a key."""

    def lines(path):
        calls = [node for node in nodes(path) if isinstance(node, ast.Call) and len(node.args) > POSITIONAL]
        return [node.lineno for node in calls if not ast.unparse(node.func).endswith(("permute", "reshape"))]

    hold(lines)


def test_nothing_is_left_for_later_or_without_a_name():
    hold(lambda path: re.findall(r"\b(?:TODO|FIXME|XXX)\b", text(path)))
    hold(lambda path: path.stem in {"utils", "common", "misc", "helpers"})
    handlers = {path: [node for node in nodes(path) if isinstance(node, ast.ExceptHandler)] for path in FILES}
    hold(lambda path: [node.lineno for node in handlers[path] if node.type is None], "lines of an except that names no error")


def test_nothing_prints():
    """Lines to a person go through the reporter."""

    def lines(path):
        calls = [node for node in nodes(path) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        return [node.lineno for node in calls if node.func.id == "print"]

    hold(lines)


def test_files_that_documents_name_exist():
    names = {path.name for folder in (SOURCE, ROOT / "tests", ROOT / "benchmarks") for path in folder.rglob("*.py")}
    paths = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    for page in [*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for named in re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", page.read_text(encoding="utf-8")):
            exists = named in names or any(path == named or path.endswith(f"/{named}") for path in paths)
            assert exists, f"{page.name} names {named}"


def test_files_that_docstrings_name_exist():
    names = {path.name for path in FILES} | {"file.py", "torchrun.py"}
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (said := ast.get_docstring(node)):
                missing = [named for named in re.findall(r"(?<![\w/.])([a-z_]+\.py)\b", said) if named not in names]
                assert not missing, f"{name_of(path)} names {missing}"


@pytest.mark.parametrize("module", ["plait.cli", "plait.config.load", "plait.assembly.configuration", "plait.families.registry"])
def test_the_command_line_and_the_configuration_never_import_torch(module):
    heavy = "{'torch', 'transformers', 'diffusers'} & set(sys.modules)"
    code = f"import sys, {module}; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_of_every_command_is_free_of_torch():
    commands = [command.words for command in verbs.shipped()]
    assert len(commands) > 15
    code = (
        "import contextlib, io, sys\nfrom plait import cli\n"
        f"for words in {commands!r} + [()]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):\n"
        "        cli.main([*words, '--help'])\n"
        "    assert 'usage: plait' in said.getvalue(), words\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
