"""The page on planning shows what its command computes: a row of the table, at full size and without memory."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_on_planning_shows_what_its_command_computes():
    made = runpy.run_path(str(ROOT / "benchmarks" / "planning.py"))
    made["rows"].__globals__["RECIPES"] = [recipe for recipe in made["RECIPES"] if recipe[0] == "nanodit 28/1024"]
    (row,) = (made["row"](*each) for each in made["rows"]())
    assert f"{row}\n" in (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
