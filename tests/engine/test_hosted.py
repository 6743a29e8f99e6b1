"""What nothing computes with, such as a VAE's decoder, stays on the host: it is moved to no device, and not sent between ranks."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import swap_tensors

from plait.assembly.configuration import open_config
from plait.assembly.model import build_model
from plait.engine.parallel import distributed, hosted, memory_estimate, sharding
from plait.engine.parallel.distributed import Ranks
from plait.engine.parallel.hosted import OnHost
from plait.engine.parallel.memory_estimate import Layout, Storage
from plait.engine.parallel.sharding import Sharding
from plait.engine.state import State
from plait.training.layout import lay_out
from plait.training.stage_plan import plan_stage
from tests import processes

DEVICE = torch.device("meta")  # a device that is not the host, without one at hand
RECIPE = """
family: theworld
preset: tiny
model: {world: {image_size: 16, source: "SOURCE"}}
trainable: [projector]
data: {train: [{source: scenes, limit: 8, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}], workers: 0}
train: {steps: 2, global_batch: 4, precision: bf16}
"""
PARTS = {
    "tiny": ("world.vae.decoder.", "world.vae.post_quant_conv."),
    "tiny:wan2.2": ("world.vae.decoder.", "world.vae.post_quant_conv."),
    "tiny:cosmos1": ("world.vae.decoder.", "world.vae.post_quant_conv."),
    "tiny:vjepa2": ("world.model.predictor.",),
}


class Decoder(OnHost, nn.Linear):
    """A layer that stays on the host."""


class Model(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head, self.decoder = nn.Linear(4, 2), nn.Sequential(Decoder(4, 4), nn.Linear(4, 4))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


HELD = {"decoder.0.weight", "decoder.0.bias"}


@pytest.fixture(params=PARTS)
def opened(request, tmp_path):
    """(the plan of a stage, the model bundle, the names that are to stay), of an encoder."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("SOURCE", request.param))
    resolved = open_config(path)
    bundle = build_model(resolved.config, tmp_path / "run", Ranks(0, 1, torch.device("cpu")))
    held = {name for name, _ in bundle.model.named_parameters() if name.startswith(PARTS[request.param])}
    return plan_stage(resolved.stages[0], bundle), bundle, held


@pytest.fixture(autouse=True)
def placed(monkeypatch):
    """`distributed.place` for a device without memory, to which torch does not let `data` change."""

    def place(value, dtype, device):
        swap_tensors(value, nn.Parameter(value.detach().to(device).to(dtype), value.requires_grad))

    monkeypatch.setattr(distributed, "place", place)


def test_a_stage_moves_all_but_what_no_forward_pass_uses(opened):
    plan, bundle, held = opened
    before = {name: value.detach().clone() for name, value in bundle.model.named_parameters() if name in held}
    with lay_out(plan, bundle, State(bundle.model), Ranks(0, 1, DEVICE), 1):
        places = {name: value.device.type for name, value in bundle.model.named_parameters()}
    assert held and {name for name, place in places.items() if place == "cpu"} == held == hosted.names(bundle.model)
    for name, value in before.items():
        assert torch.equal(bundle.model.get_parameter(name), value.to(torch.bfloat16)), name  # as frozen weights are
    assert bundle.components().keys() >= {"projector", "world", "world_decoder"}


def test_an_opened_model_and_an_encoder_alone_leave_it_where_it_is(opened):
    _, bundle, held = opened
    bundle.model.to(DEVICE).eval()
    assert {name for name, value in bundle.model.named_parameters() if value.device.type == "cpu"} == held
    hosted.release(bundle.model)
    assert hosted.names(bundle.model) == frozenset() and type(bundle.model.world).__mro__[1] is not OnHost
    assert {value.device.type for value in bundle.model.to(DEVICE).parameters()} == {"meta"}


def test_a_cast_of_a_whole_model_casts_it_and_memory_that_it_gets_is_its_too():
    model = Model().to(DEVICE, torch.float16)
    assert {value.dtype for value in model.parameters()} == {torch.float16}
    assert {name for name, value in model.named_parameters() if value.device.type == "cpu"} == HELD
    with DEVICE:
        empty = Model()
    assert {value.device.type for value in empty.to_empty(device="cpu").parameters()} == {"cpu"}


def test_the_state_of_a_rank_is_counted_without_it():
    model = Model()
    names = {name for name, _ in model.named_parameters()}
    counts = memory_estimate.count_parameters(model, {"head.weight"}, {"head.weight"}, [*model.blocks])
    assert counts.trained + counts.frozen == sum(value.numel() for value in model.parameters()) - 20 and names > HELD
    assert memory_estimate.memory(counts, Layout(), Storage.of("bf16")).weights == 8 * 4 + (2 * 20 + 2 + 20) * 2


def test_moving_unit_by_unit_leaves_it():
    model = Model()
    sharding.place(model, model, {name: torch.bfloat16 for name, _ in model.named_parameters()}, DEVICE)
    assert {name for name, value in model.named_parameters() if value.device.type == "cpu"} == HELD
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


def stepped(strategy, ranks):
    """Gradients of what trains; each rank begins with values of its own in what stays on the host, and keeps them."""
    model = Model(seed=ranks.rank)
    own = {name: value.detach().clone() for name, value in model.named_parameters() if name in HELD}
    for name, value in model.named_parameters():
        value.requires_grad_(not name.startswith("decoder"))
        if name not in HELD:
            value.data.fill_(0.3)
    names = {name for name, value in model.named_parameters() if value.requires_grad}
    Sharding(model).wrap(model.blocks, names, Layout(strategy, 2), ranks, types={})
    net = distributed.replicate(model, ranks, "none")
    assert isinstance(net, DistributedDataParallel) == (strategy == "ddp")
    net(torch.full((2, 4), 1.0 + ranks.rank)).sum().backward()
    assert all(torch.equal(value, own[name]) for name, value in model.named_parameters() if name in HELD)
    return {name: distributed.full_tensor(value.grad).tolist() for name, value in model.named_parameters() if name in names}


def on_two_ranks(strategy):
    with distributed.join("cpu") as ranks:
        return stepped(strategy, ranks)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "shard_grad_op"])
def test_ranks_do_not_send_it_to_each_other(strategy):
    first, second = processes.run(2, on_two_ranks, strategy)
    assert len(first) == 6 and first == second
