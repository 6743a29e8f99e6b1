"""Conditions on the columns of a record: a part of Python's expressions, such as `clip_score > 0.28 and lang == 'en'`.

A condition has comparisons (also `in` and `is None`), `and`, `or`, `not`, + - * / // %, names of columns, numbers, texts, lists, `len`
and `lower`. Python's own parser reads it; nothing of it is run as code. A text beside a number is read as the number that it spells, since
all cells of a CSV are texts. Where a value is null, or is not of the type that an operation takes, the condition is undecided: `and` and
`or` go by their other parts, as in SQL (Kleene's logic).
"""

import ast
import difflib
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

Fields = Mapping[str, Any]
_Compiled = Callable[[Fields], Any]

_LONGEST = 2000  # characters: beyond any condition that a person writes, and no way to keep the parser busy
_DEEPEST = 40
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_ORDERS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS = ("len", "lower")


class Undecided(Exception):
    """Raised where a condition cannot be decided for a record; its text is the reason, such as "clip_score is null"."""


@dataclass(frozen=True)
class Condition:
    """A parsed condition. `text`: as written; `columns`: {name of a column: where it first stands in the text, counted from 1}."""

    text: str
    columns: Mapping[str, int]
    _compiled: _Compiled = field(compare=False, repr=False)

    def holds(self, fields: Fields) -> bool:
        """Return whether a record with these fields fulfils it. Raises Undecided where a value is null or of another type."""
        return _truth(self._compiled(fields), "the condition")

    def unknown(self, known: Sequence[str]) -> tuple[str, int, str] | None:
        """Return (name, its place, nearest known name or "") of the first column that is not in `known`; None if all are."""
        name = next((name for name in self.columns if name not in known), None)
        return None if name is None else (name, self.columns[name], next(iter(difflib.get_close_matches(name, known, 1)), ""))


def parse(text: str) -> Condition:
    """Return a condition. Raises ValueError, with the place in the text counted from 1, for what is none."""
    if len(text) > _LONGEST:
        raise ValueError(f"has {len(text):,} characters, and a condition at most {_LONGEST:,}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"{text!r} at character {error.offset or 1}: {error.msg}") from None
    except (ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"{text!r} is no condition: {error or 'it is nested too deeply'}") from None
    compiler = _Compiler(text.strip())
    return Condition(text.strip(), compiler.columns, compiler.compile(tree.body))


class _Compiler:
    """Turns the syntax tree of a condition into functions of a record's fields, and notes the columns."""

    def __init__(self, text: str) -> None:
        self.text, self.columns, self._depth = text, dict[str, int](), 0

    def compile(self, node: ast.expr) -> _Compiled:
        """Return a function from fields to the value of a part of the condition. Raises ValueError for a part that is not allowed."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError(f"{self.text!r} is no condition: it is nested more than {_DEEPEST} deep")
        made = self._compile(node)
        self._depth -= 1
        return made

    def _compile(self, node: ast.expr) -> _Compiled:
        match node:
            case ast.Constant(value=value) if value is None or isinstance(value, bool | int | float | str):
                return lambda fields: value
            case ast.Name(id=name):
                self.columns.setdefault(name, self._place(node))
                return lambda fields: _value(fields.get(name))
            case ast.List(elts=items) | ast.Tuple(elts=items):
                made = [self.compile(item) for item in items]
                return lambda fields: [item(fields) for item in made]
            case ast.BoolOp(op=joined, values=parts):
                return _either([self.compile(part) for part in parts], decisive=isinstance(joined, ast.Or))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner, what = self.compile(operand), self._source(operand)
                return lambda fields: not _truth(inner(fields), what)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                inner, what, factor = self.compile(operand), self._source(operand), -1 if isinstance(sign, ast.USub) else 1
                return lambda fields: factor * _number(inner(fields), what)
            case ast.BinOp(op=how, left=left, right=right) if type(how) in _ARITHMETIC:
                return self._arithmetic(_ARITHMETIC[type(how)], left, right)
            case ast.Compare():
                return self._comparison(node)
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
                return self._function(name, argument)
        return self._refuse(node)

    def _arithmetic(self, apply: Callable[[Any, Any], Any], left: ast.expr, right: ast.expr) -> _Compiled:
        first, second, whats = self.compile(left), self.compile(right), (self._source(left), self._source(right))

        def value(fields: Fields) -> Any:
            try:
                return apply(_number(first(fields), whats[0]), _number(second(fields), whats[1]))
            except (ZeroDivisionError, OverflowError) as error:
                raise Undecided(f"{whats[0]} and {whats[1]}: {error}") from None

        return value

    def _comparison(self, node: ast.Compare) -> _Compiled:
        """Return the function of `a < b <= c`, which holds where each of its comparisons does."""
        nodes = [node.left, *node.comparators]
        made, whats = [self.compile(each) for each in nodes], [self._source(each) for each in nodes]
        tests = [_test(how) for how in node.ops]
        if None in tests or any(
            isinstance(how, ast.Is | ast.IsNot) and not _is_none(right) for how, right in zip(node.ops, nodes[1:], strict=True)
        ):
            return self._refuse(node)

        def value(fields: Fields) -> bool:
            values = [each(fields) for each in made]
            return all(test(values[i], values[i + 1], (whats[i], whats[i + 1])) for i, test in enumerate(tests) if test is not None)

        return value

    def _function(self, name: str, argument: ast.expr) -> _Compiled:
        inner, what = self.compile(argument), self._source(argument)

        def value(fields: Fields) -> Any:
            given = inner(fields)
            if name == "lower" and isinstance(given, str):
                return given.lower()
            if name == "len" and isinstance(given, str | list | tuple):
                return len(given)
            raise Undecided(f"{what} is {_kind(given)}, and {name}() takes a text{' or a list' if name == 'len' else ''}")

        return value

    def _place(self, node: ast.expr) -> int:
        """Return where a part begins, in characters counted from 1."""
        lines = self.text.split("\n")  # as Python counts them
        line = lines[node.lineno - 1]
        before = sum(len(other) + 1 for other in lines[: node.lineno - 1])
        return before + len(line.encode()[: node.col_offset].decode(errors="replace")) + 1

    def _source(self, node: ast.expr) -> str:
        return ast.get_source_segment(self.text, node) or "a part"

    def _refuse(self, node: ast.expr) -> NoReturn:
        raise ValueError(
            f"{self.text!r} at character {self._place(node)}: {self._source(node)!r} is not allowed: a condition has comparisons, and, or, "
            f"not, in, + - * / // %, names of columns, numbers, texts, lists, {' and '.join(f'{name}()' for name in _FUNCTIONS)}"
        )


def _either(parts: Sequence[_Compiled], *, decisive: bool) -> _Compiled:
    """Return the function of `or` (`decisive` True) or `and` (False): one part with that truth decides, whatever the others are."""

    def value(fields: Fields) -> bool:
        undecided = None
        for part in parts:
            try:
                if _truth(part(fields), "a part") is decisive:
                    return decisive
            except Undecided as error:
                undecided = undecided or error
        if undecided is not None:
            raise undecided
        return not decisive

    return value


def _test(how: ast.cmpop) -> Callable[[Any, Any, tuple[str, str]], bool] | None:
    """Return a comparison of two values, given what they are called in messages; None for one that is not allowed."""
    if order := _ORDERS.get(type(how)):
        return lambda left, right, whats: _ordered(order, left, right, whats)
    match how:
        case ast.Eq() | ast.Is():
            return lambda left, right, _: _equal(left, right)
        case ast.NotEq() | ast.IsNot():
            return lambda left, right, _: not _equal(left, right)
        case ast.In():
            return lambda left, right, whats: _contains(right, left, whats)
        case ast.NotIn():
            return lambda left, right, whats: not _contains(right, left, whats)
    return None


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _value(value: Any) -> Any:
    """Return a field's value; NaN, which tables hold for a missing number, is null."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _spelled(value: Any) -> Any:
    """Return the number that a text spells; any other value, and a text that spells none, as it is."""
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pair(left: Any, right: Any) -> tuple[Any, Any]:
    """Return two values, a text beside a number as the number that it spells."""
    if _is_number(left) and isinstance(right, str):
        return left, _spelled(right)
    return (_spelled(left), right) if isinstance(left, str) and _is_number(right) else (left, right)


def _equal(left: Any, right: Any) -> bool:
    first, second = _pair(left, right)
    return bool(first == second) and isinstance(first, bool) == isinstance(second, bool)


def _ordered(order: Callable[[Any, Any], bool], left: Any, right: Any, whats: tuple[str, str]) -> bool:
    first, second = _pair(left, right)
    if (_is_number(first) and _is_number(second)) or (isinstance(first, str) and isinstance(second, str)):
        return order(first, second)
    null = next((what for value, what in zip((first, second), whats, strict=True) if value is None), None)
    raise Undecided(f"{null} is null" if null else f"{whats[0]} is {_kind(first)} and {whats[1]} {_kind(second)}")


def _contains(held: Any, value: Any, whats: tuple[str, str]) -> bool:
    if isinstance(held, list | tuple):
        return any(_equal(value, item) for item in held)
    if isinstance(held, str) and isinstance(value, str):
        return value in held
    other, what = (held, whats[1]) if not isinstance(held, str) else (value, whats[0])
    raise Undecided(f"{what} is {_kind(other)}, and `in` looks for a text in a text, or for anything in a list")


def _number(value: Any, what: str) -> Any:
    number = _spelled(value)
    if not _is_number(number):
        raise Undecided(f"{what} is {_kind(value)}, not a number")
    return number


def _truth(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise Undecided(f"{what} is {_kind(value)}, not true or false: compare it")
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds: Mapping[type, str] = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")
