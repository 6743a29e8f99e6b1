"""Blocks of the world encoder are recomputed in the backward pass of a stage in which it trains, and no bit changes."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResidualBlock

from plait.config.schema import Distributed
from plait.engine import blocks
from plait.families.theworld.pretrained.recomputed import recomputable
from tests.families.test_conformance import Case
from tests.families.theworld.test_world import noise, stock_and_ours

FULL = Distributed(activation_checkpointing="full")


def gradients(encoder, frames):
    """The latents, every gradient, and the bytes that are kept for the backward pass beside the weights."""
    encoder.zero_grad()
    kept, own = {}, {value.data_ptr() for value in encoder.parameters()}

    def keep(value):
        if value.untyped_storage().data_ptr() not in own:
            kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        latents = encoder(noise(frames))
    latents.square().sum().backward()
    return latents.detach(), {name: value.grad for name, value in encoder.named_parameters() if value.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_a_recomputed_encoder_has_the_same_latents_and_gradients_and_keeps_less(frames):
    _, encoder = stock_and_ours()
    names = [name for name, _ in encoder.named_parameters()]
    plain, wanted, most = gradients(encoder, frames)
    with blocks.changed([], FULL, recomputed=recomputable(encoder.vae)):
        latents, found, kept = gradients(encoder, frames)
    assert torch.equal(latents, plain) and found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)  # the same operations on the same numbers: no tolerance
    assert kept < most / 2
    again, _, as_before = gradients(encoder, frames)
    assert torch.equal(again, plain) and as_before == most and [name for name, _ in encoder.named_parameters()] == names


def test_all_of_the_encoder_but_its_ends_is_recomputed():
    _, encoder = stock_and_ours()
    listed = recomputable(encoder.vae)
    inside = {id(value) for block in listed for value in block.parameters()}
    outside = {name.partition(".")[0] for name, value in encoder.vae.encoder.named_parameters() if id(value) not in inside}
    assert outside == {"conv_in", "norm_out", "conv_out"}
    assert recomputable(encoder.vae) == listed  # a later stage asks again
    assert not any(type(module) is WanResidualBlock for module in encoder.vae.encoder.modules())


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case("theworld", tmp_path_factory.mktemp("theworld"))


def test_the_family_lists_them_beside_the_blocks_that_are_sharded(case):
    listed, sharded = case.family.recomputed(case.model), case.family.blocks(case.model)
    assert listed and not set(listed) & set(sharded)
    assert all(block in set(case.model.world.modules()) for block in listed)
    whole = case.gradient(case.micros(4))
    with blocks.changed(sharded, FULL, recomputed=listed):
        found = case.gradient(case.micros(4))
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    assert any(name.startswith("world.vae.encoder.") for name in found)
