"""The modules of components, and what hooks on them see."""

import time

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from plait.training.monitor.modules import ForwardWatch, modules_of

CPU = torch.device("cpu")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(2), "out": nn.Linear(2, 1)})
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = self.tower(x) * self.scale
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head["out"](self.head["norm"](x))


def components(model):
    names = [name for name, _ in model.named_parameters()]
    parts = {"tower": "tower", "blocks": "blocks", "norm": "head.norm", "out": "head.out", "scale": "scale"}
    return {part: [name for name in names if name.startswith(prefix)] for part, prefix in parts.items()}


def test_a_component_is_its_largest_modules_with_a_forward_pass():
    model = Net()
    assert modules_of(model, components(model)) == {
        "tower": [model.tower],
        "blocks": list(model.blocks),
        "norm": [model.head["norm"]],
        "out": [model.head["out"]],
    }


def test_adapters_count_to_the_component_whose_layers_they_are_in():
    model = Net()
    own = {name: list(part) for name, part in components(model).items()}
    own["tower"].remove("tower.0.weight")
    assert modules_of(model, own | {"tower.lora": ["tower.0.weight"]})["tower"] == [model.tower]


def test_forward_passes_are_timed_by_component_and_those_of_the_backward_pass_are_not(monkeypatch):
    model, seen, now = Net(), [], iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    watch = ForwardWatch(modules_of(model, components(model)), CPU)
    watch.begin(lambda component, value: seen.append((component, tuple(value.shape), value.requires_grad)))
    model(torch.ones(3, 2)).sum().backward()
    watch.end()
    assert watch.seconds() == {"tower": 1.0, "blocks": 2.0, "norm": 1.0, "out": 1.0}  # a tick from begin to end, of two blocks two
    assert seen == [("tower", (3, 2), False), ("blocks", (3, 2), False), ("norm", (3, 2), False), ("out", (3, 1), False)]
    model(torch.ones(3, 2))
    assert len(seen) == 4, "nothing is watched after the end"


@pytest.mark.parametrize("again", [False, True])
def test_a_new_beginning_counts_from_zero_and_leaves_no_hook(again):
    model = Net()
    watch = ForwardWatch(modules_of(model, components(model)), CPU)
    for _ in range(2):
        watch.begin()
        model(torch.ones(3, 2))
    watch.end()
    if again:
        watch.end()
    assert len(watch._took) == 5
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
