"""Join files of plait's code into one that needs no plait.

To load it, diffusers copies one file, and what that imports beside it. `from plait...` lines are left out, since what they name stands
further up in the same file; so names are unique, and not of modules.
"""

import ast
from collections.abc import Sequence
from pathlib import Path


def one_file(paths: Sequence[Path]) -> str:
    """Return the joined code of `paths`, each after what it imports of the others, under the docstring of the last.

    Raises AssertionError where two define one name, or one imports a name that none before it defines, such as a module of plait.
    """
    imports: set[str] = set()
    bodies, names = [], [name for path in paths for name in _defined(path)]
    assert len(names) == len(set(names)), f"defined twice: {sorted(name for name in set(names) if names.count(name) > 1)}"
    for number, path in enumerate(paths):
        above = {name for other in paths[:number] for name in _defined(other)}
        tree, lines = _parsed(path), path.read_text(encoding="utf-8").splitlines()
        for node in tree.body:
            if not _left_out(node):
                continue
            assert node.end_lineno is not None
            if isinstance(node, ast.Import | ast.ImportFrom) and not _of_plait(node, above):
                imports.add("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            lines[node.lineno - 1 : node.end_lineno] = ["\0"] * (node.end_lineno - node.lineno + 1)
        bodies.append("\n".join(line for line in lines if line != "\0").strip())
    docstring = ast.get_docstring(_parsed(paths[-1]), clean=False)
    head = "\n".join(sorted(imports, key=lambda line: (line.startswith("from"), line)))
    return f'"""{docstring}"""\n\n{head}\n\n\n' + "\n\n\n".join(bodies) + "\n"


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _defined(path: Path) -> list[str]:
    """Return the names that a file defines at its top."""
    names = []
    for node in _parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        for target in node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []:
            names += [part.id for part in ast.walk(target) if isinstance(part, ast.Name)]
    return names


def _of_plait(node: ast.Import | ast.ImportFrom, above: set[str]) -> bool:
    """Return whether a statement imports something of plait, which stands `above` under its own name."""
    module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
    if str(module).partition(".")[0] != "plait":
        return False
    assert all(alias.name in above and alias.asname is None for alias in node.names), f"{ast.unparse(node)} names what stands nowhere above"
    return True


def _left_out(node: ast.stmt) -> bool:
    """Return whether a statement does not stand in the body: an import, one for type checkers alone, or the docstring at the top."""
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.lineno == 1
    types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return docstring or types or isinstance(node, ast.Import | ast.ImportFrom)
