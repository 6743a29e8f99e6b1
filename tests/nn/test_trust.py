"""Published weights are read from safetensors alone, and no code of a repository is run."""

import ast
import json
from pathlib import Path

import pytest
import torch

import plait
from plait.errors import PlaitError
from plait.families.molmo import towers as molmo
from plait.families.molmo.config import Config as Molmo
from plait.families.theworld import towers as theworld
from plait.families.theworld.config import Config as TheWorld

CALLS = [
    (path.name, node)
    for path in sorted(Path(plait.__file__).parent.rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained"
    if ast.unparse(node.func.value) != "GenerationConfig"  # reads JSON alone, and would keep the option as a setting of its own
    if ast.unparse(node.func.value) != "library.PeftModel"  # has no code to run, and would hand the option on
]


@pytest.mark.parametrize(("file", "call"), CALLS, ids=[f"{file}:{call.lineno}" for file, call in CALLS])
def test_every_load_says_what_it_trusts(file, call):
    if file == "load.py":  # of `plait export --check`: what the user says of an export
        assert any(ast.unparse(keyword) == "trust_remote_code=trust" for keyword in call.keywords)
        return
    given = {ast.unparse(keyword.value).rpartition(".")[2] for keyword in call.keywords if keyword.arg is None}
    assert given & {"CONFIG", "WEIGHTS", "DIFFUSERS"}


@pytest.fixture
def pickled(tmp_path):
    """A folder of a language model whose weights are pickled, and whose configuration points to code."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 16}))
    torch.save({"x": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    return tmp_path


def test_weights_that_are_pickled_are_refused_in_one_line(pickled):
    with pytest.raises(PlaitError, match=r"^model\.language: cannot load .*safetensors") as caught:
        molmo.load_language(Molmo.model_validate({"language": str(pickled)}), 0)
    assert "\n" not in str(caught.value)
    (pickled / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    with pytest.raises(PlaitError, match=r"^model\.base: cannot load .*safetensors") as caught:
        theworld.load_gemma(TheWorld.model_validate({"base": str(pickled)}), 0)
    assert "\n" not in str(caught.value)


def test_code_of_a_repository_is_never_run(pickled):
    code = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Model"}
    (pickled / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": code}))
    (pickled / "evil.py").write_text(f"open({str(pickled / 'ran')!r}, 'w')\n")
    with pytest.raises(PlaitError, match=r"^model\.language: cannot load ") as caught:
        molmo.load_language(Molmo.model_validate({"language": str(pickled)}), 0)
    assert "\n" not in str(caught.value) and not (pickled / "ran").exists()
