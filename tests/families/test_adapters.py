"""Adapters in the models of the families: gradient and outputs are peft's own; exports hold the same model, or the adapters."""

import copy
import json
import re

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from plait import cli
from plait.assembly import exported, saved
from plait.assembly.adapters import layers, peft_directory
from plait.config.sections.adapters import Adapter
from plait.engine.checkpoints import checkpoint
from plait.engine.parallel.distributed import Ranks
from plait.families import registry
from plait.theworld import TheWorld
from tests.families.test_conformance import SCENES, TINY, Case

HERE = Ranks(0, 1, torch.device("cpu"))
ADAPTED = {"theworld": ("language", "vision"), "molmo": ("language", "vision"), "nanodit": ("blocks", "final")}
KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}


@pytest.fixture(scope="module", params=registry.names())
def case(request, tmp_path_factory):
    case = Case(request.param, tmp_path_factory.mktemp(request.param))
    generator = torch.Generator().manual_seed(1)
    for value in case.model.parameters():
        if not value.any():  # of layers that begin as the identity
            nn.init.normal_(value, std=0.1, generator=generator)
    return case


def adapted(case, kind="lora", **targets):
    """A copy of the model with adapters of two components whose B is not 0, and the adapters."""
    model, family = copy.deepcopy(case.model), case.family
    section = {name: Adapter(kind=kind, rank=3, alpha=6, targets=targets.get(name, "auto")) for name in ADAPTED[family.name]}
    adapters = layers.add(family, model, section, 0)
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(value, std=0.3, generator=generator)
    adapters.begin(adapters.names)
    for name, value in model.named_parameters():
        value.requires_grad_(name in adapters.names)
    return model, adapters


def gradient(case, model):
    """The loss of four samples, and its gradient by name."""
    (micro,) = case.micros(4)
    total = sum(case.loss.sums(model, micro.batch).values())
    total.backward()
    return total.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_peft(case, kind):
    model, adapters = adapted(case, kind)
    names = [name for part in adapters.layers.values() for name in part]
    theirs = get_peft_model(copy.deepcopy(case.model), LoraConfig(r=3, lora_alpha=6, target_modules=names, **KINDS[kind]))
    inner, values = theirs.base_model.model, dict(model.named_parameters())
    own = {name: value for name, value in inner.named_parameters() if ".lora_" in name}
    assert own.keys() == adapters.names
    for name, value in own.items():
        value.data = values[name].detach().clone()
    loss, expected = gradient(case, inner)
    ours, found = gradient(case, model)
    assert torch.equal(loss, ours) and loss != gradient(case, case.model)[0]
    assert found.keys() == adapters.names
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_give_the_loss_of_unmerged_ones_under_the_names_of_the_model(case, kind):
    model, adapters = adapted(case, kind)
    before = gradient(case, model)[0]
    moved = adapters.merge()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in case.model.named_parameters()]
    assert moved.keys() == adapters.names and set(moved.values()) <= dict(model.named_parameters()).keys()
    (micro,) = case.micros(4)
    assert float(sum(case.loss.sums(model, micro.batch).values()).detach()) == pytest.approx(float(before), rel=1e-5)


def test_names_and_layers_of_the_model_stay_as_they_were(case):
    model, adapters = adapted(case)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in case.model.named_parameters()} | adapters.names
    own = {component: names for component, names in adapters.components.items() if not component.endswith(".lora")}
    assert own == {component: tuple(part) for component, part in case.components.items()}
    modules = dict(case.model.named_modules())
    chosen = [name for part in adapters.layers.values() for name in part]
    assert all(isinstance(modules[name], nn.Linear) for name in chosen)
    assert not any("head" in name for name in chosen)


def test_first_values_depend_on_the_seed_and_the_layer_alone(case):
    every, adapters = adapted(case)
    last = {component: list(part)[-1] for component, part in adapters.layers.items()}
    values, few = dict(every.named_parameters()), dict(adapted(case, **last)[0].named_parameters())
    shared = [name for name in few if ".lora_A." in name]
    assert {name.partition(".lora_")[0] for name in shared} == set(last.values())
    assert all(torch.equal(values[name], few[name]) and values[name].any() for name in shared)


COMMON = f"""
data: {{train: [{SCENES}], validation: [], workers: 0}}
train: {{steps: 2, global_batch: 4, precision: fp32}}
optim: {{lr: 0.05, schedule: {{name: constant, warmup_steps: 0}}, ema: null}}
track: {{tensorboard: false, monitor: false}}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each family of text in which adapters alone trained."""
    folder, made = tmp_path_factory.mktemp("adapted"), {}
    for family in ("theworld", "molmo"):
        recipe = yaml.safe_load(f"family: {family}{COMMON}") | yaml.safe_load(TINY[family])
        recipe |= {"adapters": {"language": {"kind": "rslora", "rank": 2}}, "trainable": ["language.lora"]}
        (folder / f"{family}.yaml").write_text(yaml.dump(recipe))
        made[family] = folder / family
        assert cli.main(["train", str(folder / f"{family}.yaml"), f"--run={made[family]}"]) == 0
    return made


@pytest.mark.parametrize("family", ["theworld", "molmo"])
def test_an_export_holds_the_merged_model(runs, tmp_path, family):
    assert cli.main(["export", str(runs[family]), str(tmp_path / "out"), "--to", "hf"]) == 0
    told = json.loads((tmp_path / "out/plait.json").read_text())
    assert told["left_out"] == [] and "adapters" not in told
    run, merged = saved.open_checkpoint(saved.locate(runs[family]), HERE), exported.open_named(tmp_path / "out", HERE).bundle
    assert merged.adapters is None
    ids = torch.arange(24).view(2, 12)
    ours, theirs = (language(bundle.model)(input_ids=ids).logits for bundle in (run, merged))
    base = language(run.family.build(run.section, run.assets, seed=0))(input_ids=ids).logits
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours - base).abs().max() > 1e-2


def language(model):
    return model.gemma if hasattr(model, "gemma") else model.language


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers for it
@pytest.mark.parametrize("family", ["theworld", "molmo"])
def test_peft_loads_the_adapters_alone(runs, tmp_path, family, capsys):
    assert cli.main(["export", str(runs[family]), str(tmp_path / "out"), "--to", "peft"]) == 0
    run = saved.open_checkpoint(saved.locate(runs[family]), HERE)
    plain = copy.deepcopy(run)
    plain.adapters.begin(())
    plain.adapters.merge()
    base = language(plain.model)
    ids = torch.arange(24).view(2, 12)
    before = base(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(base, tmp_path / "out")
    ours, theirs = language(run.model)(input_ids=ids).logits, loaded(input_ids=ids).logits
    assert torch.equal(ours, theirs) and (ours - before).abs().max() > 1e-2
    assert f"PeftModel.from_pretrained loads it over {type(base).__name__} of" in capsys.readouterr().out


def test_a_checkpoint_holds_adapters_moments_and_averages_alone(runs):
    found = checkpoint.read(checkpoint.published(runs["theworld"])[0])
    values = sum(tensor.numel() for tensor in found.tensors("weights").values())
    assert values == saved.locate(runs["theworld"]).checkpoint.manifest["components"]["language.lora"]["values"]
    held = sum(tensor.nbytes for group in ("weights", "moments", "ema") for tensor in found.tensors(group).values())
    assert held == 4 * (3 * values + len(found.tensors("weights")))


def test_the_files_of_a_checkpoint_take_a_hundredth_more_than_adapters_and_moments(tmp_path):
    config = yaml.safe_load(TINY["theworld"]) | {
        **{"family": "theworld", "adapters": {"language": {"rank": 512}}, "trainable": ["language.lora"], "optim": {"ema": None}},
        **{"data": {"train": [yaml.safe_load(SCENES)], "workers": 0}, "train": {"steps": 1, "global_batch": 2}, "evaluate": []},
        **{"track": {"tensorboard": False}},
    }
    config["model"]["tiny"] |= {"hidden": 256, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 128, "mlp": 512}
    (tmp_path / "large.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["train", str(tmp_path / "large.yaml"), f"--run={tmp_path / 'run'}"]) == 0
    (folder,) = checkpoint.published(tmp_path / "run")
    needed = 3 * 4 * checkpoint.read(folder).manifest["components"]["language.lora"]["values"]  # float32: the weights, two moments
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert needed > 2e7 and needed < written < 1.01 * needed


def test_a_run_in_python_has_its_adapters_in_its_weights(runs, tmp_path):
    opened = TheWorld.from_pretrained(runs["theworld"], device="cpu")
    assert not [name for name, _ in opened.model.named_parameters() if "lora" in name]
    opened.save_pretrained(tmp_path / "out", encoder=True)
    run, again = saved.open_checkpoint(saved.locate(runs["theworld"]), HERE), exported.open_named(tmp_path / "out", HERE).bundle
    ids = torch.arange(24).view(2, 12)
    assert (run.model.gemma(input_ids=ids).logits - again.model.gemma(input_ids=ids).logits).abs().max() < 1e-5


def test_a_run_starts_from_consolidated_adapters(runs, tmp_path, capsys):
    assert cli.main(["ckpt", "consolidate", str(runs["molmo"]), str(tmp_path / "out")]) == 0
    recipe = runs["molmo"].with_suffix(".yaml")
    still = ["--train.steps=1", "--optim.lr=1e-30", "--optim.schedule.min_lr=0", "--optim.weight_decay=0"]
    assert cli.main(["train", str(recipe), f"--run={tmp_path / 'run'}", f"--from={tmp_path / 'out'}", *still]) == 0
    assert re.search(r"weights +language\.lora +keep", capsys.readouterr().out)
    ids = torch.arange(24).view(2, 12)
    one, other = (saved.open_checkpoint(saved.locate(run), HERE) for run in (runs["molmo"], tmp_path / "run"))
    assert torch.equal(language(one.model)(input_ids=ids).logits, language(other.model)(input_ids=ids).logits)


def test_adapters_of_two_components_are_a_directory_each(case, tmp_path):
    model, adapters = adapted(case, "dora")
    lines = peft_directory.write(adapters, adapters.names, case.family.base(case.parts.section), tmp_path / "out")
    assert [line.partition(":")[0] for line in lines] == [f"{component}.lora" for component in adapters.layers]
    values = dict(model.named_parameters())
    for component, part in adapters.layers.items():
        held = load_file(tmp_path / "out" / component / "adapter_model.safetensors")
        targets = json.loads((tmp_path / "out" / component / "adapter_config.json").read_text())["target_modules"]
        assert len(held) == 3 * len(part) and all(any(name.endswith(target) for target in targets) for name in part)
        for name, value in held.items():
            (ours,) = [own for own in adapters.names if own.replace(".default.weight", "").endswith(name[17:].removesuffix(".weight"))]
            assert torch.equal(value, values[ours])
