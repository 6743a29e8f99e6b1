"""Every command in the README and the documents is one that the command line takes: verb, options, and settings of the schema.

Those of the pages in RUN are also run, by the tests that are named there.
"""

import re
import shlex
from pathlib import Path

import pytest
from pydantic import BaseModel

from plait.assembly.configuration import open_config
from plait.commands import command_line
from plait.config.dialects import table as dialects
from plait.config.schema import RunConfig
from plait.errors import PlaitError

ROOT = Path(__file__).resolve().parents[1]
RUN = {
    "README.md": "test_readme.py::test_readme_command_runs",
    "docs/stages.md": "test_docs_stages.py::test_every_command_of_the_page_runs",
    "docs/training_guide.md": "test_docs_guides.py::test_every_command_of_the_guides_runs",
    "docs/evaluation.md": "test_docs_guides.py::test_every_command_of_the_guides_runs",
    "docs/tokenization.md": "test_docs_guides.py::test_every_command_of_the_guides_runs",
    "docs/data.md": "test_docs_own_data.py::test_the_commands_of_the_page_compare_measure_and_export",
}
"""The pages whose commands are run, and the test that does it."""
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]


def fenced(page):
    """The lines of a page's blocks of commands, continued lines joined."""
    inside, kept = None, []
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            inside = line.strip()[3:] if inside is None else None
        elif inside in ("", "sh", "bash", "console"):
            kept.append(line)
    return "\n".join(kept).replace("\\\n", " ").splitlines()


def commands(page):
    """The commands of a page: several on a line taken apart, remarks left out."""
    bare = (re.sub(r"\s+(#|\(and for).*$", "", line) for line in fenced(page))
    parts = [part.strip().removeprefix("$ ") for line in bare for part in re.split(r"; (?=plait )", line)]
    return [part.removeprefix("python -m ") for part in parts if re.match(r"(python -m )?plait +[a-z]", part)]


CASES = [(page, command) for page in PAGES for command in commands(page)]


def is_setting(name):
    """Whether a dotted name is one of the schema, as far as that has fixed names: not below a family's model, lists and tables."""
    fields = {field.alias or key: field for key, field in RunConfig.model_fields.items()}
    first, _, below = name.partition(".")
    section = fields[first].annotation if first in fields else None
    if not (below and isinstance(section, type) and issubclass(section, BaseModel)) or first == "model":
        return first in fields
    return below.partition(".")[0] in {field.alias or key for key, field in section.model_fields.items()}


@pytest.mark.parametrize(("page", "command"), CASES, ids=[f"{page}-{number}" for number, (page, _) in enumerate(CASES)])
def test_a_command_of_the_documents_is_taken(page, command, monkeypatch):
    """The parser takes it; a shipped configuration is loaded with its settings; of another file the settings are names of the schema."""
    monkeypatch.chdir(ROOT)
    parsed = command_line.parse(shlex.split(command.partition(" > ")[0])[1:])
    config = str(vars(parsed).get("config", ""))
    if config.startswith("configs/") or dialects.is_script(config):
        assert open_config(config, parsed.overrides, words=parsed.words).stages
    elif parsed.command.words[0] in ("train", "config", "prove", "fork"):
        assert [name for name in (item.partition("=")[0] for item in parsed.overrides) if not is_setting(name)] == []


@pytest.mark.parametrize("page", RUN)
def test_the_pages_that_are_run_name_a_test_that_exists(page):
    file, _, test = RUN[page].partition("::")
    assert commands(page), "the page has commands"
    assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_configurations_that_commands_name_exist():
    named = {word for _, command in CASES for word in shlex.split(command) if word.startswith("configs/")}
    assert len(named) > 5
    assert {name for name in named if not (ROOT / name).is_file()} == set()


@pytest.mark.parametrize("command", ["stages runs/demo --nothing", "ckpt unknown runs/demo", "export runs/demo"])
def test_a_wrong_command_would_be_seen(command):
    with pytest.raises(PlaitError):
        command_line.parse(shlex.split(command))


def test_a_wrong_setting_would_be_seen():
    assert [is_setting(name) for name in ("optim.lr", "from", "train.plateau", "train.stepz", "optimm.lr")] == [
        True,
        True,
        True,
        False,
        False,
    ]
