"""A verb is one file of commands/: it is found by its COMMANDS."""

import argparse
import re
import subprocess
import sys

import pytest

from plait import cli, commands
from plait.commands import command_line, verbs
from plait.commands.command import actions
from plait.families import offers, registry

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


PARSERS = command_line.build_parsers()[1]


@pytest.mark.parametrize("words", PARSERS, ids=" ".join)
def test_help_lists_every_option_and_argument_with_what_it_does(words):
    parser = PARSERS[words]
    shown = parser.format_help()
    for action in actions(parser):
        assert action.help and action.help != argparse.SUPPRESS, f"{action.option_strings or action.dest} has no help"
        assert all(re.search(rf"^ +(-h, )?{name}\b", shown, re.M) for name in action.option_strings), action.option_strings
    settings = parser.get_default("command").settings
    assert settings is None or " ".join(settings.split()) in " ".join(shown.split())


@pytest.mark.parametrize("family", ["molmo", "nanodit", "theworld"])
def test_help_of_generate_lists_every_option_of_a_family(family, capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    shown = capsys.readouterr().out.split(f"options of family {family}:\n")[1].split("\n\n")[0]
    options = registry.load(family).GenerateOptions
    assert options is offers.generate_options(family)
    names = ["--" + name.replace("_", "-") for name in options.model_fields]
    assert re.findall(r"^  (--[\w-]+) [A-Z_]+(?:  |\n {20})", shown, re.M) == names
    assert all(field.description for field in options.model_fields.values())


def test_help_of_generate_waits_for_no_torch():
    code = "import sys; from plait import cli\ntry: cli.main(['generate', '--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "  --prompt PROMPT " in done.stdout
