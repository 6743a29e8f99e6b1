"""`plait upgrade-check` names what libraries changed: versions, parameters, inputs, the first block; and known renames are read."""

import json

import pytest
import torch
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.siglip import modeling_siglip

from plait import cli
from plait.assembly import saved as saved_models
from plait.commands.actions.runs.upgrade_check import guess
from plait.engine.checkpoints import checkpoint, renames
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import GROUPS
from plait.families.theworld.config import Config
from tests.test_cli import CONFIG

VISION = "gemma.model.vision_tower."


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of two steps that trains the projector and the vision tower, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)
    quiet = ["--guard.forgetting=null", "--trainable=[projector, vision]"]
    assert cli.main(["train", "small.yaml", "--run=run", *quiet]) == 0
    return tmp_path / "run"


def check(capsys):
    capsys.readouterr()
    code = cli.main(["upgrade-check", "run", "--json"])
    told = json.loads(capsys.readouterr().out)
    return code, told, {finding["what"]: finding["result"] for finding in told["findings"]}


def manifest_of(run, **changed):
    """Write the newest checkpoint anew with other keys in its manifest."""
    (folder,) = run.glob("stage-1-train/step-*")
    saved = checkpoint.read(folder)
    groups = {group: saved.tensors(group) for group in GROUPS}
    kept = {key: value for key, value in saved.manifest.items() if key not in ("files", "xxh3", "format", "kind")}
    checkpoint.write(folder, {group: part for group, part in groups.items() if part}, {**kept, **changed})
    return saved.manifest


def test_nothing_changed(run, capsys):
    code, told, found = check(capsys)
    assert (code, told["same"], told["versions"], told["blocks"]) == (0, True, {}, [])
    assert found["loss"].endswith(": exact")
    assert found["blocks"] == "all 3 put out what they did"
    assert found["frozen"] == "weights that never trained are the same"


def test_versions_are_told_beside_each_other(run, capsys):
    (folder,) = run.glob("stage-1-train/step-*")
    versions = checkpoint.read(folder).manifest["versions"]
    manifest_of(run, versions={**versions, "transformers": "5.0.0"})
    code, told, found = check(capsys)
    assert (code, found["versions"]) == (0, f"transformers 5.0.0 -> {versions['transformers']}")
    assert told["versions"] == {"transformers": ["5.0.0", versions["transformers"]]}


@pytest.mark.parametrize(
    ("module", "first"),
    [
        (modeling_siglip.SiglipMLP, "gemma.model.vision_tower.encoder.layers.0"),
        (modeling_gemma3.Gemma3MLP, "gemma.model.language_model.layers.0"),
    ],
)
def test_the_first_block_that_changed_is_named(module, first, run, monkeypatch, capsys):
    before = module.forward
    monkeypatch.setattr(module, "forward", lambda self, x: 1.5 * before(self, x))
    code, told, found = check(capsys)
    assert (code, told["same"], told["blocks"][0]["name"]) == (1, False, first)
    assert f"the first is {first}: " in found["blocks"]
    assert "apart" in found["loss"]


def test_inputs_that_are_encoded_otherwise_are_named(run, monkeypatch, capsys):
    from plait.families.theworld import inputs

    before = inputs.Inputs.collate
    monkeypatch.setattr(
        inputs.Inputs, "collate", lambda self, examples: {**(own := before(self, examples)), "pixels": own["pixels"] + 1e-3}
    )
    code, _, found = check(capsys)
    assert code == 1
    assert found["inputs"] == "the probe samples are encoded otherwise: pixels differ"


def with_former_names(run):
    """Give the vision tower's parameters of the newest checkpoint the names that they had in older releases."""
    saved = saved_models.locate(run)
    bundle = saved_models.open_checkpoint(saved, Ranks(0, 1, torch.device("cpu")))
    then = {name: name.replace(VISION, f"{VISION}vision_model.") for name in bundle.base_hashes if name.startswith(VISION)}
    folder, manifest = saved.checkpoint.folder, saved.checkpoint.manifest
    groups = renames.mapped({group: saved.checkpoint.tensors(group) for group in GROUPS}, then)
    state = {**manifest["state"], "trained": [then.get(name, name) for name in manifest["state"]["trained"]]}
    components = {
        component: {
            **part,
            "names": [then.get(name, name) for name in part["names"]],
            "weights": [then.get(name, name) for name in part["weights"]],
        }
        for component, part in manifest["components"].items()
    }
    frozen = bundle.frozen_xxh3(set(manifest["state"]["trained"]), then)
    blocks = {f"{name}.".replace(VISION, f"{VISION}vision_model.")[:-1]: value for name, value in manifest["reference"]["blocks"].items()}
    changed = {"state": state, "components": components, "frozen_xxh3": frozen, "reference": {**manifest["reference"], "blocks": blocks}}
    kept = {key: value for key, value in manifest.items() if key not in ("files", "xxh3", "format", "kind")}
    checkpoint.write(folder, {group: part for group, part in groups.items() if part}, {**kept, **changed})


def test_known_renames_are_read_everywhere(run, capsys):
    assert cli.main(["eval", "run", "--bench=loss", "--json"]) == 0
    before = json.loads(capsys.readouterr().out)["results"][0]["figures"]
    with_former_names(run)
    code, _, found = check(capsys)
    assert (code, found["blocks"]) == (0, "all 3 put out what they did")
    assert (
        "renamed since, and read under their new names: gemma.model.vision_tower.vision_model -> gemma.model.vision_tower ("
        in found["parameters"]
    )
    assert cli.main(["eval", "run", "--bench=loss", "--json", "--out=again"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["figures"] == before
    assert cli.main(["train", "small.yaml", "--run=other", "--from=run", "--trainable=[projector, vision]", "--guard.forgetting=null"]) == 0
    assert cli.main(["train", "run", "--train.steps=3"]) == 0
    assert "probe loss" in capsys.readouterr().out


def test_unknown_renames_are_guessed_and_not_read(run, monkeypatch, capsys):
    with_former_names(run)
    monkeypatch.setattr(Config, "renames", {})
    code, told, found = check(capsys)
    assert (code, told["same"]) == (1, False)
    assert "perhaps renamed: gemma.model.vision_tower.vision_model -> gemma.model.vision_tower (" in found["parameters"]
    assert cli.main(["train", "run", "--train.steps=3"]) != 0


def test_a_rename_is_guessed_only_without_doubt():
    assert guess(["a.old.0.weight"], ["b.new.0.weight", "c.0.bias"]) == {"a.old.0.weight": "b.new.0.weight"}
    assert guess(["a.0.weight"], ["b.0.weight", "c.0.weight"]) == {}
    assert guess(["a.0.weight", "b.0.weight"], ["c.0.weight"]) == {}
    assert guess(["a.bias"], ["b.weight"]) == {}


def test_without_a_reference_the_loss_alone_is_compared(run, capsys):
    assert cli.main(["train", "small.yaml", "--run=run", "--restart", "--checkpoint.reference=false", "--guard.forgetting=null"]) == 0
    code, told, found = check(capsys)
    assert (code, "blocks" in found, told["same"]) == (0, False, True)
    assert found["loss"].endswith(": exact")
