"""Weights that train are cast to the type of products at most once for a micro-batch, and that changes no bit of a gradient."""

import contextlib

import pytest
import torch

from plait.config.schema import Distributed
from plait.engine import blocks
from plait.engine.flops import Meter
from plait.engine.loop import total_loss_weights
from plait.engine.parallel import distributed
from plait.engine.precision import set_precision
from plait.engine.state import State
from plait.families import registry
from tests import processes
from tests.casts import Casts
from tests.engine.toy import make_loop
from tests.families.test_conformance import ALONE, SAMPLES, Case

KINDS = {"none": {}, "full": {}, "selective": {}, "one_in_n": {"checkpoint_one_in": 2}}
SETTINGS = {kind: {"activation_checkpointing": kind, **others} for kind, others in KINDS.items()}
COMPILED = {"compile": True, "compile_backend": "aot_eager", "activation_checkpointing": "full"}


@pytest.fixture(scope="module", params=registry.names())
def case(request, tmp_path_factory):
    made = Case(request.param, tmp_path_factory.mktemp(request.param))
    set_precision(made.model, {name for part in made.trained.values() for name in part}, "bf16")
    made.model.train()
    return made


def gradient(case, settings, micros, ranks=ALONE):
    """What the loop does for a step of several micro-batches; returns (gradients, numerators, the casts of each weight)."""
    how, train = Distributed(**settings), case.config.train.model_copy(update={"precision": "bf16"})
    config, meter = case.config.model_copy(update={"distributed": how, "train": train}), Meter(ranks.device, "bf16")
    case.model.zero_grad()
    weights = total_loss_weights(case.loss, micros, ranks)
    casts = contextlib.nullcontext(Casts(case.model)) if how.compile else Casts(case.model)  # nothing is compiled in such a mode
    rest = case.family.recomputed(case.model)
    with blocks.changed(case.family.blocks(case.model), how, meter=meter, recomputed=rest), casts as counted:
        made = make_loop(State(case.model), case.loss, config, ranks, case.parts.assets / "bad.jsonl", meter=meter)
        net = distributed.replicate(case.model, ranks, "none")
        sums = made.accumulate(net, micros, {name: weights[name] for name in case.loss.coefficients})
    assert not torch.is_autocast_enabled("cpu")
    return {name: value.grad for name, value in case.model.named_parameters() if value.grad is not None}, sums, counted.found


@pytest.fixture(scope="module")
def micros(case):
    return case.micros(SAMPLES // 2)


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_weight_is_cast_at_most_once_for_a_micro_batch(case, micros, kind):
    _, _, casts = gradient(case, SETTINGS[kind], micros)
    named = dict(case.model.named_parameters())
    assert len(micros) == 2 and casts.keys() <= named.keys()
    assert sum(value.numel() for name, value in named.items() if name in casts) > 0.5 * sum(map(torch.numel, named.values()))
    sliced = {name for name in casts if name.startswith("world.") and kind != "none"}  # autocast keeps no slices, of the VAE's kernels
    assert max(casts[name] for name in casts.keys() - sliced) <= len(micros), casts.most_common(3)
    assert all(casts[name] <= 2 * len(micros) for name in sliced)
    inside = {id(value) for block in case.family.blocks(case.model) for value in block.parameters()}
    assert {casts[name] for name, value in named.items() if id(value) in inside and name in casts} == {1}  # in the whole step
    assert gradient(case, SETTINGS[kind], micros)[2] == casts  # of new weights in the next


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # the compiler's own look at it
@pytest.mark.parametrize("settings", [*SETTINGS.values(), COMPILED], ids=[*SETTINGS, "compiled"])
def test_casts_that_are_kept_change_no_bit(case, micros, settings, monkeypatch):
    if settings is COMPILED and case.config.family != "nanodit":
        pytest.skip("compiled blocks cast by themselves: looked at in the family that compiles the quickest")
    found, sums, _ = gradient(case, settings, micros)
    found = {name: value.clone() for name, value in found.items()}
    monkeypatch.setattr(blocks, "kept_casts", lambda *given: contextlib.nullcontext())
    plain, plain_sums, casts = gradient(case, settings, micros)
    assert settings is COMPILED or max(casts.values()) >= 2
    assert found.keys() == plain.keys() and sums == plain_sums
    assert all(torch.equal(value, plain[name]) for name, value in found.items())


@pytest.mark.parametrize(("memory_gb", "times"), [(1.0, 1), (1e-6, 4)], ids=["kept", "made again"])
def test_blocks_cast_again_where_copies_would_take_much_of_the_memory(case, micros, memory_gb, times):
    casts = gradient(case, {"activation_checkpointing": "full", "memory_gb": memory_gb}, micros)[2]
    inside = {id(value) for block in case.family.blocks(case.model) for value in block.parameters()}
    of_blocks = {casts[name] for name, value in case.model.named_parameters() if id(value) in inside and name in casts}
    assert of_blocks == {times}


def replicated(case):
    """On two ranks: gradients with casts that are kept and with others, and how often each weight was cast with those kept."""
    with distributed.join("cpu") as ranks:
        micros = case.micros(1, ranks=ranks)
        found, _, casts = gradient(case, SETTINGS["full"], micros, ranks)
        found = {name: value.clone() for name, value in found.items()}
        blocks.kept_casts = lambda *given: contextlib.nullcontext()
        plain, _, _ = gradient(case, SETTINGS["full"], micros, ranks)
        return max(casts.values()) / len(micros), [name for name, value in plain.items() if not torch.equal(value, found[name])]


def test_replicas_keep_casts_and_add_the_same_gradients(case):
    if case.config.family != "nanodit":
        pytest.skip("the engine's own, with the smallest model")
    for casts, differing in processes.run(2, replicated, case):
        assert casts <= 1 and differing == []
