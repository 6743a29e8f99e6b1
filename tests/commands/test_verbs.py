"""A verb is one file of commands/: it is found by its COMMANDS."""

import sys

import pytest

from plait import cli, commands
from plait.commands import verbs

SHRUG = """
import logging
from plait.commands.command import Command

def run(arguments):
    logging.getLogger(__name__).info("shrugged")

COMMANDS = (Command(("shrug",), "say nothing", lambda parser: None, run),)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose files count as those of commands/."""
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    yield tmp_path
    sys.modules.pop("plait.commands.shrug", None)


def test_one_more_file_is_one_more_verb_at_the_end_of_help(folder, capsys, monkeypatch):
    (folder / "shrug.py").write_text(SHRUG)
    monkeypatch.setattr("plait.commands.shrug", None, raising=False)
    assert cli.main(["shrug"]) == 0
    assert capsys.readouterr().out == "shrugged\n"
    assert [command.words for command in verbs.shipped()][-1] == ("shrug",)


def test_a_file_without_commands_is_no_verb(folder, monkeypatch):
    before = verbs.shipped()
    (folder / "shrug.py").write_text("")
    monkeypatch.setattr("plait.commands.shrug", None, raising=False)
    assert verbs.shipped() == before


def test_verbs_are_listed_in_the_declared_order():
    firsts = list(dict.fromkeys(command.words[0] for command in verbs.shipped()))
    assert firsts == [*verbs.ORDER]
