"""Read YAML, and JSON with comments, into nodes (values that know their file and line). What the keys mean is in schema.py.

YAML is read by the rules people expect (close to YAML 1.2): 1e-5 is a number, 007, 12:30 and 2024-01-01 are text, on and off are switches.
JSON may carry // and /* */ comments and a comma before a closing bracket. `_comment` keys are ignored anywhere, in both. How deep and how
large a file can be is bounded, aliases included.
"""

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from plait.config import secrets
from plait.config.nodes import COMMAND_LINE, Node, dotted, to_plain
from plait.config.sections.adapters import joined
from plait.errors import PlaitError

COMMENT = "_comment"
"""A key that is ignored, in any mapping."""
_DEPTH, _VALUES = 64, 100_000  # of mappings and lists in each other; of values in a file, with those that aliases repeat
_BYTES = 1 << 20  # of a file, and of its texts with those that aliases repeat: a second to read
_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF|yes|Yes|YES|no|No|NO", "tTfFoOyYnN"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.inf|\.Inf)|\.nan|\.NaN",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}


_UNWRITABLE = re.compile("[\x00\ud800-\udc7f\udd00-\udfff]")
"""NUL, and halves of surrogate pairs but for those that stand for the bytes of a name on disk that is not UTF-8."""
_TOO_DEEP = f"more than {_DEPTH} mappings and lists are inside each other"


class _Loader(yaml.SafeLoader):
    """Reads plain scalars by the rules of _SCALARS."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (PyYAML's own way of keeping them)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.values = self.characters = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the node that is next. Raises _TooDeep below _DEPTH nodes, before anything under it is read."""
        if self.depth > _DEPTH:
            raise _TooDeep(problem=_TOO_DEEP, problem_mark=parent.start_mark if parent else None)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what `<<` names into a mapping, each key once: merged twice, pairs would double from anchor to anchor."""
        super().flatten_mapping(node)
        node.value = list({str(key.value): (key, value) for key, value in node.value}.values())


class _TooDeep(yaml.MarkedYAMLError):
    """Mappings and lists stand in each other more than _DEPTH deep."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that this reader, or a reader of YAML 1.1, would read as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: equal values are written out each time."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Represent text, in double quotes where only they keep its line breaks."""
        odd = any(mark in data for mark in "\x85\u2028\u2029")  # line breaks to YAML, which only double quotes keep
        return self.represent_scalar(_TAG + "str", data, style='"' if odd else None)


_Dumper.add_representer(str, _Dumper.represent_str)
for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), list(_first))


@dataclass(frozen=True)
class Override:
    """One setting of the command line, such as `--optim.lr=3e-6`: its path, and its value as text."""

    path: tuple[str, ...]
    text: str

    @classmethod
    def parse(cls, argument: str) -> "Override":
        """Parse `--key=value`, with or without the dashes.

        Raises PlaitError for anything else, for a secret, and for an empty value, as an unset variable of a shell leaves it.
        """
        secrets.refuse_argument(argument)
        name, equals, text = argument.removeprefix("--").partition("=")
        path = joined(tuple(name.split(".")))
        if len(path) > _DEPTH:
            raise PlaitError(f"{COMMAND_LINE}: --{path[0][:20]}.... is a key of {len(path)} parts, and no setting has more than {_DEPTH}")
        if not equals or not all(path):
            raise PlaitError(f"{COMMAND_LINE}: {argument} sets nothing: write --key=value, such as --optim.lr=3e-6")
        if not text.strip():
            raise PlaitError(f"{COMMAND_LINE}: --{name}= has no value: is a variable of the shell unset? --{name}=null means none")
        return cls(path, text)

    def value(self) -> Any:
        """Return the value, parsed as YAML ("3e-6": a number). Raises PlaitError for text that is not YAML, or that no setting may hold."""
        try:
            return scalar(self.text)
        except yaml.YAMLError:
            name = dotted(self.path)
            raise PlaitError(f"{COMMAND_LINE}: the value of {name} is not YAML: quote it, as in --{name}=\"'...'\"") from None


def read(path: Path) -> Node:
    """Read a .yaml, .yml or .json file that holds a mapping. Raises PlaitError, with the line, if it is invalid or holds a secret."""
    root = read_any(path)
    if not isinstance(root.value, dict):
        content = "a list" if isinstance(root.value, list) else "nothing" if root.value is None else "a single value"
        raise PlaitError(f"{path}: the top of a configuration is a mapping of keys, but this file holds {content}")
    return root


def read_any(path: Path) -> Node:
    """Read a .yaml, .yml or .json file that holds a mapping, a list or one value.

    Raises PlaitError, with the line, if the file is invalid or holds a secret.
    """
    text = _text(path)
    root = _read_json(text, str(path)) if path.suffix.startswith(".json") else _read_yaml(text, str(path))
    secrets.refuse(root)
    refuse_unwritable(root)
    return root


def refuse_unwritable(node: Node) -> None:
    """Raise PlaitError for a NUL or half a surrogate pair in a key or text at or below `node`. No path or file can hold either."""
    if isinstance(node.value, dict | list):
        for key, child in node.value.items() if isinstance(node.value, dict) else (("", child) for child in node.value):
            if _UNWRITABLE.search(key):
                raise PlaitError(f"{child.location}: a key is {key!r}, and {_no_text(key)}")
            refuse_unwritable(child)
    elif isinstance(node.value, str) and _UNWRITABLE.search(node.value):
        raise PlaitError(f"{node.location}: {node.path} is {node.value[:60]!r}, and {_no_text(node.value)}")


def _no_text(text: str) -> str:
    what = "the NUL character" if "\0" in text else "half of a surrogate pair"
    return f"{what} can be in no path or text: remove it"


def scalar(text: str) -> Any:
    """Parse one value as typed on a command line: "3e-6" -> 3e-6, "[a, 1]" -> ["a", 1]. Raises yaml.YAMLError for other text.

    Raises PlaitError for YAML that no setting may hold: too deep or too large, with tags, or with a key given twice.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else to_plain(_from_yaml(loader, node, Node(None, COMMAND_LINE, path="the value"), ()))
    except _TooDeep as error:
        raise PlaitError(f"{COMMAND_LINE}: invalid YAML: {error.problem}") from None


def write_yaml(value: Any) -> str:
    """Return plain data (dicts, lists, scalars) as YAML text, which `read` turns back into nodes of the same data.

    Raises PlaitError for a text that is longer than `read` takes.
    """
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    if (size := len(text.encode(errors="surrogatepass"))) > _BYTES:
        raise PlaitError(f"the configuration with all its defaults has {size:,} bytes, and {_too_large()}")
    return text


def _too_large() -> str:
    return f"a configuration has at most {_BYTES:,}: keep data in files of their own, and name these"


def _text(path: Path) -> str:
    if not path.suffix.startswith(".json") and path.suffix not in (".yaml", ".yml"):
        raise PlaitError(f"{path}: a configuration is a .yaml, .yml or .json file")
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would be waited for
        raise PlaitError(f"{path}: not a regular file but a pipe or device: write the configuration to a file")
    try:
        if path.is_file() and (size := path.stat().st_size) > _BYTES:
            raise PlaitError(f"{path}: {size:,} bytes, and {_too_large()}")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        names = sorted(file.name for pattern in ("*.yaml", "*.yml", "*.json*") for file in path.parent.glob(pattern))
        near = difflib.get_close_matches(path.name, names, 1)
        hint = f"did you mean {path.parent / near[0]}?" if near else f"{path.parent} holds {', '.join(names) or 'no configuration'}"
        hint += "; `plait recipes` copies those that come with plait" if path.parts[0] == "configs" and not near else ""
        raise PlaitError(f"{path}: no such file; {hint}") from None
    except UnicodeDecodeError as error:
        raise PlaitError(f"{path}: not UTF-8 text (byte {error.start}): is it a configuration?") from None
    except OSError as error:
        raise PlaitError(f"{path}: cannot be read: {error.strerror}") from None


def _put(children: dict[str, Node], child: Node, key: str) -> None:
    """Add a key to a mapping, unless it is a comment. Raises PlaitError for a key that it has already."""
    if key == COMMENT:
        return
    if key in children:
        first = children[key]
        raise PlaitError(f"{child.location}: {child.path} is set twice, first on line {first.line}: keep one")
    children[key] = child


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


# YAML -----------------------------------------------------------------------------------------------------------------------------


def _read_yaml(text: str, file: str) -> Node:
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        return Node(None, file, 1) if root is None else _from_yaml(loader, root, Node(None, file, 1), ())
    except RecursionError:  # of `<<` to `<<` in what is not read, such as comments
        raise PlaitError(f"{file}: invalid YAML: {_TOO_DEEP}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = f"{file}:{mark.line + 1}" if mark else file
        advice = "; indent with spaces, not tabs" if "'\\t'" in (error.problem or "") else ""
        raise PlaitError(f"{location}: invalid YAML: {error.problem or error.context}{advice}") from None
    except yaml.YAMLError as error:
        raise PlaitError(f"{file}: invalid YAML: {str(error).splitlines()[0]}") from None


def _from_yaml(loader: _Loader, node: yaml.Node, empty: Node, above: tuple[yaml.Node, ...]) -> Node:
    """Convert a node of PyYAML; `empty` has its file, line and path. `above` are the nodes that contain it."""
    loader.values += 1
    if loader.values > _VALUES:
        raise PlaitError(f"{empty.file}: invalid YAML: it holds more than {_VALUES:,} values, with those that its aliases repeat")
    loader.characters += len(node.value) if isinstance(node, yaml.ScalarNode) else 0
    if loader.characters > _BYTES:
        raise PlaitError(f"{empty.file}: invalid YAML: it holds more than {_BYTES:,} letters, with those that its aliases repeat")
    if len(above) > _DEPTH:
        raise PlaitError(f"{empty.location}: invalid YAML: {_TOO_DEEP}")
    if any(node is ancestor for ancestor in above):
        raise PlaitError(f"{empty.location}: invalid YAML: {empty.path} contains itself through an alias")
    if node.tag.startswith("!") or "python/" in node.tag:
        raise PlaitError(
            f"{empty.location}: invalid YAML: {empty.path} has the tag {node.tag.split(':')[-1]!r}, and tags mean nothing here"
        )
    if isinstance(node, yaml.SequenceNode):
        items = [
            _from_yaml(loader, item, Node(None, empty.file, item.start_mark.line + 1, _join(empty.path, index)), (*above, node))
            for index, item in enumerate(node.value)
        ]
        return Node(items, empty.file, empty.line, empty.path)
    if not isinstance(node, yaml.MappingNode):
        try:
            return Node(loader.construct_object(node), empty.file, empty.line, empty.path)
        except ValueError:  # a number of thousands of digits, or a tag such as !!int on other text
            raise PlaitError(f"{empty.location}: invalid YAML: {empty.path} is no value that can be read") from None
    own_keys: dict[str, Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise PlaitError(f"{empty.file}:{key.start_mark.line + 1}: invalid YAML: a key is one word, not a list or a mapping")
        _put(own_keys, Node(None, empty.file, key.start_mark.line + 1, _join(empty.path, key.value)), key.value)
    loader.flatten_mapping(node)  # `<<: *base`: what is merged in comes first, so that the mapping's own keys win
    children: dict[str, Node] = {}
    for key, child in node.value:
        if not isinstance(key, yaml.ScalarNode):  # of a mapping that stands nowhere but behind `<<`
            raise PlaitError(f"{empty.file}:{key.start_mark.line + 1}: invalid YAML: a key is one word, not a list or a mapping")
        empty_child = Node(None, empty.file, key.start_mark.line + 1, _join(empty.path, key.value))
        if key.value != COMMENT:
            children[key.value] = _from_yaml(loader, child, empty_child, (*above, node))
    return Node(children, empty.file, empty.line, empty.path)


# JSON -----------------------------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r'(?P<skip>\s+|//[^\n]*|/\*.*?\*/)|(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<mark>[{}\[\]:,])|(?P<word>[^\s{}\[\]:,"/]+)|(?P<wrong>.)', re.S
)


def _read_json(text: str, file: str) -> Node:
    tokens = _Tokens(text, file)
    root = tokens.value("")
    if tokens.kind != "end":
        raise tokens.error("expected the end of the file")
    return root


class _Tokens:
    """A recursive-descent parser over the tokens of one JSON text."""

    def __init__(self, text: str, file: str):
        self.file, self.position, self.depth = file, 0, 0
        self.tokens: list[tuple[str | None, str, int]] = []
        line = 1
        for match in _TOKEN.finditer(text):
            if match.lastgroup != "skip":
                self.tokens.append((match.lastgroup, match.group(), line))
            line += match.group().count("\n")
        self.tokens.append(("end", "the end of the file", line))
        self.kind, self.text, self.line = self.tokens[0]

    def _next(self) -> None:
        self.position += 1
        self.kind, self.text, self.line = self.tokens[self.position]

    def error(self, expected: str) -> PlaitError:
        """Return the error for a file that has another token where `expected` should be."""
        got = f", got {self.text}" if self.kind in ("mark", "end") else ""  # a value is never shown: it may be a secret
        return PlaitError(f"{self.file}:{self.line}: invalid JSON: {expected}{got}")

    def take(self, mark: str) -> bool:
        """Move past the punctuation `mark` if it is next; return whether it was."""
        if self.kind == "mark" and self.text == mark:
            self._next()
            return True
        return False

    def value(self, path: str) -> Node:
        """Read the value that is next, which is at `path`. Raises PlaitError for invalid JSON."""
        line = self.line
        if self.kind == "mark" and self.text in "{[":
            if self.depth > _DEPTH:
                raise PlaitError(f"{self.file}:{line}: invalid JSON: {_TOO_DEEP}")
            self.depth += 1
            value: Any = self._members(path) if self.take("{") else self._items(path)
            self.depth -= 1
            return Node(value, self.file, line, path)
        if self.kind not in ("string", "word"):
            raise self.error("expected a value")
        try:
            value = json.loads(self.text)
        except ValueError:  # also a number of thousands of digits
            raise self.error("expected a number, true, false, null or text in double quotes") from None
        self._next()
        return Node(value, self.file, line, path)

    def _items(self, path: str) -> list[Node]:
        items: list[Node] = []
        self.take("[")
        while not self.take("]"):
            items.append(self.value(_join(path, len(items))))
            if not self.take(",") and not (self.kind == "mark" and self.text == "]"):
                raise self.error("expected a comma or ]")
        return items

    def _members(self, path: str) -> dict[str, Node]:
        children: dict[str, Node] = {}
        while not self.take("}"):
            if self.kind != "string":
                raise self.error("expected a key in double quotes or }")
            key, line = json.loads(self.text, strict=False), self.line
            self._next()
            if not self.take(":"):
                raise self.error(f"expected a colon after {key!r}")
            child = self.value(_join(path, key))
            _put(children, Node(child.value, self.file, line, child.path), key)
            if not self.take(",") and not (self.kind == "mark" and self.text == "}"):
                raise self.error("expected a comma or }")
        return children
