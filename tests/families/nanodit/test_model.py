"""The transformer: its sizes, its first output, its conditions, its masks and its parts."""

import pytest
import torch

from plait.families.nanodit import family
from plait.families.nanodit.config import SIZES, Config
from plait.families.nanodit.network import transformer
from plait.families.nanodit.network.conditions import Conditions

from .conftest import sample


def batch_of(inputs, samples, z=None):
    shown = inputs.pack([inputs.conditions(one) for one in samples])
    z = torch.randn(len(samples), 4, 8, 8, generator=torch.Generator().manual_seed(2)) if z is None else z
    return {**shown, "z": z, "t": torch.linspace(0.2, 0.8, len(z))}


@pytest.mark.parametrize("size", SIZES)
def test_every_row_of_the_table_has_its_parameters(size, directory):
    with torch.device("meta"):
        built = family.build(Config(size=size), directory, seed=1)
    assert sum(parameter.numel() for parameter in built.parameters()) == SIZES[size].parameters


@pytest.mark.parametrize("section", [{}, {"prediction": "x"}, {"text": "words"}, {"image_dim": 0}])
def test_the_first_output_is_exactly_zero(make, section):
    _, net, inputs = make(woken=False, **section)
    output = net(batch_of(inputs, [sample(i) for i in range(3)]))
    assert output.shape == (3, 4, 8, 8)
    assert torch.equal(output, torch.zeros_like(output))


def test_every_parameter_has_a_gradient_after_three_updates(make):
    config, net, inputs = make(woken=False, inputs={"train": True}, dropout={"neither": 0.3, "text_only": 0.2, "image_only": 0.2})
    loss, batch = family.Loss(config), inputs.collate([inputs.encode(sample(i), i) for i in range(16)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        loss.sums(net, batch)["flow"].backward()
        optimizer.step()
    assert not [name for name, value in net.named_parameters() if not value.grad.abs().max() > 0]


def test_patches_come_back_where_they_were():
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = transformer.to_patches(x, 2)
    assert torch.equal(transformer.from_patches(tokens, 2, 2, 3), x)
    assert torch.equal(tokens[0, 4].reshape(3, 2, 2), x[0, :, 2:4, 2:4])  # row 1, column 1 of 3


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (12, 4)])
def test_any_size_of_picture_is_legal(make, size):
    _, net, inputs = make()
    assert net(batch_of(inputs, [sample(1, size=size)], torch.randn(1, 4, *size))).shape == (1, 4, *size)


def test_a_picture_and_its_transpose_are_told_apart(make):
    _, net, inputs = make()
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    z = z + z.mT  # symmetric, so that only positions can tell rows from columns
    output = net(batch_of(inputs, [sample(1)], z))
    assert not torch.allclose(output, output.mT, atol=1e-3)


@pytest.mark.parametrize("pad", ["longest", "to_128", "to_max", "none"])
def test_padding_and_neighbours_change_nothing(make, pad):
    _, net, plain = make()
    _, _, padded = make(inputs={"pad": pad, "max_tokens": 20})
    samples = [sample(i, tokens=n) for i, n in enumerate((2, 9, 5))]
    together = batch_of(padded, samples)
    for row, one in enumerate(samples):
        alone = {**plain.pack([plain.conditions(one)]), "z": together["z"][row : row + 1], "t": together["t"][row : row + 1]}
        assert torch.allclose(net(alone)[0], net(together)[row], atol=1e-5)  # float32 sums in another order


def test_a_row_without_any_open_token_is_a_number_and_reads_nothing(make):
    _, net, inputs = make()
    batch = batch_of(inputs, [sample(1), sample(2)])
    batch["text_mask"] = batch["text_mask"] & torch.tensor([[False], [True]])
    output = net(batch)
    assert output.isfinite().all()
    other = {**batch, "text": batch["text"] + torch.tensor([[1.0]] * 3 + [[0.0]] * 3)}
    assert torch.equal(net(other)[0], output[0])


def test_a_dropped_caption_leaks_nothing_of_its_length(make):
    _, net, inputs = make()
    z, t = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    kinds = [inputs.conditions(sample(i, tokens=n)).only(text=False, image=False) for i, n in ((1, 2), (1, 30))]
    assert torch.equal(*[net({**inputs.pack([one]), "z": z, "t": t}) for one in kinds])
    assert inputs.pack([Conditions()])["text_mask"].tolist() == [[True]]


@pytest.mark.parametrize("what", ["text", "image", "t", "z"])
def test_the_output_depends_on(make, what):
    _, net, inputs = make()
    batch = batch_of(inputs, [sample(1)])
    assert not torch.allclose(net(batch), net({**batch, what: batch[what] + 0.1}), atol=1e-4)


def test_no_text_is_another_thing_than_text_of_zeros(make):
    _, net, inputs = make()
    z, t = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    none, zeros = Conditions(), Conditions(torch.zeros(1, 8), torch.zeros(6))
    outputs = [net({**inputs.pack([one]), "z": z, "t": t}) for one in (none, zeros)]
    assert not torch.allclose(*outputs, atol=1e-4)


def test_components_are_disjoint_and_cover_the_model(make):
    for section, names in (({}, {"embed", "conditioning", "blocks", "final"}), ({"text": "words"}, {"text"})):
        _, net, _ = make(**section)
        parts = family.components(net)
        every = [name for part in parts.values() for name in part]
        assert sorted(every) == sorted(name for name, _ in net.named_parameters())
        assert len(every) == len(set(every))
        assert names <= set(parts)
    assert len(family.blocks(net)) == 2


def test_the_same_seed_draws_the_same_weights_and_leaves_torch_alone(make):
    state = torch.get_rng_state()
    first, second, other = (make(seed=seed, woken=False)[1].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])
    assert torch.equal(state, torch.get_rng_state())


def test_weights_without_decay_are_vectors(make):
    _, net, _ = make()
    vectors = {name for name, value in net.named_parameters() if value.ndim < 2}
    assert {"conditioning.null_text", "conditioning.null_image", "final.shift", "final.scale"} <= vectors


def forward_flops(config, image_tokens, text_tokens):
    """Operations of one sample's forward pass through the blocks, two per multiply-add."""
    width, n, length = config.hidden, image_tokens, text_tokens
    per_token = 4 * width**2 + 2 * width**2 + 2 * width * config.mlp  # self-attention; query and output of the cross; feed-forward
    attention = 2 * n * n * width + 2 * n * length * width
    return 2.0 * config.depth * (n * per_token + length * 2 * width**2 + attention)


@pytest.mark.parametrize(
    ("size", "image_tokens", "text_tokens", "gigaflops"),
    [("12/384", 1024, 77, 72), ("12/384", 4096, 512, 554), ("28/1024", 4096, 512, 5590)],
)
def test_flops_are_the_published_ones(size, image_tokens, text_tokens, gigaflops):
    assert forward_flops(Config(size=size), image_tokens, text_tokens) / 1e9 == pytest.approx(gigaflops, rel=2e-3)


def test_flops_are_what_torch_counts(make):
    from torch.utils.flop_counter import FlopCounterMode

    config, net, inputs = make(depth=3)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        net(batch_of(inputs, [sample(1, tokens=7)]))
    outside = 2 * (16 * 16 * 32 * 2 + 256 * 32 + 32 * 32 + 6 * 32 + 7 * 8 * 32 + 3 * 9 * 32 * 32)  # patches in and out, conditions, gates
    assert counter.get_total_flops() - outside == pytest.approx(forward_flops(config, 16, 7))
