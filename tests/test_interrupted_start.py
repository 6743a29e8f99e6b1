"""Ctrl-C or SIGTERM while the program is being imported, or its plug-ins are looked for: one line, exit code 130 or the signal's."""

import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

INTERRUPTED = """
import builtins, os, runpy, signal, sys
number = getattr(signal, sys.argv[3])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
before = builtins.__import__
def imported(name, *rest, **more):
    if name == moment:
        os.kill(os.getpid(), number)
    return before(name, *rest, **more)
moment = sys.argv[1]
builtins.__import__ = imported
if moment == "packages":
    from plait.config import plugins
    def interrupted():
        os.kill(os.getpid(), number)
        return []
    plugins.packages = interrupted
way, sys.argv = sys.argv[2], ["plait", "train", "nothing.yaml"]
if way == "python -m plait":
    runpy.run_module("plait", run_name="__main__")
else:
    from plait.__main__ import main
    sys.exit(main())
"""


def started(moment, way, number):
    """(exit code, lines) of a start that gets a signal at this moment."""
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED, moment, way, number], check=False, capture_output=True, text=True)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("moment", ["plait.commands", "difflib", "packages"])
@pytest.mark.parametrize("way", ["python -m plait", "plait"])
def test_ctrl_c_in_a_start_is_one_line(moment, way):
    assert started(moment, way, "SIGINT") == (130, "plait: interrupted\n")


@pytest.mark.parametrize("moment", ["plait.commands", "packages"])
@pytest.mark.parametrize("way", ["python -m plait", "plait"])
def test_sigterm_in_a_start_is_one_line_and_ends_the_process_as_ever(moment, way):
    assert started(moment, way, "SIGTERM") == (-signal.SIGTERM, "plait: stopped by SIGTERM\n")


def test_the_command_that_is_installed_begins_where_the_handler_is_set():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert project["project"]["scripts"]["plait"] == "plait.__main__:main"
