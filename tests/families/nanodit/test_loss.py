"""The loss: its first value, its sums against a loop, cuts of a batch, and what it never does."""

import pytest
import torch

from plait.families.nanodit import family, flow

from .conftest import sample


def batch_of(inputs, count=12):
    return inputs.collate([inputs.encode(sample(i), i) for i in range(count)])


def test_the_first_loss_is_one_plus_the_mean_square_of_the_data(make):
    config, net, inputs = make(woken=False)
    batch = batch_of(inputs)
    first = family.Loss(config).sums(net, batch)["flow"] / 12
    exact = (batch["noise"] - batch["x0"]).square().mean()
    assert torch.allclose(first, exact)
    assert float(first.detach()) == pytest.approx(
        1 + float(batch["x0"].square().mean()), abs=0.15
    )  # 3072 numbers; the noise's own square is 1


@pytest.mark.parametrize("prediction", ["v", "x"])
def test_sums_are_those_of_a_loop_in_float64(make, prediction):
    config, net, inputs = make(prediction=prediction)
    batch = batch_of(inputs)
    sums = family.Loss(config).sums(net, batch)
    t = batch["t"].double()
    z = torch.stack([(1 - t[i]) * batch["x0"][i].double() + t[i] * batch["noise"][i] for i in range(12)])
    output = net({**batch, "z": z.float()}).detach().double()
    total, low = 0.0, 0.0
    for i in range(12):
        v = batch["noise"][i].double() - batch["x0"][i]
        error = (output[i] - v) if prediction == "v" else (output[i] - batch["x0"][i]) / t[i].clamp(min=flow.T_FLOOR)
        total += float((error**2).mean())
        low += float((error**2).mean()) if t[i] < 0.3 else 0.0
    assert float(sums["flow"].detach()) == pytest.approx(total, rel=1e-4)
    assert float(sums["t_low"]) == pytest.approx(low, rel=1e-4)


def test_ranges_of_t_cover_every_sample_once(make):
    config, net, inputs = make()
    batch = batch_of(inputs)
    batch["t"] = torch.tensor([0.0, 0.1, 0.3, 0.59, 0.6, 0.99, 1.0, 0.2, 0.5, 0.7, 0.8, 0.31])
    loss = family.Loss(config)
    weights, sums = loss.weights(batch), loss.sums(net, batch)
    assert [int(weights[name]) for name in flow.BINS] == [3, 4, 5]
    assert sum(float(sums[name]) for name in flow.BINS) == pytest.approx(float(sums["flow"].detach()), rel=1e-5)
    assert {str(value.dtype) for value in weights.values()} == {"torch.float64"}


@pytest.mark.parametrize("cuts", [[12], [1] * 12, [5, 7], [4, 4, 4]])
def test_one_batch_cut_any_way_gives_one_gradient(make, cuts):
    config, net, inputs = make()
    examples, loss = [inputs.encode(sample(i), i) for i in range(12)], family.Loss(config)
    whole = torch.autograd.grad(loss.sums(net, inputs.collate(examples))["flow"], list(net.parameters()))
    parts, start = [], 0
    for size in cuts:
        parts.append(loss.sums(net, inputs.collate(examples[start : start + size]))["flow"])
        start += size
    cut = torch.autograd.grad(torch.stack(parts).sum(), list(net.parameters()))
    for a, b in zip(whole, cut, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max() + 1e-6))  # float32 sums in another order


def test_only_the_flow_term_trains(make):
    config, net, inputs = make()
    loss = family.Loss(config)
    sums = loss.sums(net, batch_of(inputs))
    assert {name for name, value in sums.items() if value.requires_grad} == {"flow"}
    assert {name for name, value in loss.coefficients.items() if value} == {"flow"}
    assert sums.keys() == loss.coefficients.keys() == loss.weights(batch_of(inputs)).keys()


def test_the_target_rms_of_unit_data_is_the_square_root_of_two(make):
    config, net, inputs = make(woken=False)
    sums = family.Loss(config).sums(net, batch_of(inputs, 64))
    assert (float(sums["target_ms"]) / 64) ** 0.5 == pytest.approx(2**0.5, rel=0.01)
    assert float(sums["prediction_ms"]) == 0.0


def test_nothing_is_read_back_from_the_device(make):
    """On the meta device there are no values to read: any host sync (item, bool, nonzero) would raise."""
    config, net, inputs = make()
    batch = {name: value.to("meta") for name, value in batch_of(inputs).items()}
    sums = family.Loss(config).sums(net.to("meta"), batch)
    sums["flow"].backward()
    assert all(value.device.type == "meta" for value in sums.values())


def test_bfloat16_sums_are_float32_and_close(make):
    config, net, inputs = make()
    loss, batch = family.Loss(config), batch_of(inputs)
    exact = float(loss.sums(net, batch)["flow"].detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = loss.sums(net, batch)["flow"]
    assert rounded.dtype == torch.float32
    assert float(rounded.detach()) == pytest.approx(exact, rel=0.02)  # eight bits of mantissa
