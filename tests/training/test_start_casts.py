"""What trains becomes float32 on the device, a parameter or a unit at a time: the host never holds the model in another type."""

from types import SimpleNamespace

import torch
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from plait.config.schema import Distributed
from plait.engine.parallel import distributed, sharding
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import State
from plait.training.layout import lay_out
from tests import processes
from tests.engine.toy import Net, make_config
from tests.families.test_conformance import Case


class Gpu(TorchFunctionMode):
    """Context manager: stands for a GPU. What moves to it is copied and known by its memory; `host` has the casts of anything else."""

    def __init__(self):
        super().__init__()
        self.there, self.host = [], []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.Tensor.to:
            return func(*args, **(kwargs or {}))
        value, target = args[0], next(part for part in args[1:] if part is not None)
        on_device = any(value.untyped_storage().data_ptr() == kept.untyped_storage().data_ptr() for kept in self.there)
        if isinstance(target, torch.dtype):
            if not on_device and target != value.dtype:
                self.host.append(value.shape)
            moved = func(value, target)
        else:
            moved = value.clone()
        if on_device or isinstance(target, torch.device):
            self.there.append(moved)
        return moved


def started(model, blocks, config, names, ranks):
    """A stage that trains `names` in 16 bits, laid out on `ranks` as the run does."""
    divided = sharding.Sharding(model) if ranks.size > 1 else None
    family = SimpleNamespace(recomputed=lambda model: [])
    bundle = SimpleNamespace(model=model, blocks=blocks, family=family, adapters=None, sharding=divided)
    plan = SimpleNamespace(config=config, trained_names=names, trained_parameters=lambda model: {"all": dict(model.named_parameters())})
    return lay_out(plan, bundle, State(model), ranks, 2)


def test_a_start_on_a_device_casts_nothing_on_the_host():
    net = Net().to(torch.bfloat16)
    names, config = {name for name, _ in net.named_parameters()}, make_config(train={"steps": 1, "global_batch": 2, "precision": "bf16"})
    with Gpu() as gpu, started(net, [net.tower], config, names, Ranks(0, 1, torch.device("mps"))):
        assert {value.dtype for value in net.parameters()} == {torch.float32}
    there = {value.untyped_storage().data_ptr() for value in gpu.there}
    assert gpu.host == [] and all(value.untyped_storage().data_ptr() in there for value in net.parameters())


def whole_units(case):
    """On two ranks: at each unit that is sharded, the names of whole parameters that are float32 by then, and those of the unit."""
    seen, plain = [], sharding.fully_shard

    def fully_shard(module, **options):
        names = {id(value): name for name, value in case.model.named_parameters() if not isinstance(value, DTensor)}
        whole = {name for value, name in names.items() if dict(case.model.named_parameters())[name].dtype == torch.float32}
        seen.append((whole, {names[id(value)] for value in module.parameters() if id(value) in names}))
        return plain(module, **options)

    sharding.fully_shard = fully_shard
    settings, train = Distributed(strategy="fsdp", frozen="shard"), case.config.train.model_copy(update={"precision": "bf16"})
    config = case.config.model_copy(update={"distributed": settings, "train": train})
    names, case.model = {name for part in case.trained.values() for name in part}, case.model.to(torch.bfloat16)
    with distributed.join("cpu") as ranks, started(case.model, case.family.blocks(case.model), config, names, ranks):
        types = {value.dtype for name, value in case.model.named_parameters() if name in names}
    return seen, types


def test_sharded_weights_become_float32_unit_by_unit(tmp_path):
    seen, types = processes.run(2, whole_units, Case("theworld", tmp_path))[0]
    assert len(seen) > 3 and types == {torch.float32}
    assert all(whole <= unit for whole, unit in seen)
    assert sum(bool(whole) for whole, _ in seen) > 3


def test_a_state_that_moves_to_a_device_is_not_copied_on_the_host():
    first = State(Net())
    first.begin({part: first.model.components()[part] for part in ("tower", "head")}, make_config().optim)
    tensors = first.tensors()
    for mapped in (True, False):
        second = State(Net(seed=1))
        second.restore(first.metadata(), tensors, mapped=mapped)
        for name, value in second.model.named_parameters():
            assert torch.equal(value, tensors["weights"][name])
            assert (value.data_ptr() == tensors["weights"][name].data_ptr()) == mapped
