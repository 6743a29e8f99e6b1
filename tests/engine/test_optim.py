import math
import re
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from plait.config.schema import Optim
from plait.engine import optim
from plait.engine.averages import Ema
from plait.engine.schedule import Progress
from plait.errors import PlaitError
from tests.waits import Waits

from .toy import Net, make_config, make_state


def test_a_schedule_ends_at_min_lr_for_every_component():
    settings = Optim.model_validate({"lr": 1e-3, "schedule": {"name": "cosine", "min_lr": 1e-4}, "components": {"tower": {"lr": 2e-5}}})
    made = optim.build(Net().components(), settings)
    assert optim.set_lr(made, settings, Progress(100, 101, 100)) == pytest.approx({"tower": 2e-6, "head": 1e-4})


def test_vectors_do_not_decay_and_components_have_their_own_rates():
    settings = Optim.model_validate({"lr": 1e-3, "weight_decay": 0.1, "components": {"tower": {"lr": 2e-5, "weight_decay": 0.3}}})
    groups = optim.build(Net().components(), settings).param_groups
    found = [(group["component"], group["names"], group["peak"], group["weight_decay"]) for group in groups]
    assert found == [
        ("tower", ["tower.weight"], 2e-5, 0.3),
        ("tower", ["tower.bias"], 2e-5, 0.0),
        ("head", ["head.weight"], 1e-3, 0.1),
        ("head", ["head.bias"], 1e-3, 0.0),
    ]


@pytest.mark.parametrize(
    ("name", "shape", "decays"),
    [
        ("out.weight", (1, 8), True),
        ("conv.weight", (4, 1, 1, 3), True),
        ("patch.weight", (4, 3, 1, 2, 2), True),
        ("attention.in_proj_weight", (12, 4), True),
        ("experts.down_proj", (2, 4, 4), True),
        ("norm.weight", (8,), False),
        ("norm.weight", (8, 1, 1), False),
        ("norm.gamma", (8, 1, 1, 1), False),
        ("out.bias", (8,), False),
        ("projector.brackets", (2, 8), False),
        ("connector.pad_embed", (2, 8), False),
        ("tower.register_tokens", (1, 4, 8), False),
        ("tower.weight_tower.cls_token", (1, 4, 8), False),
        ("block.scale_shift_table", (1, 6, 8), False),
    ],
)
def test_matrices_and_filters_decay_but_not_gains_biases_and_learned_vectors(name, shape, decays):
    (group,) = optim.build({"all": {name: nn.Parameter(torch.ones(shape))}}, Optim(weight_decay=0.5)).param_groups
    assert group["weight_decay"] == (0.5 if decays else 0.0)


def test_a_component_has_its_own_betas_and_eps():
    settings = Optim.model_validate({"components": {"tower": {"betas": [0.5, 0.6], "eps": 1e-3}}})
    groups = optim.build(Net().components(), settings).param_groups
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


def test_loaded_moments_are_copies():
    net = torch.nn.Linear(2, 1)
    optimizer = optim.build({"net": dict(net.named_parameters())}, Optim(), lambda name, chunk: 0)
    saved = {f"{name}.{kind}": torch.zeros(value.shape) for name, value in net.named_parameters() for kind in ("exp_avg", "exp_avg_sq")}
    saved |= {f"{name}.step": torch.tensor(3.0) for name, _ in net.named_parameters()}
    optim.load_moments(optimizer, saved)
    for state in optimizer.state.values():
        for value in state.values():
            value.add_(1.0)
    assert all(value.abs().max() == (3.0 if name.endswith("step") else 0.0) for name, value in saved.items())


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
    made = optim.build({"a": {"weight": weight}}, settings)
    x, m, v = 2.0, 0.0, 0.0
    for k in range(1, 6):
        gradient = math.sin(k)
        weight.grad = torch.tensor([[gradient]])
        made.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        x = x * (1 - 0.1 * 0.5) - 0.1 * (m / (1 - 0.8**k)) / (math.sqrt(v / (1 - 0.9**k)) + 1e-8)
    assert weight.item() == pytest.approx(x, rel=1e-5)  # five fp32 updates


def test_the_step_is_torchs_to_the_bit_also_for_parameters_that_join_late_pause_or_are_loaded():
    net, oracle = Net(), Net()
    oracle.load_state_dict(net.state_dict())
    made = optim.build(net.components(), Optim.model_validate({"lr": 0.01, "weight_decay": 0.1}))
    groups = [{**group, "params": [dict(oracle.named_parameters())[name] for name in group["names"]]} for group in made.param_groups]
    plain = torch.optim.AdamW(groups, fused=True)
    for step in range(8):
        if step == 5:
            optim.load_moments(made, optim.moments(made))
        for i, (ours, theirs) in enumerate(zip(net.parameters(), oracle.parameters(), strict=True)):
            absent = (step == 0 and ours.ndim == 1) or (step in (2, 6) and i < 2)
            ours.grad = None if absent else torch.randn(ours.shape, generator=torch.Generator().manual_seed(step))
            theirs.grad = None if ours.grad is None else ours.grad.clone()
        made.step()
        plain.step()
    for ours, theirs in zip(net.parameters(), oracle.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert all(torch.equal(made.state[ours][kind], plain.state[theirs][kind]) for kind in optim.MOMENTS)


def test_hooks_of_the_optimizer_are_called_around_a_step():
    net, seen = Net(), []
    made = optim.build(net.components(), Optim.model_validate({"lr": 0.01}))
    made.register_step_pre_hook(lambda *_: seen.append(net.head.bias.item()))
    made.register_step_post_hook(lambda *_: seen.append(net.head.bias.item()))
    net.head.bias.grad = torch.ones(1)
    made.step()
    assert seen[1] == net.head.bias.item() != seen[0]


def test_a_component_warms_up_at_its_own_pace():
    settings = {"lr": 1e-3, "schedule": {"name": "constant", "warmup_steps": 10}, "components": {"tower": {"warmup_steps": 4}}}
    made = optim.build(Net().components(), settings := Optim.model_validate(settings))
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


class Operators(TorchDispatchMode):
    """Context manager: counts operators by name."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def clipped(components, limit, own_limits):
    """The norms of gradients that are clipped once those have been read."""
    norms, clip = optim.measure(components, limit, own_limits)
    clip({name: float(value) for name, value in norms.items()})
    return norms


@pytest.mark.parametrize(
    ("limit", "own", "multiplied"), [(1e9, {"b": 1e9}, 0), (0.01, {"b": 1e9}, 1), (0.01, {"b": 0.01}, 2), (None, {}, 0)]
)
def test_gradients_below_the_limit_are_not_multiplied_and_norms_not_waited_for(limit, own, multiplied):
    parts = filled()
    with Operators() as operators, Waits() as waits:
        norms, clip = optim.measure(parts, limit, own)
    read = {name: float(value) for name, value in norms.items()}
    with operators, waits:
        clip(read)
    assert not waits.found
    assert operators.count["_foreach_norm"] == 1
    assert operators.count["_foreach_mul_"] == multiplied


@pytest.mark.parametrize("limit", [0.01, 1e9])
def test_clipping_equals_pytorch_to_the_bit(limit):
    ours, theirs = ([value for part in filled().values() for value in part] for _ in range(2))
    assert torch.equal(clipped({"all": ours}, limit, {})["grad_norm"], nn.utils.clip_grad_norm_(theirs, limit))
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(ours, theirs, strict=True))


def test_clipping_without_a_limit_only_measures():
    value = nn.Parameter(torch.zeros(2))
    value.grad = torch.tensor([3.0, 4.0])
    assert clipped({"a": [value, nn.Parameter(torch.zeros(1))]}, None, {}) == {"grad_norm": 5.0}
    assert value.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("limit", [0.5, None])
def test_a_component_is_clipped_by_its_own_norm_and_the_others_together(limit):
    ours, theirs = filled(), filled()
    whole = nn.utils.get_total_norm([value.grad for part in theirs.values() for value in part])
    norms = clipped(ours, limit, {"b": 0.1})
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
    assert clipped(parts, 1.0, {"b": 0.1})["grad_norm/b"] == 0.0


@pytest.mark.parametrize(("ema", "count"), [(None, 0), ({"decay": 0.9}, 1), ({"decay": 0.9, "post_hoc": True}, 3)])
def test_so_many_averages_of_each_weight_are_kept(ema, count):
    assert Optim.model_validate({"ema": ema}).average_count == count


def test_selected_parts_add_up_and_come_in_the_order_of_the_model():
    parts = Net().components()
    assert {name: list(part) for name, part in optim.select(parts, ["head", "tower:bias", "tower:weight"], frozenset()).items()} == {
        "tower": ["tower.bias", "tower.weight"],
        "head": ["head.weight", "head.bias"],
    }
    assert optim.select(parts, ["*:bias"], frozenset()).keys() == {"tower", "head"}
    assert optim.select(parts, ["*:norm"], frozenset()) == {}


def test_settings_of_a_component_that_is_not_there_are_refused():
    settings = Optim.model_validate({"components": {"head": {"lr": 1.0}, "neck": {"lr": 1.0}}})
    with pytest.raises(PlaitError, match=r"^optim\.components names 'neck', which is no component of this model; components: tower, head$"):
        optim.check_components(settings, Net().components(), frozenset())
    settings = Optim.model_validate({"components": {"head": {"lr": 1.0}}})
    optim.check_components(settings, Net().components(), frozenset())
    with pytest.raises(PlaitError, match=r"^optim\.components names 'head', which is never trained; components: tower$"):
        optim.check_components(settings, Net().components(), frozenset({"head"}))


def test_freezing_lets_gradients_reach_what_trains_alone():
    net = Net()
    optim.freeze(net, {"head": {"head.bias": net.head.bias}})
    assert [name for name, value in net.named_parameters() if value.requires_grad] == ["head.bias"]
    optim.freeze(net, net.components())
    assert all(value.requires_grad for value in net.parameters())


@pytest.mark.parametrize("lr", [1e-3, 0.25])
def test_a_floor_is_the_same_share_of_every_peak(lr):
    settings = Optim.model_validate({"lr": lr, "schedule": {"name": "linear", "min_lr": lr / 5}, "components": {"tower": {"lr": 2.0}}})
    made = optim.build(Net().components(), settings)
    assert optim.set_lr(made, settings, Progress(100, 101, 100)) == pytest.approx({"tower": 0.4, "head": lr / 5})
    assert {group["component"]: group["lr"] for group in made.param_groups} == pytest.approx({"tower": 0.4, "head": lr / 5})


def test_an_average_is_a_copy_in_float32_from_the_moment_it_is_first_tracked():
    weight = {"w": nn.Parameter(torch.ones(2, dtype=torch.bfloat16))}
    ema = Ema(0.5, 0)
    ema.track(weight)
    weight["w"].data.fill_(3.0)
    ema.track(weight)  # it has one already
    assert (ema.average["w"].tolist(), ema.average["w"].dtype) == ([1.0, 1.0], torch.float32)
    ema.update(weight, 0)
    assert ema.average["w"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(("decay", "warmup", "kept"), [(0.9, 0, [0.9, 0.9, 0.9]), (0.9, 4, [0.25, 0.5, 0.75]), (0.6, 4, [0.25, 0.5, 0.6])])
def test_the_decay_rises_evenly_to_its_own_over_the_warm_up(decay, warmup, kept):
    assert [Ema(decay, warmup).decay_at(k) for k in range(3)] == pytest.approx(kept)


def test_a_parameter_in_two_groups_or_in_none_is_found():
    state = make_state(make_config())
    optim.assert_covers(state.model, state.optimizer)
    state.optimizer.param_groups[0]["params"] = [state.model.head.weight]
    with pytest.raises(AssertionError, match="a parameter is in two optimizer groups"):
        optim.assert_covers(state.model, state.optimizer)


def test_nothing_with_a_gradient_has_a_norm_of_zero():
    parts = {"a": [nn.Parameter(torch.ones(2))]}
    assert clipped(parts, 1.0, {}) == {"grad_norm": 0.0}


def test_adapters_of_a_component_without_input_are_dropped_too():
    weights = {name: torch.nn.Parameter(torch.ones(2)) for name in ("vision.lora", "language.lora")}
    optimizer = torch.optim.SGD([{"params": [weight], "component": name} for name, weight in weights.items()], lr=1.0)
    for weight in weights.values():
        weight.grad = torch.ones(2)
    optim.drop_idle(optimizer, ["vision"], {"grad_norm": 1.0, "grad_norm/vision.lora": 0.0, "grad_norm/language.lora": 0.0})
    assert [name for name, weight in weights.items() if weight.grad is not None] == ["language.lora"]


@pytest.mark.parametrize(
    ("norms", "kept"),
    [
        ({"grad_norm": 1.0, "grad_norm/a": 0.0, "grad_norm/b": 1.0}, ["b"]),
        ({"grad_norm": 1.0, "grad_norm/a": 1.0, "grad_norm/b": 1.0}, ["a", "b"]),
        ({"grad_norm": 1.0}, ["a", "b"]),
        ({"grad_norm": 0.0}, []),
    ],
)
def test_gradients_of_components_without_input_are_dropped(norms, kept):
    weights = {name: torch.nn.Parameter(torch.ones(2)) for name in "ab"}
    optimizer = torch.optim.SGD([{"params": [weight], "component": name} for name, weight in weights.items()], lr=1.0)
    for weight in weights.values():
        weight.grad = torch.ones(2)
    optim.drop_idle(optimizer, weights, norms)
    assert [name for name, weight in weights.items() if weight.grad is not None] == kept
