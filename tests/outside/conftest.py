"""A package that plait does not know, installed beside it for a test: one that is right, and others from the texts of their files."""

import json
import sys
from pathlib import Path

import pytest

from plait.families import registry

PACKAGE = Path(__file__).parent / "package"
THINGS, COLOURS = ("sky", "grass", "rose", "snow", "sea", "leaf", "wall", "hat"), ("blue", "green", "red", "white")
RECIPE = """
family: words
preset: tiny
data: {train: [{source: jsonl, path: talk.jsonl}], validation: [{source: jsonl, path: talk.jsonl, limit: 8}]}
train: {steps: 60}
optim: {schedule: {warmup_steps: 5}}
checkpoint: {every_steps: 20}
track: {every_steps: 1, tensorboard: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with sentences to learn, a configuration in plait's words, and one that shouts."""
    folder = tmp_path_factory.mktemp("stranger")
    pairs = [(f"{number} {thing}?", COLOURS[i % 4]) for number in ("One", "Another", "A", "My") for i, thing in enumerate(THINGS)]
    talks = [[{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for question, answer in pairs]
    (folder / "talk.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    (folder / "words.yaml").write_text(RECIPE)
    (folder / "mumble.yaml").write_text(RECIPE.replace("words", "mumble").replace("preset: tiny", ""))
    (folder / "loud.yaml").write_text("SENTENCES: talk.jsonl\nSTEPS: 7\nSPEED: 1e-2\n")
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    """This process in that folder, with the package on its path: what it forks starts without importing everything again."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(PACKAGE))
    registry.packages.cache_clear()
    registry.load("words")
    yield folder
    registry.packages.cache_clear()


@pytest.fixture
def install(here, monkeypatch):
    """Install a package `mumble`, by the name `package`, from the texts of its files and its entry points."""

    def install(entry_points, modules, package="mumble"):
        site = here / f"site-{len(list(here.glob('site-*')))}"
        facts = site / f"{package}-2.0.dist-info"
        facts.mkdir(parents=True)
        (site / "mumble").mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.0\n")
        (facts / "entry_points.txt").write_text(entry_points)
        for name, text in {"__init__": "", **modules}.items():
            (site / f"mumble/{name}.py").parent.mkdir(exist_ok=True)
            (site / f"mumble/{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(site))
        registry.packages.cache_clear()
        return site

    yield install
    for name in [name for name in sys.modules if name.partition(".")[0] == "mumble"]:
        del sys.modules[name]
