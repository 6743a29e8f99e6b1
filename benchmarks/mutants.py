"""The changes that a mutation run makes to a file: one at a time, by Python's ast. Drawing and running them is mutation.py.

    compare    < to <=, == to !=, `is` to `is not`, `in` to `not in`, and back      operator   + to -, * to /, // to *, % to *, -x to x
    boolean    `and` to `or` and back, `not x` to `x`                               constant   a number plus 1, True to False and back
    return     `return x` to `return None`                                          minmax     min to max and back
    drop       a call made for its effect, or an assignment to an attribute or item, left out
    condition  an if, a conditional expression or a filter always true, or always false (of a while: only false)

Not changed: docstrings and other strings, annotations, decorators, Protocols, `assert` lines and the `strict` of `zip`, which asserts too,
what a `raise`, a log call or a print says.
What is seen to join texts, paths or lists is no arithmetic.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
    lines: range | None
    """The lines of its statement, or of the head of a compound one; None for what runs at import."""


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
    if isinstance(node, ast.Call) and called(node) == "zip":
        return list(node.args)
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


def all_changes(tree: ast.Module) -> list[tuple[str, range | None, Change]]:
    """Every change of a file with the function or class around it and its `Mutant.lines`, in one order for one text."""
    listed: list[tuple[str, range | None, Change]] = []
    waiting: list[tuple[str, bool, range | None, ast.AST]] = [("", False, None, tree)]
    while waiting:
        name, inside, lines, node = waiting.pop()
        if isinstance(node, ast.Assert | ast.Raise):
            continue
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{name}.{node.name}".lstrip(".")
        elif isinstance(node, ast.stmt):
            lines = head(node) if inside else None
        for change in (*expression_changes(node), *statement_changes(node)):
            dropped = isinstance(change.node, ast.stmt) and change.node is not node
            inside_body = inside or isinstance(node, ast.FunctionDef)
            listed.append((name, (head(change.node) if inside_body else None) if dropped else lines, change))
        for child in reversed(children(node)):
            body = inside or (isinstance(node, ast.FunctionDef) and isinstance(child, ast.stmt))
            waiting.append((name, body, lines if body == inside else None, child))
    return listed


def head(statement: ast.stmt) -> range:
    """The lines of a statement, without those of the statements in it."""
    inner = [part.lineno for part in ast.iter_child_nodes(statement) if isinstance(part, ast.stmt | ast.ExceptHandler)]
    return range(statement.lineno, max(statement.lineno + 1, min(inner, default=(statement.end_lineno or statement.lineno) + 1)))


def count(text: str) -> int:
    """How many changes can be made to a file."""
    return len(all_changes(ast.parse(text)))


def mutant(file: str, text: str, number: int) -> Mutant:
    """Change `number` of a file with this text, made."""
    tree = ast.parse(text)
    function, lines, change = all_changes(tree)[number]
    before = shown(change.node)
    line = next(node.lineno for node in ast.walk(change.node) if hasattr(node, "lineno"))
    change.make()
    after = change.after or shown(change.node)
    return Mutant(
        file=file,
        function=function,
        line=line,
        kind=change.kind,
        change=f"{before} -> {after}",
        source=ast.unparse(ast.fix_missing_locations(tree)),
        lines=lines,
    )


def shown(node: ast.AST) -> str:
    """A node as one line of source, a long one shortened."""
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
