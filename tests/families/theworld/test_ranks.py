"""Ranks that see pictures, text only, or nothing supervised: none waits for another, and the gradient is that of one rank."""

import pytest
import torch

from plait.engine.loop import total_weights
from plait.engine.parallel import distributed
from plait.engine.state import State
from plait.families.theworld import family
from tests import processes
from tests.engine.toy import ALONE, make_config, make_loop, micro

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
    weights = total_weights(loop.loss, micros, ranks)
    loop.accumulate(distributed.replicate(model, ranks), micros, {"loss": weights["loss"]})
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
