import math
import re

import pytest
import torch
from torch import nn

from plait.config.schema import Optim
from plait.engine import optim
from plait.engine.optim import Ema
from plait.engine.schedule import Progress
from plait.errors import PlaitError

from .toy import Net, make_config, make_state


def test_a_schedule_ends_at_min_lr_for_every_component():
    settings = Optim.model_validate({"lr": 1e-3, "schedule": {"name": "cosine", "min_lr": 1e-4}, "components": {"tower": {"lr": 2e-5}}})
    made = optim.adamw(Net().components(), settings)
    assert optim.set_lr(made, settings, Progress(100, 101, 100)) == pytest.approx({"tower": 2e-6, "head": 1e-4})


def test_vectors_do_not_decay_and_components_have_their_own_rates():
    settings = Optim.model_validate({"lr": 1e-3, "weight_decay": 0.1, "components": {"tower": {"lr": 2e-5, "weight_decay": 0.3}}})
    groups = optim.adamw(Net().components(), settings).param_groups
    found = [(group["component"], group["names"], group["peak"], group["weight_decay"]) for group in groups]
    assert found == [
        ("tower", ["tower.weight"], 2e-5, 0.3),
        ("tower", ["tower.bias"], 2e-5, 0.0),
        ("head", ["head.weight"], 1e-3, 0.1),
        ("head", ["head.bias"], 1e-3, 0.0),
    ]


def test_a_component_has_its_own_betas_and_eps():
    settings = Optim.model_validate({"components": {"tower": {"betas": [0.5, 0.6], "eps": 1e-3}}})
    groups = optim.adamw(Net().components(), settings).param_groups
    found = {group["component"]: (group["betas"], group["eps"]) for group in groups}
    assert found == {"tower": ((0.5, 0.6), 1e-3), "head": ((0.9, 0.95), 1e-8)}


def test_select_takes_components_parts_of_them_or_everything_but_the_forbidden():
    parts = Net().components()
    assert set(optim.select(parts, ["*"], frozenset({"tower"}))) == {"head"}
    assert list(optim.select(parts, ["tower:bias"], frozenset())["tower"]) == ["tower.bias"]


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        ("haed", "trainable names 'haed', which is no component of this model; components: tower, head"),
        ("head:norm", "trainable names 'head:norm', but no parameter of 'head' has 'norm' in its name"),
    ],
)
def test_select_refuses_what_selects_nothing(trainable, message):
    with pytest.raises(PlaitError, match=f"^{re.escape(message)}$"):
        optim.select(Net().components(), [trainable], frozenset())


def test_select_refuses_what_is_never_trained():
    with pytest.raises(PlaitError, match=r"'head', which is never trained; components: tower$"):
        optim.select(Net().components(), ["head"], frozenset({"head"}))


def test_moments_move_by_name_and_not_by_position():
    config = make_config()
    state = make_state(config)
    sum(value.square().sum() for value in state.model.parameters()).backward()
    state.optimizer.step()
    saved = {name: value.clone() for name, value in optim.moments(state.optimizer).items()}
    other = make_state(config, trainable=("head", "tower"))
    assert optim.load_moments(other.optimizer, saved) == []
    for name, value in optim.moments(other.optimizer).items():
        assert torch.equal(value, saved[name]), name


def test_load_moments_names_parameters_that_have_none_and_refuses_a_wrong_shape():
    state = make_state(make_config())
    assert set(optim.load_moments(state.optimizer, {})) == {"tower.weight", "tower.bias", "head.weight", "head.bias"}
    wrong = {f"head.bias.{kind}": torch.zeros(2) for kind in optim.MOMENTS}
    with pytest.raises(PlaitError, match=r"saved moment head\.bias\.exp_avg has shape \(2,\), the parameter \(1,\)"):
        optim.load_moments(state.optimizer, wrong)


def test_ema_is_the_closed_form_of_its_decay():
    weight = {"w": nn.Parameter(torch.zeros(1))}
    ema = Ema(0.9, 0)
    ema.track(weight)
    for k in range(20):
        weight["w"].data.fill_(1.0)
        ema.update(weight, k)
    assert ema.average["w"].item() == pytest.approx(1 - 0.9**20, rel=1e-6)  # fp32 rounding of 20 steps


def test_ema_warms_up_from_the_weights_themselves():
    weight = {"w": nn.Parameter(torch.zeros(1))}
    ema = Ema(0.999, 4)
    ema.track(weight)
    weight["w"].data.fill_(1.0)
    ema.update(weight, 0)
    assert ema.average["w"].item() == pytest.approx(0.75)


def test_ema_swap_twice_restores_both_to_the_bit():
    net = Net()
    parameters = dict(net.named_parameters())
    ema = Ema(0.5, 0)
    ema.track(parameters)
    nn.init.normal_(net.head.weight)
    before, average = net.head.weight.detach().clone(), ema.average["head.weight"].clone()
    ema.swap(parameters)
    assert torch.equal(net.head.weight, average)
    ema.swap(parameters)
    assert torch.equal(net.head.weight, before)
    assert torch.equal(ema.average["head.weight"], average)


def test_fused_adamw_equals_its_equation_in_float64():
    settings = Optim.model_validate({"lr": 0.1, "betas": [0.8, 0.9], "eps": 1e-8, "weight_decay": 0.5})
    weight = nn.Parameter(torch.tensor([[2.0]]))
    made = optim.adamw({"a": {"w": weight}}, settings)
    x, m, v = 2.0, 0.0, 0.0
    for k in range(1, 6):
        gradient = math.sin(k)
        weight.grad = torch.tensor([[gradient]])
        made.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        x = x * (1 - 0.1 * 0.5) - 0.1 * (m / (1 - 0.8**k)) / (math.sqrt(v / (1 - 0.9**k)) + 1e-8)
    assert weight.item() == pytest.approx(x, rel=1e-5)  # five fp32 updates


def test_a_component_warms_up_at_its_own_pace():
    settings = {"lr": 1e-3, "schedule": {"name": "constant", "warmup_steps": 10}, "components": {"tower": {"warmup_steps": 4}}}
    made = optim.adamw(Net().components(), settings := Optim.model_validate(settings))
    found = [optim.set_lr(made, settings, Progress(step, step + 1, 100)) for step in (0, 3, 9)]
    assert found[0] == pytest.approx({"tower": 1e-3 / 4, "head": 1e-3 / 10})
    assert found[1] == pytest.approx({"tower": 1e-3, "head": 4e-4})
    assert found[2] == pytest.approx({"tower": 1e-3, "head": 1e-3})


def filled(seed=0):
    """Parameters of three parts with gradients, the same every time."""
    parts = {name: [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (7,))] for name in ("a", "b", "c")}
    for i, value in enumerate(value for part in parts.values() for value in part):
        value.grad = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed + i))
    return parts


@pytest.mark.parametrize("limit", [0.01, 1e9])
def test_clipping_equals_pytorch_to_the_bit(limit):
    ours, theirs = ([value for part in filled().values() for value in part] for _ in range(2))
    assert torch.equal(optim.clip({"all": ours}, limit, {})["grad_norm"], nn.utils.clip_grad_norm_(theirs, limit))
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(ours, theirs, strict=True))


def test_clipping_without_a_limit_only_measures():
    value = nn.Parameter(torch.zeros(2))
    value.grad = torch.tensor([3.0, 4.0])
    assert optim.clip({"a": [value, nn.Parameter(torch.zeros(1))]}, None, {}) == {"grad_norm": 5.0}
    assert value.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("limit", [0.5, None])
def test_a_component_is_clipped_by_its_own_norm_and_the_others_together(limit):
    ours, theirs = filled(), filled()
    whole = nn.utils.get_total_norm([value.grad for part in theirs.values() for value in part])
    norms = optim.clip(ours, limit, {"b": 0.1})
    each = {"b": nn.utils.clip_grad_norm_(theirs["b"], 0.1)}
    each |= {name: nn.utils.get_total_norm([value.grad for value in theirs[name]]) for name in ("a", "c")}
    if limit is not None:
        nn.utils.clip_grad_norm_([*theirs["a"], *theirs["c"]], limit)
    assert norms == {"grad_norm": whole, **{f"grad_norm/{name}": value for name, value in each.items()}}
    pairs = [(one.grad, other.grad) for name in ours for one, other in zip(ours[name], theirs[name], strict=True)]
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_component_without_gradients_is_passed_over():
    parts = filled()
    for value in parts["b"]:
        value.grad = None
    assert optim.clip(parts, 1.0, {"b": 0.1})["grad_norm/b"] == 0.0
