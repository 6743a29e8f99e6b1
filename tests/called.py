"""Train recipes and write which functions of plait were called: `python -m tests.called RECIPE.yaml...`, a process forked for each.

Beside each recipe comes RECIPE.json: `functions`, {file: names of its functions that ran, in any thread}; and `calls`, the calls that
`CALLERS` made into other files of the package, and those of their own functions, in order, as [calling file, file, function]. Files are
imported before: what runs while one is imported is no call.
"""

import json
import os
import sys
import threading
from pathlib import Path

import yaml

from plait import cli
from plait.families import registry
from plait.training import run  # noqa: F401  imported once, for all recipes

SOURCE = f"{Path(cli.__file__).parent}/"
CALLERS = tuple(f"{SOURCE}training/{name}.py" for name in ("run", "stage", "layout"))
_A_FUNCTION = 0x1  # CO_OPTIMIZED: not the body of a module or of a class


def train(recipe):
    """Train with every call looked at, and write what was called."""
    functions, calls = {}, []

    def look(frame, event, argument):
        code = frame.f_code
        if code.co_filename.startswith(SOURCE) and code.co_flags & _A_FUNCTION:
            functions.setdefault(code.co_filename.removeprefix(SOURCE), set()).add(code.co_qualname)
            caller = frame.f_back.f_code.co_filename if frame.f_back is not None else ""
            if caller in CALLERS or code.co_filename in CALLERS:
                calls.append([name.removeprefix(SOURCE) for name in (caller, code.co_filename)] + [code.co_qualname])

    threading.settrace(look)
    sys.settrace(look)
    cli.main(["train", str(recipe), f"--run={recipe.with_suffix('')}"])
    sys.settrace(None)
    threading.settrace(None)
    ran = {file: sorted(names) for file, names in sorted(functions.items())}
    recipe.with_suffix(".json").write_text(json.dumps({"functions": ran, "calls": calls}), encoding="utf-8")


def main(recipes):
    """Train each recipe in a fork of this process, which has imported all of their families."""
    for recipe in recipes:
        registry.load(yaml.safe_load(recipe.read_text(encoding="utf-8"))["family"])
    registry.packages.cache_clear()
    for recipe in recipes:
        child = os.fork()
        if not child:
            train(recipe)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, f"{recipe} failed"


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
