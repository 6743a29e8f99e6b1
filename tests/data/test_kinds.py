"""Kinds of source: what ships declares itself without torch, and a package beside plait adds a kind that is checked and opened like it."""

import subprocess
import sys

import pytest

from plait.assembly.configuration import open_config
from plait.assembly.data import open_training
from plait.config.schema import SourceEntry
from plait.data.sources.open import GROUP, KINDS, SHIPPED, open_source
from plait.errors import PlaitError

POEMS = """
from plait.data.sources.contract import Source
from plait.data.sources.kind import SourceKind


class Poems(Source):
    name, fingerprint = "poems", "1"

    def __init__(self, lines):
        self.lines = lines

    def __len__(self):
        return 9

    def __getitem__(self, index):
        text = " / ".join(["tum-ti-tum"] * self.lines)
        return {"id": str(index), "images": [], "messages": [{"role": "assistant", "content": text}], "fields": {}}


KIND = SourceKind("poems", needs="nothing", options=("lines",), open=lambda entry, opening: Poems(entry.options.get("lines", 4)))
OTHER = SourceKind("sonnets", open=lambda entry, opening: None)
LIST = SourceKind("lists", needs="nothing", open=lambda entry, opening: [])
"""
ENTRY_POINTS = f"""
[{GROUP}]
poems = poems_for_plait:KIND
odes = poems_for_plait:OTHER
lists = poems_for_plait:LIST
broken = poems_for_plait.missing:KIND
scenes = poems_for_plait:KIND
"""
RECIPE = "family: theworld\ntrain: {steps: 1}\ndata: {train: [{source: poems, options: {lines: 2}}]}\n"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe that uses the kind `poems` of a package that is installed for this test alone."""
    package, facts = tmp_path / "site" / "poems_for_plait", tmp_path / "site" / "poems_for_plait-1.0.dist-info"
    for folder in (package, facts):
        folder.mkdir(parents=True)
    (package / "__init__.py").write_text(POEMS)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: poems-for-plait\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "x.yaml").write_text(RECIPE)
    yield tmp_path / "x.yaml"
    sys.modules.pop("poems_for_plait", None)


def test_a_kind_from_outside_is_configured_and_opened(recipe):
    resolved = open_config(recipe)
    data = open_training(resolved.stages[0].config)
    assert data.names() == ["poems"]
    assert data.sources[0].draw(3, 0)["messages"][0]["content"] == "tum-ti-tum / tum-ti-tum"
    assert (data.sources[0].groups, data.sources[0].table(4)) == ((), [])


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{source: poems, options: {line: 2}}", "data.train.0.options.line is no option of source 'poems': did you mean 'lines'?"),
        ("{source: peoms}", "data.train.0.source must be 'shards', 'folder', 'jsonl', 'datasets', 'dataset', 'latents', 'nlvr', 'scenes', "
         "'poems', 'odes', 'lists' or 'broken', got 'peoms': did you mean 'poems'?"),
        (
            "{source: odes}",
            "source 'odes' cannot be loaded: poems_for_plait:OTHER is the SourceKind 'sonnets' (package poems-for-plait 1.0)",
        ),
        ("{source: broken}", "source 'broken' cannot be loaded from poems_for_plait.missing:KIND: ModuleNotFoundError: No module named"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_kind_from_outside_is_one_line(recipe, entry, words):
    recipe.write_text(RECIPE.replace("{source: poems, options: {lines: 2}}", entry))
    with pytest.raises(PlaitError) as caught:
        open_config(recipe)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_kind_that_opens_something_else_than_a_source_is_refused(recipe):
    with pytest.raises(PlaitError, match=r"^data source lists: its kind opened a list, which is no subclass of .*contract\.Source$"):
        open_source(SourceEntry(source="lists"), seed=0)


def test_a_kind_that_ships_cannot_be_replaced(recipe):
    with pytest.raises(PlaitError, match=r"^source 'scenes' is offered by plait itself and by poems-for-plait 1\.0: remove that package"):
        KINDS["scenes"]
    assert list(KINDS)[: len(SHIPPED)] == list(SHIPPED)


def test_opening_an_entry_refuses_what_its_kind_does_not_take():
    cases = [
        (SourceEntry(source="poem"), "data source poem: source must be 'shards', "),
        (SourceEntry(source="shards"), "data source shards needs a path"),
        (SourceEntry(source="dataset"), "data source dataset needs a name: one that the family knows, module:Class or file.py:Class"),
        (SourceEntry(source="datasets"), "data source datasets needs either a name on the Hub or a path"),
        (SourceEntry(source="latents", path="x", columns={"a": "b"}), "data source latents:x: latents carry their own captions; take out"),
    ]
    for entry, words in cases:
        with pytest.raises(PlaitError) as caught:
            open_source(entry, seed=0)
        assert str(caught.value).startswith(words)


def test_the_kinds_that_ship_are_declared_by_the_files_of_their_names_without_torch():
    code = (
        "import sys; from plait.data.sources.open import KINDS, SHIPPED; print([KINDS[name].name for name in SHIPPED] == list(SHIPPED)); "
    )
    code += "print({'torch', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["True", "set()", ""]
