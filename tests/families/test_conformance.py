"""What every family must hold to, whatever it is: the contract of docs, run on a tiny model of each. A new family adds one entry here."""

import importlib

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from plait.assembly.configuration import open_config
from plait.assembly.data import open_data
from plait.assembly.fixed_order import FixedOrder
from plait.assembly.held_out import choose
from plait.assembly.model import build_model
from plait.config.schema import Distributed
from plait.data.loading.loader import Loader
from plait.engine import blocks, optim
from plait.engine.flops import Flops
from plait.engine.loop import total_loss_weights
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import State
from plait.errors import PlaitError
from plait.families import members, offers, registry, returned
from plait.keys import key
from tests import processes
from tests.engine.toy import make_loop

SCENES = "{source: scenes, limit: 16, options: {size: [32, 32], objects: [1, 2], tasks: [caption, count]}}"
TINY = {
    "theworld": """
        preset: tiny
        model: {world: {image_size: 16}, augment: {flip: true, shift: 0.1},
                tiny: {hidden: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, mlp: 64, image_size: 16,
                image_tokens: 4, vision_hidden: 32, vision_layers: 1, vision_heads: 2, vision_mlp: 64, world_base: 4}}""",
    "molmo": "{preset: debug, model: {style: style_and_length}}",
    "nanodit": """
        model: {space: pixels, depth: 2, hidden: 48, heads: 2, patch: 4, image_size: 32, text: words, text_dim: 16, words: 64, image_dim: 0,
                dropout: {neither: 0.1, text_only: 0.0, image_only: 0.0}}""",
}
ALONE = Ranks(0, 1, torch.device("cpu"))
SAMPLES = 4


class Case:
    """A family's tiny model with four of its samples, cut in any way."""

    def __init__(self, family, folder):
        path = folder / "recipe.yaml"
        text = f"family: {family}\nrun: {folder / 'run'}\ndata: {{train: [{SCENES}], validation: [{SCENES}]}}\ntrain: {{steps: 1000}}\n"
        path.write_text(yaml.dump({**yaml.safe_load(text), **yaml.safe_load(TINY[family])}))
        self.resolved = open_config(path)
        self.config = self.resolved.stages[0].config
        self.parts = build_model(self.config, folder / "run", ALONE)
        self.model, self.family = self.parts.model, self.parts.family
        self.loss = self.family.Loss(self.parts.section)
        self.components = self.family.components(self.model)
        self.trained = optim.select(self.components, ["*"], self.family.never_trained)
        optim.freeze(self.model, self.trained)
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

    def micros(self, size, train=True, count=SAMPLES, ranks=ALONE):
        opened = open_data(self.config, self.config.data.train, "train")
        order = FixedOrder.of(choose([len(opened[0])], count, 0), opened, count)
        cut = {"rank": ranks.rank, "world_size": ranks.size, "micro_batch": size, "workers": 0, "stop_step": 1}
        with Loader(opened, order, self.parts.inputs(self.config, train=train), seed=1, **cut) as loader:
            return next(iter(loader)).micro

    def gradient(self, micros):
        self.model.zero_grad()
        weights = total_loss_weights(self.loss, micros, ALONE)
        for micro in micros:
            sums = self.loss.sums(self.model, micro.batch)
            sum(self.loss.coefficients[name] * value / weights[name] for name, value in sums.items() if weights[name] > 0).backward()
        return {name: value.grad.clone() for name, value in self.model.named_parameters() if value.grad is not None}


@pytest.fixture(scope="module", params=registry.names())
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def test_components_are_disjoint_and_cover_the_model(case):
    listed = [id(value) for part in case.components.values() for value in part.values()]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(value) for value in case.model.parameters()}
    names = dict(case.model.named_parameters())
    assert all(names[name] is value for part in case.components.values() for name, value in part.items())


def test_the_family_passes_the_checks_of_families_from_elsewhere(case, tmp_path):
    name = case.family.name
    members.check(name, importlib.import_module(f"plait.families.{name}.family"))
    checked, section = returned.checked(case.family), case.parts.section
    model = checked.build(section, case.parts.assets, seed=1)
    components = checked.components(model)
    assert len(checked.blocks(model)) > 1
    known = {*components, *section.absent()}
    assert {*checked.never_trained, *checked.Loss(section).may_idle} <= known
    assert checked.limits(section) == case.family.limits(section)
    assert len(checked.monitors(section)) == len(case.family.monitors(section))
    inputs = checked.Inputs(section, case.parts.assets, max_tokens=None, pad="longest", train=True)
    sample = open_data(case.config, case.config.data.train, "train")[0][0]
    assert checked.inspect(inputs, sample, inputs.encode(sample, 1))["images"]
    benches = returned.checked_benches(name, importlib.import_module(f"plait.families.{name}.evaluate"))
    assert benches.keys() == registry.benches(name).keys()
    if section.layouts:
        members.check_publisher(name, offers.publisher(name), section.layouts)
    if offers.has_datasets(name):
        members.check_catalogue(name, offers.datasets(name))


def test_blocks_are_modules_of_the_model(case):
    modules = list(case.model.modules())
    found = case.family.blocks(case.model)
    assert found
    assert all(any(block is module for module in modules) for block in found)


def test_weights_are_known_without_the_model_and_name_every_term(case):
    micro = case.micros(SAMPLES)[0]
    weights = case.loss.weights(micro.batch)
    assert set(weights) == {*case.loss.coefficients, *case.loss.counts}
    assert all(value.ndim == 0 and value.device.type == "cpu" for value in weights.values())
    assert set(case.loss.sums(case.model, micro.batch)) <= set(weights)


def test_what_samples_weigh_each_is_what_they_weigh_together_and_alone(case):
    whole, alone = case.micros(SAMPLES)[0], case.micros(1)
    found, weights = case.loss.by_sample(whole.batch), case.loss.weights(whole.batch)
    assert set(found) == set(case.loss.amounts) <= set(weights)
    for name, values in found.items():
        one_by_one = [case.loss.weights(micro.batch)[name].item() for micro in alone]
        assert values.tolist() == one_by_one
        assert sum(one_by_one) == weights[name].item() > 0


def test_one_batch_cut_in_any_way_gives_one_gradient(case):
    case.model.train()
    whole = case.gradient(case.micros(SAMPLES))
    scale = max(value.abs().max() for value in whole.values())
    for size in (1, 2):
        for name, value in case.gradient(case.micros(size)).items():
            assert (value - whole[name]).abs().max() <= 2e-5 * scale, name  # fp32: other shapes, other orders of summation


@pytest.mark.parametrize("kind", ["full", "selective"])
def test_blocks_recomputed_in_the_backward_pass_change_no_bit_of_a_gradient(case, kind):
    plain = case.gradient(case.micros(SAMPLES))
    blocks.checkpoint_and_compile(case.family.blocks(case.model), Distributed(activation_checkpointing=kind))
    found = case.gradient(case.micros(SAMPLES))
    blocks.checkpoint_and_compile(case.family.blocks(case.model), Distributed())
    assert all(torch.equal(found[name], value) for name, value in plain.items())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the compiler's own look at it
def test_compiled_blocks_give_the_gradient_and_are_compiled_once(case):
    plain = case.gradient(case.micros(SAMPLES))
    compilations = blocks.checkpoint_and_compile(case.family.blocks(case.model), Distributed(compile=True, compile_backend="aot_eager"))
    for _ in range(3):
        compilations.begin()
        found = case.gradient(case.micros(SAMPLES))
        assert compilations.end() == []
    blocks.checkpoint_and_compile(case.family.blocks(case.model), Distributed())
    scale = max(value.abs().max() for value in plain.values())
    assert compilations.warm
    for name, value in found.items():  # float32's 6e-8, a few times: tracing takes quick_gelu apart; without it every bit agrees
        assert (value - plain[name]).abs().max() <= 5e-7 * scale, name


def shared(case, count):
    """What one rank holds after its part of a batch of `count` samples: every gradient, averaged over ranks."""
    with distributed.join("cpu") as ranks:
        micros = case.micros(1, count=count, ranks=ranks)
        loop = make_loop(State(case.model), case.loss, case.config, ranks, case.parts.assets / "bad.jsonl")
        case.model.zero_grad()
        weights = total_loss_weights(case.loss, micros, ranks)
        loop.accumulate(distributed.replicate(case.model, ranks, "none"), micros, {name: weights[name] for name in case.loss.coefficients})
        return {name: value.grad.numpy() for name, value in case.model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("count", [3, 1], ids=["uneven", "an empty rank"])
def test_ranks_with_unequal_work_get_the_gradient_of_the_whole_batch(case, count):
    case.model.train()
    whole = case.gradient(case.micros(count, count=count))
    scale = max(value.abs().max() for value in whole.values())
    for found in processes.run(2, shared, case, count):
        assert found.keys() == whole.keys()
        for name, value in found.items():
            assert (torch.from_numpy(value) - whole[name]).abs().max() <= 2e-5 * scale, (
                name
            )  # fp32: other shapes, other orders of summation


def test_every_trainable_parameter_gets_a_gradient_of_finite_numbers(case):
    found = case.gradient(case.micros(SAMPLES))
    missing = [name for part in case.trained.values() for name in part if name not in found]
    assert missing == []
    assert all(value.isfinite().all() for value in found.values())


def test_a_step_costs_the_operations_that_torch_counts(case):
    case.model.train()
    (batch,) = [micro.batch for micro in case.micros(SAMPLES)]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as torchs:  # fused attention computes scores again
        with Flops() as flop:
            sums = case.loss.sums(case.model, batch)
        sum(sums.values()).backward()
    case.model.zero_grad()
    assert flop.total == pytest.approx(torchs.get_total_flops(), rel=0.05)  # it does not know torch.s loss in chunks: 4 % of the smallest


def test_an_example_depends_on_its_key_alone(case):
    first, again = case.micros(2), case.micros(2)
    for one, other in zip(first, again, strict=True):
        tensors = {name: value for name, value in one.batch.items() if isinstance(value, torch.Tensor)}
        assert tensors
        assert all(torch.equal(value, other.batch[name]) for name, value in tensors.items())


def test_the_same_seed_builds_the_same_model_and_another_another(case):
    folder = case.parts.assets
    twins = [case.family.build(case.parts.section, folder, seed=key(seed, "init")) for seed in (0, 0, 1)]
    weights = [dict(model.named_parameters()) for model in twins]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert any(not torch.equal(value, weights[2][name]) for name, value in weights[0].items())


def test_the_model_builds_on_the_meta_device_without_memory(case):
    with torch.device("meta"):
        model = case.family.build(case.parts.section, case.parts.assets, seed=0)
    assert {name: value.shape for name, value in model.named_parameters()} == {
        name: value.shape for name, value in case.model.named_parameters()
    }


def test_where_frozen_weights_come_from_is_said(case):
    for part in case.family.base(case.parts.section):
        assert {"part", "name", "revision"} <= part.keys() <= {"part", "name", "revision", "folder"}
        assert all(isinstance(value, str | None) for value in part.values())


LOSS_DRAWS = {"nanodit": {"noise", "t"}}
"""By family: what its loss draws of a sample's key, held out as well; the loader always gives a held-out sample the same key."""


def changed_by_the_key(case, *, train):
    """The names of the tensors of a batch that differ between keys; that a key always gives the same ones is checked as well."""
    inputs = case.parts.inputs(case.config, train=train)
    sample = open_data(case.config, case.config.data.validation, "validation")[0][0]
    tensors = []
    for key_of_sample in (1, 1, *range(2, 12)):
        batch = inputs.collate([inputs.encode(sample, key_of_sample)])
        tensors.append({name: value for name, value in batch.items() if isinstance(value, torch.Tensor)})
    differing = [{name for name in one.keys() | tensors[0].keys() if not same(one.get(name), tensors[0].get(name))} for one in tensors[1:]]
    assert differing[0] == set()
    return set().union(*differing)


def same(one, other):
    return one is not None and other is not None and torch.equal(one, other)


def test_a_key_changes_nothing_of_held_out_inputs_but_what_the_loss_draws(case):
    drawn = LOSS_DRAWS.get(case.config.family, set())
    assert changed_by_the_key(case, train=False) == drawn < changed_by_the_key(case, train=True)


def test_inputs_are_shown_as_pictures(case):
    inputs = case.parts.inputs(case.config, train=False)
    sample = open_data(case.config, case.config.data.validation, "validation")[0][0]
    shown = case.family.inspect(inputs, sample, inputs.encode(sample, 1))
    assert shown["images"]
    assert all(picture.dtype == "uint8" and picture.shape[-1] == 3 for picture in shown["images"])


def test_a_family_that_ships_without_a_member_is_told_in_one_line(monkeypatch):
    monkeypatch.delattr(importlib.import_module("plait.families.nanodit.family"), "blocks")
    with pytest.raises(
        PlaitError, match=r"^family 'nanodit' \(plait\.families\.nanodit\.family\) does not fulfil the contract: it lacks blocks\(model\)$"
    ):
        registry.load("nanodit")
