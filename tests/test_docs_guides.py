"""The guides: messages that are quoted are in the source, the table of the training guide is counted, and their commands run in order."""

import ast
import contextlib
import io
import re
import runpy
import shlex
from pathlib import Path

import pytest

from plait import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("training_guide.md", "evaluation.md", "tokenization.md")
"""In the order in which their commands are run."""


def text(page):
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def blocks(page, kind):
    return re.findall(rf"```{kind}\n(.*?)```", text(page), re.S)


def quotes():
    """What the page on troubleshooting says that plait prints: the second column of its tables."""
    rows = [line.strip("| ").split(" | ") for line in text("troubleshooting.md").splitlines() if line.startswith("| ")]
    return [row[1] for row in rows if row[0] != "symptom"]


@pytest.fixture(scope="module")
def printed():
    """Every text in the source that may be printed, with a mark for each value in it."""
    texts = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.add("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    return texts


@pytest.mark.parametrize("quote", quotes())
def test_a_message_of_the_page_is_one_of_the_source(quote, printed):
    assert re.fullmatch("`[^`]{9,}`", quote), "one message, in code"
    parts = [re.escape(part.strip()) for part in quote.strip("`").split("...")]
    wanted = re.compile(".*?".join(parts), re.S)
    assert any(wanted.search(one) for one in printed)


def test_the_page_has_a_line_for_each_guard():
    keys = {"non_finite", "no_input", "no_gradient", "hang_timeout_s", "forgetting", "max_bad_fraction"}
    assert not {key for key in keys if key not in text("troubleshooting.md")}
    assert len(quotes()) > 40 and len(set(quotes())) == len(quotes())


def test_the_table_of_the_guide_is_what_its_command_prints():
    made = runpy.run_path(str(ROOT / "benchmarks" / "guide.py"))
    page = text("training_guide.md")
    assert made["written"](page, made["table"]()) == page


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """{command: what it printed} of the pages, in a folder that has only the guide's own file."""
    folder, told = tmp_path_factory.mktemp("guides"), {}
    (recipe,) = blocks("training_guide.md", "yaml")
    (folder / "chain.yaml").write_text(recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PLAIT_CACHE", str(folder / "cache"))
        for command in [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]:
            program, *arguments = shlex.split(command)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                code = cli.main(arguments)
            assert (program, code) == ("plait", 0), f"{command}: {out.getvalue()[-300:]}"
            told[command] = out.getvalue()
    return told


def test_every_command_of_the_guides_runs(said):
    assert len(said) == sum(len(block.splitlines()) for page in PAGES for block in blocks(page, "sh")) == 11


def test_the_last_run_of_the_chain_is_compared_with_the_untrained_base(said):
    shown = said["plait stages runs/chain-4"]
    assert "the untrained base" in shown and "text only: the loss of held-out samples, their pictures taken away" in shown


def test_the_ids_of_the_page_are_gemmas():
    from tests.families.theworld.test_gemma_tokenizer import IDS

    cells = re.findall(r"\| `(<\w+>)` \| ([\d,]+) ", text("tokenization.md"))
    more = re.findall(r"\| `(<\w+>)` \| ([\d,]+) \|$", text("tokenization.md"), re.MULTILINE)
    listed = {name: int(number.replace(",", "")) for name, number in [*cells, *more]}
    assert listed == {name: number for name, number in IDS.items() if name != "<unk>"}
