"""docs/configuration.md lists every preset of configs/ with what it is."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_list_of_presets_is_the_folder():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    section = page.partition("## The presets\n")[2].partition("\n## ")[0]
    listed = dict(re.findall(r"^\| `configs/([\w/.-]+)` \| (.+) \|$", section, re.MULTILINE))
    there = {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.*")}
    assert listed.keys() == there
    assert all(len(text) > 20 for text in listed.values())
