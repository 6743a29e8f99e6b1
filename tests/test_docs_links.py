"""Links of the documents: each relative one leads to a file of the repository, and its #anchor to a heading of that page."""

import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for folder in (".", "docs", "examples") for path in (ROOT / folder).glob("*.md"))
ELSEWHERE = re.compile(r"[a-z]+:")


def prose(text):
    """A page without its blocks of code, in which brackets and # mean something else."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)


def links(text):
    """Addresses of links in a page, code aside."""
    plain = re.sub(r"`[^`\n]*`", "`code`", prose(text))
    return re.findall(r"\]\(([^()\s]+)\)", plain) + re.findall(r"^\[[^\]]+\]: (\S+)", plain, flags=re.M)


def anchors(text):
    """Anchors of a page's headings, as GitHub makes them: lower case, no punctuation, hyphens for spaces, numbered where alike."""
    made = set()
    for heading in re.findall(r"^#+ +(.*?) *$", prose(text), flags=re.M):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        stem = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        made.add(next(name for name in (stem, *(f"{stem}-{i}" for i in range(1, 100))) if name not in made))
    return made


@functools.cache
def anchors_of(path):
    return anchors(path.read_text(encoding="utf-8"))


def broken(path, text):
    """Links of a page at `path` that lead nowhere."""
    wrong = []
    for link in links(text):
        file, _, anchor = link.partition("#")
        target = path if not file else path.parent / file
        if ELSEWHERE.match(link):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors_of(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page):
    assert broken(ROOT / page, (ROOT / page).read_text(encoding="utf-8")) == []


def test_pages_that_messages_name_are_there():
    """In messages, help, recipes and examples, with their anchors."""
    folders, kinds = ("src", "configs", "examples", "benchmarks"), {".py", ".yaml", ".json", ".ipynb"}
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    named = {name for path in files for name in re.findall(r"docs/\w[\w./-]*\.md(?:#[\w-]+)?", path.read_text(encoding="utf-8"))}
    assert len(named) > 5
    assert broken(ROOT / "README.md", "\n".join(f"[it]({name})" for name in named)) == []


def test_a_broken_link_would_be_seen():
    headings = "# Two `words`, [linked](x.md)\n# Two words linked\n"
    text = f"{headings}[a](#two-words-linked), [b](#two-words-linked-1)\n[c]: none.md\n```\n# code\n```"
    assert anchors(text) == {"two-words-linked", "two-words-linked-1"}
    assert broken(ROOT / "README.md", "[a](docs/benchmarks.md#no-such-heading), [b](docs/none.md), `[c](none)`, [d](https://e.org/)") == [
        "docs/benchmarks.md#no-such-heading",
        "docs/none.md",
    ]
    assert links(text) == ["x.md", "#two-words-linked", "#two-words-linked-1", "none.md"]
