"""docs/checkpoints.md is complete enough to read a checkpoint with safetensors and json alone: its own code does, here."""

import ast
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from plait.engine.checkpoints import checkpoint, integrity

from . import processes
from . import toy_family as toy

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        yield toy.train(toy.install(patch, folder), folder / "run")


@pytest.fixture
def page():
    """The functions that the page defines."""
    found: dict = {}
    exec(CODE, found)
    return found


def test_the_pages_code_needs_nothing_of_ours():
    imports = [node for node in ast.walk(ast.parse(CODE)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0] for node in imports}
    assert names == {"json", "pathlib", "safetensors", "numpy"}  # numpy joins the pieces of ranks


def test_the_pages_code_reads_what_plait_wrote(made, page):
    manifest, groups = page["read"](page["newest"](made))
    ours = integrity.locate(made)
    assert manifest == ours.manifest
    assert set(groups) == {"weights", "ema", "moments"}
    for group, tensors in groups.items():
        assert tensors.keys() == ours.tensors(group).keys()
        assert all(np.array_equal(value, ours.tensors(group)[name].numpy()) for name, value in tensors.items())


def test_the_pages_code_joins_what_two_ranks_wrote(made, page, tmp_path):
    recipe = made.parent / "recipe.yaml"
    processes.fork(2, toy.train, recipe, tmp_path / "run", "distributed.strategy=fsdp", "distributed.frozen=shard")
    manifest, groups = page["read"](page["newest"](tmp_path / "run"))
    assert {name.count("/") for name in manifest["files"]} == {1}
    for group, tensors in groups.items():
        ours = integrity.locate(tmp_path / "run").tensors(group)
        assert tensors.keys() == ours.keys()
        assert all(np.array_equal(value, ours[name].numpy()) for name, value in tensors.items())


def test_the_pages_model_is_the_trained_one(made, page):
    manifest, groups = page["read"](page["newest"](made))
    parts = page["by_component"](manifest, groups["weights"])
    assert {part: len(names) for part, names in parts.items()} == {"projector": 2, "vision": 2, "language": 2}
    net = toy.Net(4, 99)
    net.load_state_dict({name: torch.from_numpy(value) for part in parts.values() for name, value in part.items()}, strict=False)
    assert toy.same(dict(net.named_parameters()), integrity.locate(made).tensors("weights"))


def test_the_page_notices_a_short_file(made, page, tmp_path):
    folder = shutil.copytree(page["newest"](made), tmp_path / "step-00000018")
    (folder / "ema.safetensors").write_bytes(b"")
    with pytest.raises(AssertionError, match=r"ema\.safetensors is cut short"):
        page["read"](folder)


def test_every_key_of_a_manifest_is_on_the_page_and_no_other(made):
    table = PAGE[PAGE.index("## The manifest") : PAGE.index("## Reading")]
    manifest = integrity.locate(made).manifest
    told = set(re.findall(r"`([a-z_0-9.]+)`", "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))))
    keys = {f"state.{key}" for key in manifest["state"]} | manifest.keys() - {"state"}
    short = {f"state{key}" if key.startswith(".") else key for key in told}
    assert short == keys


def test_every_file_of_a_run_is_on_the_page(made):
    tree = PAGE[PAGE.index("```") : PAGE.index("There is no pickle")]
    assert [path.name for path in made.iterdir() if path.name not in tree and not path.name.startswith("stage-")] == []
    assert all(path.name in tree for path in checkpoint.published(made)[0].iterdir())
