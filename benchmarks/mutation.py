"""The mutation score of the engine, the order of data, the loader and the training room: how many small defects the tests notice.

    OMP_NUM_THREADS=1 python benchmarks/mutation.py --seed 1 --count 100

Draws a reproducible sample of mutants over FILES and runs, for each, the tests that TESTS maps to its file (`pytest -x`), against a copy of
the tree in a temporary folder: the checkout is never written to. A failing or hanging run (three times the unmutated time, at least 60 s)
kills the mutant. Prints one line per mutant and writes benchmarks/results/mutation.json with the score, each room's, and all survivors.

A mutant is one change by Python's ast (what is seen to join texts, paths or lists is no arithmetic):

    compare    < to <=, == to !=, `is` to `is not`, `in` to `not in`, and back      operator   + to -, * to /, // to *, % to *, -x to x
    boolean    `and` to `or` and back, `not x` to `x`                               constant   a number plus 1, True to False and back
    return     `return x` to `return None`                                          minmax     min to max and back
    drop       a call made for its effect, or an assignment to an attribute or item, left out
    condition  an if, a conditional expression or a filter always true, or always false (of a while: only false)

Not mutated: docstrings, annotations, decorators, defaults of Protocols, `assert` lines, what a `raise`, a log call or a print says.
Strings are not changed. The sample is uniform over mutants, so long files weigh more. Only the tests in the table run: what other tests of
the suite would notice counts as survived. EQUIVALENT lists mutants that change no behaviour, by hand and with the reason: the score is given
with and without them. mutmut and cosmic-ray change a tree completely, which takes a day here: neither draws a sample with a seed, leaves
statements out and maps each file to its tests. Needs Linux (fork, subreaper).
"""

import argparse
import ast
import ctypes
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch._dynamo
import torch.distributed.checkpoint
import torch.utils.tensorboard
import transformers  # noqa: F401  imported once here, and inherited by the process of every mutant

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mutation.json"
FILES = ("src/plait/engine/**/*.py", "src/plait/data/order.py", "src/plait/data/loading/*.py", "src/plait/training/*.py")
LEAST_TIMEOUT_S, TIMES_UNMUTATED = 60.0, 3.0
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2): orphans of a test become children of this process, which ends them

TESTS: dict[str, str] = {
    "data/order.py": "data/test_order.py data/test_buckets.py data/test_loader.py",
    "data/loading/__init__.py": "data/test_loader.py",
    "data/loading/loader.py": "data/test_loader.py engine/test_facts.py",
    "data/loading/micro_batch.py": "data/test_loader.py data/test_buckets.py",
    "data/loading/shared_memory.py": "data/test_shared_memory.py data/test_loader.py",
    "data/loading/workers.py": "data/test_loader.py",
    "engine/adamw.py": "engine/test_precision.py engine/test_sharding.py",
    "engine/blocks.py": "engine/test_blocks.py",
    "engine/evaluation.py": "engine/test_loop.py engine/test_distributed.py training/test_run.py commands/test_eval.py commands/test_eval_ranks.py",
    "engine/flops.py": "engine/test_flops.py engine/test_loop.py",
    "engine/guards.py": "engine/test_loop.py engine/test_distributed.py training/test_run.py",
    "engine/loop.py": "engine/test_loop.py engine/test_distributed.py engine/test_nonfinite.py engine/test_precision.py training/test_run.py",
    "engine/micro_batch.py": "engine/test_out_of_memory.py",
    "engine/nonfinite.py": "engine/test_loop.py engine/test_nonfinite.py",
    "engine/optim.py": "engine/test_optim.py engine/test_loop.py engine/test_facts.py engine/test_precision.py engine/test_sharding.py",
    "engine/out_of_memory.py": "engine/test_out_of_memory.py",
    "engine/plateau.py": "engine/test_plateau.py",
    "engine/power_ema.py": "engine/test_power_ema.py engine/test_post_hoc_ema.py",
    "engine/precision.py": "engine/test_precision.py training/test_precision_runs.py",
    "engine/replicas.py": "engine/test_replicas.py",
    "engine/schedule.py": "engine/test_schedule.py training/test_start.py",
    "engine/source_shares.py": "engine/test_source_shares.py engine/test_distributed.py",
    "engine/state.py": "engine/test_state.py engine/test_facts.py engine/test_post_hoc_ema.py engine/test_sharding.py training/test_run.py",
    "engine/checkpoints/checkpoint.py": "engine/test_checkpoint.py engine/test_facts.py engine/test_post_hoc_ema.py training/test_run.py",
    "engine/checkpoints/migrate.py": "engine/test_migrate.py training/test_start.py",
    "engine/checkpoints/post_hoc_ema.py": "engine/test_post_hoc_ema.py",
    "engine/checkpoints/rundir.py": "engine/test_rundir.py training/test_run.py training/test_start.py",
    "engine/checkpoints/sharded_files.py": "engine/test_checkpoint.py engine/test_sharding.py training/test_reshard.py",
    "engine/monitoring/heartbeat.py": "engine/test_heartbeat.py engine/test_watchdog.py",
    "engine/monitoring/signals.py": "engine/test_signals.py training/test_run.py",
    "engine/monitoring/tracking.py": "engine/test_tracking.py training/test_run.py",
    "engine/monitoring/wandb_mirror.py": "engine/test_tracking.py",
    "engine/monitoring/watchdog.py": "engine/test_watchdog.py",
    "engine/parallel/distributed.py": "engine/test_distributed.py engine/test_sharding.py engine/test_facts.py training/test_launch.py",
    "engine/parallel/memory_estimate.py": "engine/test_memory_estimate.py engine/test_strategy.py engine/test_sharding.py",
    "engine/parallel/sharding.py": "engine/test_sharding.py training/test_reshard.py",
    "engine/parallel/strategy.py": "engine/test_strategy.py",
    "training/__init__.py": "training/test_run.py",
    "training/launch.py": "training/test_launch.py commands/test_prove.py training/test_elastic.py",
    "training/run.py": "training/test_start.py training/test_run.py commands/test_stages.py",
    "training/stage.py": "engine/test_plateau.py engine/test_out_of_memory.py training/test_run.py training/test_start.py commands/test_stages.py",
    "training/start.py": "training/test_start.py training/test_run.py",
    "training/summary.py": "training/test_summary.py training/test_run.py",
    "training/torchrun.py": "training/test_launch.py training/test_elastic.py",
}
"""Test files by source file, relative to `src/plait` and `tests`, the fastest first."""

EQUIVALENT: list[tuple[str, str, str, str]] = []
"""File, function, change and reason of each mutant that no test can notice."""

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATOR: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_LOGS = {"print", "debug", "info", "warning", "error", "exception", "warn", "say"}
_SHOWN = 100  # characters of a change
_ANNOTATIONS = {"annotation", "returns", "decorator_list", "bases", "type_comment"}


@dataclass(frozen=True)
class Mutant:
    """One change to one file. `source` is the whole file with it."""

    file: str
    function: str
    line: int
    kind: str
    change: str
    source: str


@dataclass(frozen=True)
class Change:
    """What can be done at `node`: `make` does it, in the tree. `after`: how it is shown; None for the node as it then is."""

    kind: str
    node: ast.AST
    make: Callable[[], None]
    after: str | None = None


def called(node: ast.AST) -> str:
    """The last name of what is called; empty for anything else."""
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""


def children(node: ast.AST) -> list[ast.AST]:
    """The parts of a node that may be changed."""
    if isinstance(node, ast.Assert | ast.Raise) or called(node) in _LOGS:
        return []
    if isinstance(node, ast.ClassDef) and any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
        return []
    if called(node) == "isinstance":
        return [node.args[0]]
    parts = []
    for name, value in ast.iter_fields(node):
        if name not in _ANNOTATIONS:
            parts += [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, ast.AST)]
    return parts


def joins(node: ast.BinOp | ast.AugAssign) -> bool:
    """Whether an operator joins texts, paths or lists, as can be seen: any other one would be a TypeError at once."""
    sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
    literal = [isinstance(side, ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp) for side in sides]
    return any(literal) or any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in sides)


def expression_changes(node: ast.AST) -> Iterator[Change]:
    """What can be done to an expression."""

    def put(kind: str, field: str, value: object) -> Change:
        return Change(kind, node, lambda: setattr(node, field, value))

    match node:
        case ast.Compare():
            for i, operator in enumerate(node.ops):
                yield put("compare", "ops", [*node.ops[:i], _COMPARE[type(operator)](), *node.ops[i + 1 :]])
        case ast.BinOp() | ast.AugAssign() if type(node.op) in _OPERATOR and not joins(node):
            yield put("operator", "op", _OPERATOR[type(node.op)]())
        case ast.UnaryOp(op=ast.USub()):
            yield put("operator", "op", ast.UAdd())
        case ast.UnaryOp(op=ast.Not()):
            yield put("boolean", "operand", ast.UnaryOp(ast.Not(), node.operand))
        case ast.BoolOp():
            yield put("boolean", "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.Constant(value=bool()):
            yield put("constant", "value", not node.value)
        case ast.Constant(value=int() | float()):
            yield put("constant", "value", node.value + 1)
        case ast.Name(id="min" | "max", ctx=ast.Load()):
            yield put("minmax", "id", "max" if node.id == "min" else "min")


def statement_changes(node: ast.AST) -> Iterator[Change]:
    """What can be done to a statement, and to the conditions of statements and expressions."""

    def put(kind: str, field: str, value: object, at: ast.AST, after: str | None) -> Change:
        return Change(kind, at, lambda: setattr(node, field, value), after)

    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield put("return", "value", ast.Constant(None), node, None)
    if isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(node.test, ast.Constant):
        for value in (False,) if isinstance(node, ast.While) else (True, False):
            yield put("condition", "test", ast.Constant(value), node.test, f"{value}")
    for i, test in enumerate(node.ifs if isinstance(node, ast.comprehension) else []):
        for value in (True, False):
            yield put("condition", "ifs", [*node.ifs[:i], ast.Constant(value), *node.ifs[i + 1 :]], test, f"{value}")
    for field in ("body", "orelse", "finalbody"):
        statements = getattr(node, field, None)
        for i, statement in enumerate(statements if isinstance(statements, list) else []):
            if droppable(statement):
                yield put("drop", field, [*statements[:i], ast.Pass(), *statements[i + 1 :]], statement, "left out")


def droppable(statement: ast.stmt) -> bool:
    """Whether a statement is there for its effect: a call, or an assignment to an attribute or item."""
    match statement:
        case ast.Expr():
            return isinstance(statement.value, ast.Call)
        case ast.Assign():
            return any(isinstance(target, ast.Attribute | ast.Subscript) for target in statement.targets)
        case ast.AnnAssign():
            return statement.value is not None and isinstance(statement.target, ast.Attribute)
    return isinstance(statement, ast.AugAssign)


def all_changes(tree: ast.Module) -> list[tuple[str, Change]]:
    """Every change of a file with the name of the function or class around it, in one order for one text."""
    listed: list[tuple[str, Change]] = []
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}".lstrip(".")
        if isinstance(node, ast.Assert | ast.Raise):
            continue
        listed += [(name, change) for change in (*expression_changes(node), *statement_changes(node))]
        waiting += [(name, child) for child in reversed(children(node))]
    return listed


def mutant(file: str, number: int) -> Mutant:
    """Change `number` of a file, made."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    function, change = all_changes(tree)[number]
    before = shown(change.node)
    line = next(node.lineno for node in ast.walk(change.node) if hasattr(node, "lineno"))
    change.make()
    after = change.after or shown(change.node)
    return Mutant(file, function, line, change.kind, f"{before} -> {after}", ast.unparse(ast.fix_missing_locations(tree)))


def shown(node: ast.AST) -> str:
    """A node as one line of source, a long one shortened."""
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def draw(seed: int, count: int, only: str) -> list[Mutant]:
    """The sample, in the order of files: as many mutants as asked of all that FILES have, where the path holds `only`."""
    files = sorted({path for pattern in FILES for path in ROOT.glob(pattern)})
    names = [str(path.relative_to(ROOT)) for path in files if only in str(path)]
    places = [(name, i) for name in names for i in range(len(all_changes(ast.parse((ROOT / name).read_text(encoding="utf-8")))))]
    print(f"{len(places)} mutants in {len(names)} files", flush=True)
    return [mutant(name, i) for name, i in sorted(random.Random(seed).sample(places, min(count, len(places))))]


def copy_tree(target: Path) -> None:
    """The files of the checkout that git does not ignore, compiled: a compiled file is used only for the source it was made of."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    compile_all = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "src"]
    subprocess.run(compile_all, cwd=target, check=True)


def tests_of(file: str) -> list[str]:
    """The test files for a source file."""
    return [f"tests/{name}" for name in TESTS[file.removeprefix("src/plait/")].split()]


def run_tests(tree: Path, tests: Sequence[str], timeout_s: float, log: Path) -> tuple[bool | None, float]:
    """Whether the tests pass (None: they hang), and the seconds they took: in a forked process that has not imported plait."""
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _tests_here(tree, tests, log)
        except BaseException:  # noqa: BLE001  the process ends here
            traceback.print_exc()
        finally:
            os._exit(code)  # whatever happens: what follows is the parent's
    ended, status = 0, 0
    while not ended and time.monotonic() - began < timeout_s:
        ended, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0 if ended else 0.05)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    _end_orphans()
    return (status == 0 if ended else None), time.monotonic() - began


def _tests_here(tree: Path, tests: Sequence[str], log: Path) -> int:
    """The exit code of pytest in this process, its output in `log`."""
    os.setsid()
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree / "src")
    sys.path[:0] = [str(tree / "src"), str(tree)]
    sys.modules["__main__"] = types.ModuleType("__main__")  # or processes that a test spawns would import this file
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    imported = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", imported, *tests])
    sys.stdout.flush()
    here = Path(sys.modules["plait"].__file__ or "").is_relative_to(tree)
    return int(code) if here else 99


def _end_orphans() -> None:
    """Kill what a test run has left behind: its processes became children of this one."""
    while True:
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                    os.kill(int(path.parent.name), signal.SIGKILL)
            except (OSError, IndexError):
                continue
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def unmutated_times(tree: Path, tests: Sequence[str]) -> dict[str, float]:
    """Seconds of each test file as the tree is. Exits where one fails."""
    took = {}
    for name in tests:
        passed, took[name] = run_tests(tree, [name], 600.0, tree / "tests.log")
        print(f"{took[name]:6.1f} s  {name}", flush=True)
        if not passed:
            sys.exit(f"{name} fails unmutated:\n{(tree / 'tests.log').read_text()[-4000:]}")
    return took


def judged(found: Mutant, tree: Path, took: dict[str, float]) -> dict[str, object]:
    """The row of one mutant: killed, survived or equivalent."""
    path, tests = tree / found.file, tests_of(found.file)
    before = path.read_text(encoding="utf-8")
    path.write_text(found.source, encoding="utf-8")
    limit_s = max(LEAST_TIMEOUT_S, TIMES_UNMUTATED * sum(took[name] for name in tests))
    try:
        passed, seconds = run_tests(tree, tests, limit_s, tree / "tests.log")
    finally:
        path.write_text(before, encoding="utf-8")
    same = (found.file.removeprefix("src/plait/"), found.function, found.change)
    reason = next((entry[3] for entry in EQUIVALENT if entry[:3] == same), None)
    by = next((line for line in (tree / "tests.log").read_text(errors="replace").splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    result = "hang" if passed is None else "killed" if not passed else "equivalent" if reason else "survived"
    print(f"{result:10} {found.file}:{found.line} {found.function}: {found.change}  [{seconds:.0f} s] {by[:100]}", flush=True)
    row = {"result": result, "file": found.file, "line": found.line, "function": found.function, "kind": found.kind, "change": found.change}
    return row | ({"reason": reason} if result == "equivalent" else {})


def room_of(file: str) -> str:
    """The folder of a file, as the score is given for it."""
    return str(Path(file).parent.relative_to("src/plait")) if "order" not in file else "data/order"


def score(rows: Sequence[dict[str, object]]) -> dict[str, float | int]:
    """How many mutants were killed, of all and of those that are not equivalent."""
    killed = sum(row["result"] in ("killed", "hang") for row in rows)
    equivalent = sum(row["result"] == "equivalent" for row in rows)
    real = len(rows) - equivalent
    shares = {"score": round(killed / len(rows), 4), "score_without_equivalent": round(killed / real, 4) if real else 1.0}
    return {"mutants": len(rows), "killed": killed, "equivalent": equivalent, "survived": real - killed, **shares}


def main() -> None:
    """Draw, run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--only", default="", help="of files whose path holds this text")
    parser.add_argument("--list", action="store_true", help="print the sample, run nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    sample = draw(options.seed, options.count, options.only)
    if options.list:
        print("\n".join(f"{found.file}:{found.line} {found.function}: {found.kind}: {found.change}" for found in sample))
        return
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="plait-mutation-") as folder:
        tree = Path(folder).resolve() / "plait"
        copy_tree(tree)
        took = unmutated_times(tree, list(dict.fromkeys(name for found in sample for name in tests_of(found.file))))
        rows = [judged(found, tree, took) for found in sample]
    rooms = {room: score([row for row in rows if room_of(str(row["file"])) == room]) for room in sorted({room_of(m.file) for m in sample})}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    machine = {"python": platform.python_version(), "torch": torch.__version__, "processor": platform.processor() or platform.machine()}
    machine |= {"cores": len(os.sched_getaffinity(0))}
    total = score(rows)
    print(json.dumps(total))
    survivors = [row for row in rows if row["result"] in ("survived", "equivalent")]
    command = f"OMP_NUM_THREADS=1 python benchmarks/mutation.py --seed {options.seed} --count {options.count}"
    said = {"command": command, "commit": commit, "seed": options.seed, "minutes": round((time.monotonic() - began) / 60, 1), **total}
    options.out.write_text(json.dumps({**said, "rooms": rooms, "machine": machine, "survivors": survivors}, indent=2) + "\n")


if __name__ == "__main__":
    main()
