"""What a step costs, held against torch's own counter of what really ran."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from plait.engine import flops
from plait.engine.blocks import suspended
from plait.engine.flops import Flops, Meter
from plait.nn.losses import token_cross_entropy
from plait.nn.weighted import weighted_cross_entropy


def stack(*trains):
    """Three matrices 16 -> 16 and whether each trains."""
    layers = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in trains))
    for layer, on in zip(layers, trains, strict=True):
        layer.requires_grad_(on)
    return layers


def counted(run):
    with Flops() as flop:
        run()
    return flop.total


PRODUCT = 2 * 8 * 16 * 16  # 8 rows through one matrix


@pytest.mark.parametrize(
    ("trains", "products"),
    [
        ((True, True, True), 3 + 3 + 3 - 1),  # the input of the model wants no gradient
        ((False, False, True), 1 + 1 + 2),  # nothing below the lowest trainable one
        ((True, False, False), 2 + 2 + 2),  # frozen above: gradients pass, weights get none
        ((False, False, False), 3),
    ],
)
def test_a_step_costs_no_gradient_that_nobody_wants(trains, products):
    assert counted(lambda: stack(*trains)(torch.randn(8, 16))) == products * PRODUCT


def test_without_gradients_only_the_forward_pass_counts():
    with torch.no_grad():
        assert counted(lambda: stack(True, True)(torch.randn(8, 16))) == 2 * PRODUCT


@pytest.mark.parametrize("trains", ["qkv", "v", "q", ""])
def test_attention_costs_what_torch_counts_for_its_products(trains):
    q, k, v = (torch.randn(2, 3, n, d, requires_grad=name in trains) for name, n, d in (("q", 5, 8), ("k", 7, 8), ("v", 7, 4)))

    def run():
        out = F.scaled_dot_product_attention(q, k, v)
        return out.sum().backward() if trains else out

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels take scores again, which is no work of the model
        with FlopCounterMode(display=False) as torchs:
            run()
        assert counted(run) == torchs.get_total_flops()


def test_a_convolution_costs_what_torch_counts():
    conv, x = nn.Conv2d(4, 6, 3, stride=2, padding=1), torch.randn(2, 4, 9, 9, requires_grad=True)
    with FlopCounterMode(display=False) as torchs:
        conv(x).sum().backward()
    assert counted(lambda: conv(x)) == torchs.get_total_flops()


def test_what_checkpointing_computes_again_is_not_counted():
    layers, x = stack(True, True), torch.randn(8, 16, requires_grad=True)
    with FlopCounterMode(display=False) as torchs:
        with Flops() as flop:
            out = checkpoint(layers, x, use_reentrant=False).sum()
        out.backward()
    assert flop.total == 6 * PRODUCT
    assert torchs.get_total_flops() == 7 * PRODUCT  # the first of the two again: the second's result is not needed


def test_a_meter_counts_each_shape_once_and_every_micro_batch():
    meter, net = Meter(torch.device("cpu"), "bf16"), stack(True)
    for rows in (8, 8, 16):
        with meter.forward({"x": torch.empty(rows, 16), "ids": [rows]}):
            net(torch.randn(rows, 16)) if rows == 16 or not meter._known else None
    assert meter.take() == (1 + 1 + 2) * 2 * PRODUCT
    assert meter.take() == 0


def test_a_pass_that_fails_is_not_counted_and_the_next_of_its_shapes_is():
    meter, net, batch = Meter(torch.device("cpu"), "fp32"), stack(True), {"x": torch.randn(8, 16)}
    with pytest.raises(ZeroDivisionError), meter.forward(batch):
        raise ZeroDivisionError
    with meter.forward(batch):
        net(batch["x"])
    assert meter.take() == 2 * PRODUCT


def test_the_share_of_the_peak_is_told_where_the_device_is_known(monkeypatch):
    meter = Meter(torch.device("cpu"), "bf16")
    assert meter.rates(6e15, 3.0, 4) == {"tflop_per_s": 500.0}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    meter = Meter(torch.device("cuda", 0), "bf16")
    assert meter.rates(6e15, 3.0, 4) == {"tflop_per_s": 500.0, "mfu": 500 / 989}


def test_the_peak_is_by_device_and_type_and_unknown_ones_have_none():
    assert flops.peak("NVIDIA A100-SXM4-80GB", torch.bfloat16) == flops.peak("NVIDIA A100-SXM4-80GB", torch.float16) == 312e12
    assert flops.peak("NVIDIA H100 80GB HBM3", torch.bfloat16) == flops.peak("NVIDIA H200", torch.bfloat16) == 989e12
    assert flops.peak("NVIDIA L40S", torch.bfloat16) == 362e12
    assert flops.peak("NVIDIA GeForce RTX 4090", torch.bfloat16) == 165.2e12
    assert flops.peak("cpu", torch.bfloat16) is None
    assert flops.peak("NVIDIA H200", torch.float64) is None


def test_the_peak_falls_with_the_bits_of_the_products():
    assert all(row[torch.float32] < row[torch.bfloat16] / 1.9 for row in flops.PEAKS.values())


@pytest.mark.parametrize(
    ("device", "products", "tera"),
    [
        ("NVIDIA A100-SXM4-40GB", torch.float32, 19.5),
        ("NVIDIA A100 80GB PCIe", torch.bfloat16, 312),
        ("NVIDIA H100 80GB HBM3", torch.float32, 67),
        ("NVIDIA H100 PCIe", torch.float16, 756),
        ("NVIDIA H100 PCIe", torch.float32, 51),
        ("NVIDIA L40S", torch.float32, 91.6),
        ("NVIDIA GeForce RTX 4090", torch.float32, 82.6),
    ],
)
def test_peaks_are_those_of_the_data_sheets_without_sparsity(device, products, tera):
    assert flops.peak(device, products) == tera * 1e12


def test_nothing_is_counted_while_a_count_is_suspended():
    layers, x = stack(True), torch.randn(8, 16)
    with Flops() as flop:
        layers(x)
        with suspended(flop):
            layers(x)
        layers(x)
    assert flop.total == 2 * 2 * PRODUCT
    with pytest.raises(ZeroDivisionError), Flops() as flop, suspended(flop):
        raise ZeroDivisionError
    layers(x)
    assert flop.total == 0


def test_logits_are_counted_where_there_is_a_target():
    hidden, head = torch.randn(5, 16, requires_grad=True), torch.randn(7, 16, requires_grad=True)
    with Flops() as flop:
        token_cross_entropy(hidden, head, torch.tensor([1, -100, 0, -100, 6])).sum()
    assert flop.total == 3 * 2 * 16 * 7 * 3  # three targets; forward, and a gradient for both factors


def test_weighted_logits_are_counted_where_there_is_a_weight():
    hidden, head = torch.randn(5, 16, requires_grad=True), torch.randn(7, 16, requires_grad=True)
    with Flops() as flop:
        weighted_cross_entropy(hidden, head, torch.tensor([1, 0, 0, 3, 6]), torch.tensor([1.0, 0.0, 0.5, 0.0, 0.2]))
    assert flop.total == 3 * 2 * 16 * 7 * 3


def test_a_batched_product_counts_the_length_of_its_inner_dimension():
    a, b = torch.randn(3, 4, 5), torch.randn(3, 5, 6, requires_grad=True)
    assert counted(lambda: a @ b) == 2 * (3 * 4 * 6) * 5 * 2
    assert counted(lambda: torch.bmm(a, b)) == counted(lambda: torch.matmul(a, b)) == 2 * (3 * 4 * 6) * 5 * 2
