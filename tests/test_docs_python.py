"""The examples of docs/python.md run as they stand, in order, and print what the page says."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as the page has it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    shutil.copytree(ROOT / "docs" / "images", "docs/images")
    return tmp_path


def test_every_example_runs_and_prints_what_the_page_says(folder, capsys):
    names: dict = {}
    assert PAGE.count("```python") == len(EXAMPLES) > 3
    for example in EXAMPLES:
        capsys.readouterr()
        exec(compile(example, "docs/python.md", "exec"), names)
        printed = capsys.readouterr().out.splitlines()
        for remark in re.findall(r"^ *print\(.*\) +# (.*)$", example, re.MULTILINE):
            if not remark.startswith("a torch module"):
                assert any(line.startswith(remark.removesuffix("...")) for line in printed), (remark, printed)
