"""The pages that are written from the parsers and the schema say what those say, and every setting and option has a meaning."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from plait.commands import command_line
from plait.commands.command import actions
from plait.config.schema import RunConfig
from plait.config.sections.guard import Guard

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts/reference.py"
ENVIRONMENT = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_SIGNALS_TO_HANDLE", "COLUMNS", "PLAIT_ENCODERS"}
"""Variables that are not the user's to set: those of torchrun, the shell's own, and one of tests."""


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_what_the_script_writes(reference):
    stale = [path.name for path, text in reference.pages().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run python scripts/reference.py"


def test_the_script_tells_a_stale_page(tmp_path):
    copy = tmp_path / "scripts/reference.py"
    copy.parent.mkdir()
    copy.write_bytes(SCRIPT.read_bytes())
    (tmp_path / "docs").mkdir()
    (tmp_path / "AGENTS.md").write_bytes((ROOT / "AGENTS.md").read_bytes())
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    stale = subprocess.run([sys.executable, str(copy), "--check"], env=environment, capture_output=True, text=True, check=False)
    assert (stale.returncode, stale.stderr.strip()) == (1, "cli.md, configuration_reference.md: run python scripts/reference.py")
    for expected in (0, 0):
        written = subprocess.run([sys.executable, str(copy), *["--check"] * expected], env=environment, check=False)
        assert written.returncode == 0
    assert (tmp_path / "docs/cli.md").read_bytes() == (ROOT / "docs/cli.md").read_bytes()


def test_every_setting_has_a_meaning(reference):
    page = reference.settings_page()
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \| (.*) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) > 150
    assert not [name for name, _, _, meaning in rows if not meaning.strip()]
    assert not [name for name, kind, _, _ in rows if not kind.strip()]


def test_settings_are_told_with_their_limits_and_defaults(reference):
    page = reference.settings_page()
    assert "| `train.global_batch` | a whole number from 1 | `8` | samples per step, over all ranks and accumulations |" in page
    assert "| `optim.betas` | a list of 2: a number from 0, below 1 each | `[0.9, 0.95]` |" in page
    assert "| `data.feature_cache` | `off`, `auto`, `on` | `off` |" in page
    assert "| `model.world.steps` | a whole number from 0 | `0` |" in page
    assert "| `evaluate.N.bench` | text | required |" in page


def test_every_option_of_every_verb_is_on_the_page_with_its_help(reference):
    page = reference.command_page()
    for words, parser in command_line.build_parsers()[1].items():
        section = page.partition(f"\n## plait {' '.join(words)}\n")[2].partition("\n## ")[0]
        for action in actions(parser):
            assert action.help, (words, action.dest)
            assert all(option in section for option in action.option_strings if option not in ("-h", "--help")), (words, action.dest)


def test_every_variable_that_is_read_is_on_the_page(reference):
    page = reference.command_page()
    read = set()
    for path in (ROOT / "src").rglob("*.py"):
        read |= set(re.findall(r"environ(?:\.get\(|\[)\s*\"([A-Z_]+)\"", path.read_text(encoding="utf-8")))
    assert {"HF_TOKEN", "PLAIT_CACHE"} <= read
    assert not {name for name in read - ENVIRONMENT if f"`{name}`" not in page}


def test_every_key_of_a_configuration_is_on_the_page(reference):
    listed = set(re.findall(r"^\| `([A-Za-z_.]+)` \|", reference.settings_page(), re.MULTILINE))
    assert {field.alias or name for name, field in RunConfig.model_fields.items()} <= listed
    assert {f"guard.{name}" for name in Guard.model_fields} <= listed
