"""Ranks that see pictures, text only, or nothing supervised: none waits for another, and the gradient is that of one rank."""

import pytest
import torch

from plait.engine import optim
from plait.engine.loop import total_loss_weights
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import full_tensor
from plait.engine.parallel.memory_estimate import Layout
from plait.engine.parallel.sharding import Sharding
from plait.engine.state import State
from plait.families.theworld import family
from tests import processes
from tests.engine.toy import ALONE, make_config, make_loop, micro, step_batch

from .conftest import sample

PICTURES, TEXT = [sample(1), sample(2, 3, say="a cat on a mat")], [sample(say="left"), sample(ask="Where is it?", say="a small green frog")]
NOTHING = [sample(4, say=""), sample(say="")]
SPLITS = {"text on one rank": (TEXT, PICTURES), "unequal": (PICTURES[:1], TEXT), "nothing supervised on one rank": (NOTHING, PICTURES)}


def gradients(made, trainable, batches, ranks, folder):
    """The gradients after one rank's micro-batches."""
    config, model, inputs = made
    for name, part in family.components(model).items():
        for parameter in part.values():
            parameter.requires_grad_(name in trainable)
    micros = [micro([0]) for _ in batches]
    for micro_batch, samples in zip(micros, batches, strict=True):
        micro_batch.batch = inputs.collate([inputs.encode(given, 0) for given in samples])
    loop = make_loop(State(model), family.Loss(config), make_config(), ranks, folder / "bad.jsonl")
    weights = total_loss_weights(loop.loss, micros, ranks)
    loop.accumulate(distributed.replicate(model, ranks, "none"), micros, weights)
    return {name: value.grad.numpy() for name, value in model.named_parameters() if value.grad is not None}


def on_rank(made, trainable, split, folder):
    with distributed.join("cpu") as ranks:
        return gradients(made, trainable, [split[ranks.rank]], ranks, folder)


EVERYTHING = ("projector", "vision", "language", "world")
CASES = [(name, EVERYTHING) for name in SPLITS] + [("text on one rank", ("projector",))]


@pytest.mark.parametrize(("name", "trainable"), CASES, ids=[f"{name}, {len(parts)} parts train" for name, parts in CASES])
def test_ranks_with_unlike_micro_batches_get_one_gradient(make, tmp_path, name, trainable):
    split = SPLITS[name]
    alone = gradients(make(), trainable, list(split), ALONE, tmp_path)
    scale = max(abs(value).max() for value in alone.values())
    assert scale > 0
    for of_rank in processes.run(2, on_rank, make(), trainable, split, tmp_path):
        assert of_rank.keys() == alone.keys()
        for weight, value in of_rank.items():
            assert abs(value - alone[weight]).max() <= 2e-5 * scale, weight  # fp32: two sums in another order
            assert torch.from_numpy(value).isfinite().all()


def vision_after_text(made, ranks, layout, folder):
    """Weights and moments of what saw nothing, after a step with pictures and, by the loop as well, after one of text alone."""
    config, model, inputs = made
    settings = make_config(train={"steps": 2, "global_batch": 4}, optim={"lr": 0.01, "weight_decay": 0.5, "schedule": {"name": "constant"}})
    Sharding(model).wrap(family.blocks(model), {name for name, _ in model.named_parameters()}, Layout(layout, ranks.size), ranks, types={})
    state, seen = State(model), []
    state.begin({part: family.components(model)[part] for part in EVERYTHING}, settings.optim)

    def note(state, row):
        kept = {name: full_tensor(value).detach().clone().numpy() for name, value in state.trained().items()}
        seen.append((kept, {name: full_tensor(value).clone().numpy() for name, value in optim.moments(state.optimizer).items()}))

    micros = []
    for samples in (TEXT, PICTURES, TEXT, TEXT):
        micros.append(micro([0]))
        micros[-1].batch = inputs.collate([inputs.encode(given, 0) for given in samples])
    loop = make_loop(state, family.Loss(config), settings, ranks, folder / "bad.jsonl", [note])
    loop.run([step_batch(step, micros[2 * step : 2 * step + 2][ranks.rank :: ranks.size]) for step in range(2)], 2)
    return seen


def vision_on_rank(made, layout, folder):
    with distributed.join("cpu") as ranks:
        return vision_after_text(made, ranks, layout, folder)


@pytest.mark.parametrize("layout", ["alone", "ddp", "fsdp"])
def test_a_step_without_pictures_moves_nothing_that_sees_them(make, tmp_path, layout):
    alone = layout == "alone"
    of_ranks = [vision_after_text(make(), ALONE, "ddp", tmp_path)] if alone else processes.run(2, vision_on_rank, make(), layout, tmp_path)
    for (weights, moments), (later, later_moments) in of_ranks:
        still = {name for name, value in weights.items() if (value == later[name]).all()}
        components = family.components(make()[1])
        assert still == {name for part in ("vision", "world", "projector") for name in components[part]}
        assert all((value == later_moments[name]).all() for name, value in moments.items() if name.rpartition(".")[0] in still)
        assert {float(later_moments[f"{name}.step"]) for name in still} == {1.0}
        assert {float(later_moments[f"{name}.step"]) for name in weights.keys() - still} == {2.0}
