"""The towers of a model are called once for all samples of a micro-batch: pictures, crops and frames of one shape go together."""

from collections import Counter

import pytest
import torch

from tests.families.test_conformance import SAMPLES, Case

TOWERS = {"theworld": ("gemma.model.vision_tower", "world.vae.encoder", "projector"), "molmo": ("vision", "connector")}


@pytest.fixture(scope="module", params=TOWERS)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def calls(case, batch):
    """How often each module was called in a forward pass."""
    found = Counter()
    hooks = [
        module.register_forward_hook(lambda module, args, output, name=name: found.update([name]))
        for name, module in case.model.named_modules()
    ]
    case.loss.sums(case.model, batch)
    for hook in hooks:
        hook.remove()
    return found


def test_a_tower_is_called_once_for_all_samples(case):
    one, (batch,) = case.micros(1)[0].batch, [micro.batch for micro in case.micros(SAMPLES)]
    alone, together = calls(case, one), calls(case, batch)
    assert [together[name] for name in TOWERS[case.family.name]] == [1] * len(TOWERS[case.family.name])
    assert together == alone  # nothing in the model is called by the sample
    assert not any("decoder" in name for name in together if name.startswith("world."))


def test_frames_of_several_samples_are_encoded_by_their_number(case):
    if case.family.name != "theworld":
        pytest.skip("frames are theworld's")
    seen = []
    hook = case.model.world.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape[:2])))
    batch = case.micros(SAMPLES)[0].batch
    clip = batch["frames"][:1].expand(5, -1, -1, -1)
    frames = torch.cat([batch["frames"][:1], clip, batch["frames"][1:2], clip])
    case.model._world_blocks({**batch, "frames": frames, "frame_counts": [1, 5, 1, 5], "latent_counts": [0] * 4})
    hook.remove()
    assert seen == [(2, 1), (2, 5)]
