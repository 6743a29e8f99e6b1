"""docs/stages.md is a tutorial: its file is written and its commands run, in order, as a newcomer would."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from plait import cli

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "stages.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each command of the page printed, in a folder that has only the page's own file."""
    folder = tmp_path_factory.mktemp("tutorial")
    (recipe,) = re.findall(r"```yaml\n# small.yaml\n(.*?)```", PAGE, re.S)
    (folder / "small.yaml").write_text(recipe)
    printed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in COMMANDS:
            program, *arguments = shlex.split(command)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                code = cli.main(arguments)
            assert (program, code) == ("plait", 0), f"{command}: {out.getvalue()[-300:]}"
            printed.setdefault(command, []).append(out.getvalue())
    return printed


def test_the_page_has_commands_of_every_kind():
    assert {tuple(command.split()[:2]) for command in COMMANDS} == {("plait", verb) for verb in ("train", "stages", "fork", "ckpt")}


def test_every_command_of_the_page_runs(said):
    assert sum(map(len, said.values())) == len(COMMANDS)


def test_stages_shows_what_the_page_shows(said):
    first, second = said["plait stages runs/small"]
    assert "stage 1 projection: done: planned steps done\n  trains     projector 1,280 (1.27% of 101,043)\n" in first
    assert "stage 2 vision: not begun" in first
    assert second.count("done: planned steps done") == 3


def test_the_ledger_of_the_page_has_its_rows(said):
    (shown,) = re.findall(r"```text\n(gained and forgotten.*?)```", PAGE, re.S)
    (told,) = re.findall(r"^gained and forgotten.*", said["plait stages runs/small"][1], re.S | re.M)

    def words(text):
        return [re.sub(r"[-+\[]?\d+\.\d+[,\]]?| +", " ", line).split() for line in text.splitlines()]

    changed = {"better", "worse", "not", "sure"}  # with the machine's last digits, in so few steps
    assert [[word for word in line if word not in changed] for line in words(told)] == [
        [word for word in line if word not in changed] for line in words(shown)
    ]


def test_the_start_report_is_the_pages(said):
    (shown,) = re.findall(r"```text\n(continuing from.*?)```", PAGE, re.S)
    (report,) = said["plait train small.yaml --run=runs/small"]
    assert report.startswith(shown)


def test_more_steps_of_the_page_go_on(said):
    (shown,) = said["plait train small.yaml --run=runs/small --stages.2.train.steps=8"]
    assert "more steps: stage language was done after 6 and goes on to 8" in shown and "runs/small, 20 steps done" in shown


def test_the_plateau_of_the_page_ends_stages_early(said):
    (shown,) = said["plait stages runs/flat"]
    assert "less than 50.00%" in shown


def test_the_fork_of_the_page_is_shorter(said):
    (shown,) = said["plait stages runs/slower"]
    assert "  steps      4 of 4, from step 12" in shown
