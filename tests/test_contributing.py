"""CONTRIBUTING names every member of what another package can fulfil, in the part on that."""

import dataclasses
import re

import pytest

from plait.commands.command import Command
from plait.config.schema import ModelSection
from plait.config.translation import Dialect, Translation
from plait.data.sources.contract import Source
from plait.data.sources.kind import SourceKind
from plait.engine.evaluation import Bench
from plait.engine.loss import Loss
from plait.families import members, module_contracts, signatures
from plait.families.limits import Limits
from tests.test_house import ROOT

INTERNAL = {"maker", "missing", "unknown_option", "texts", "name", "dialect"}
"""Members that a package does not write, and two that go without saying."""


def fields(kind):
    return {field.name for field in dataclasses.fields(kind)}


def public(*kinds):
    """The names that these classes give their members, those of pydantic left out."""
    own = {name for kind in kinds for name in (*vars(kind), *vars(kind).get("__annotations__", {}))}
    return {name for name in own if not name.startswith(("_", "model_"))}


MEMBERS = {
    "family": {*members.REQUIRED, *members.OPTIONAL, *members.CATALOGUE, "DATASETS", "ALIASES"}
    | public(ModelSection, Loss, module_contracts.Publisher, signatures.Inputs)
    | fields(Limits),
    "bench": fields(Bench),
    "source": public(Source) | fields(SourceKind),
    "verb": fields(Command),
    "dialect": fields(Dialect) | {"warnings", "train_options", "Translation"},
}


@pytest.mark.parametrize("what", MEMBERS)
def test_each_member_of_a_contract_is_named_where_adding_one_is_told(what):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    part = text.partition(f"\n## Adding a {what}\n")[2].partition("\n## ")[0]
    code = " ".join(re.findall(r"```.*?```|`[^`]+`", part, re.DOTALL))
    assert len(MEMBERS[what]) > 4 and len(code) > 200
    assert not sorted(name for name in MEMBERS[what] - INTERNAL if not re.search(rf"\b{name}\b", code))


def test_translation_has_the_members_that_are_told():
    assert fields(Translation) == {"tree", "overrides", "rows", "warnings", "train_options", "dialect"}
