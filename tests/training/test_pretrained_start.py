"""A start from parts that transformers and diffusers saved: on any layout what no file holds is right too, and all of it trains."""

import json

import pytest
import torch
import yaml

from plait.assembly.configuration import open_config
from plait.assembly.model import build_model
from plait.engine.checkpoints import integrity
from plait.engine.parallel import distributed
from plait.engine.parallel.distributed import Ranks
from plait.engine.state import State
from plait.families import registry
from plait.training import run
from plait.training.layout import lay_out
from plait.training.stage_plan import plan_stage
from tests import processes
from tests.families.test_conformance import SCENES, TINY

ALONE = Ranks(0, 1, torch.device("cpu"))
LAYOUTS = {
    "ddp": ("strategy=ddp",),
    "fsdp": ("strategy=fsdp", "frozen=shard"),
    "shard_grad_op": ("strategy=shard_grad_op", "frozen=replicate"),
    "hsdp": ("strategy=hsdp", "frozen=shard", "shard_size=2"),
}
UNWRITTEN = {"theworld": 8, "molmo": 3, "nanodit": 0}
"""Buffers that no file of weights holds: frequencies of rotary positions, position ids, scales, the latents' mean and deviation."""


def load(path, *overrides):
    return open_config(path, overrides)


def drawn(family, folder):
    """A tiny model whose weights are drawn, not read, with its recipe and its run's directory."""
    text = f"family: {family}\ndata: {{train: [{SCENES}], workers: 0}}\ntrain: {{steps: 4, global_batch: 2}}\n"
    recipe = {
        **yaml.safe_load(text),
        **yaml.safe_load(TINY[family]),
        "track": {"tensorboard": False},
        "optim": {"lr": 1e-2, "schedule": {"warmup_steps": 0}},
    }
    (folder / f"{family}.yaml").write_text(yaml.dump(recipe))
    settings = load(folder / f"{family}.yaml").config
    return build_model(settings, folder / family, ALONE).model, recipe, folder / family


def saved(family, folder):
    """The same with its parts in directories; returns the drawn model and the path of a recipe that reads them."""
    model, recipe, made = drawn(family, folder)
    given = recipe.setdefault("model", {})
    if family == "theworld":
        model.gemma.save_pretrained(folder / "gemma")
        (folder / "gemma/tokenizer.json").write_bytes((made / "assets/tokenizer/tokenizer.json").read_bytes())
        model.world.vae.save_pretrained(folder / "pipeline/vae")
        given |= {"base": str(folder / "gemma"), "world": {**given["world"], "source": str(folder / "pipeline")}}
    if family == "molmo":
        model.language.save_pretrained(folder / "language")
        (folder / "language/tokenizer.json").write_bytes((made / "assets/tokenizer/tokenizer.json").read_bytes())
        given |= {"language": str(folder / "language"), "vision_backbone": "debug", "overlap": 2, "style": "none"}
    path = folder / f"{family}-saved.yaml"
    path.write_text(yaml.dump(recipe))
    return model, path


def started(path, layout, ranks):
    """The model of a recipe as its first stage lays it out."""
    view = load(path, *(f"distributed.{setting}" for setting in layout)).stages[0]
    built = build_model(view.config, path.parent / "run" / path.stem, ranks)
    with lay_out(plan_stage(view, built), built, State(built.model), ranks, micro_batch=1):
        return built.model


def differing(expected, layout):
    """Per family, the names of tensors that are not, bit for bit, what the one process drew."""
    found = {}
    with distributed.join("cpu") as ranks:
        for family, (path, tensors) in expected.items():
            model = started(path, layout, ranks)
            own = {name: distributed.full_tensor(value) for name, value in [*model.named_parameters(), *model.named_buffers()]}
            assert own.keys() == tensors.keys()
            found[family] = [name for name, value in tensors.items() if value.dtype != own[name].dtype or not torch.equal(value, own[name])]
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("saved"), {}
    for family in registry.names():
        model, path = saved(family, folder)
        found[family] = (path, {name: value.detach() for name, value in [*model.named_parameters(), *model.named_buffers()]})
        kept = set(model.state_dict())
        assert sum(name not in kept for name, _ in model.named_buffers()) == UNWRITTEN[family]
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameters_and_buffers_of_saved_parts_are_the_one_process_s_on_every_rank(expected, layout):
    size = 4 if layout == "hsdp" else 2
    assert processes.run(size, differing, expected, LAYOUTS[layout]) == [{family: [] for family in expected}] * size


def trained(path, out, *settings):
    """The last weights of a short run, or of the rest of it."""
    run.train(load(path, f"run={out}", "optim.schedule.name=constant", *settings), run.TrainOptions(allow_inexact=True))
    return integrity.locate(out).tensors("weights")


def test_dropout_of_a_saved_part_drops_from_the_first_step(expected):
    path = expected["theworld"][0]
    sizes = path.parent / "gemma/config.json"
    given = json.loads(sizes.read_text())
    given["text_config"]["attention_dropout"] = 0.5
    sizes.write_text(json.dumps(given))  # a save looks at the probe samples in evaluation mode, and then all of it trains
    straight = trained(path, path.parent / "straight")
    trained(path, path.parent / "halves", "train.steps=2")
    halves = trained(path, path.parent / "halves")
    assert all(torch.equal(value, halves[name]) for name, value in straight.items())
