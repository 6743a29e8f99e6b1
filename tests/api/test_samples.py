"""`plait.samples`: what the model is given of a configuration's data, as a run takes it."""

import numpy as np
import pytest
import torch

import plait
from plait.families.theworld import family
from plait.families.theworld.config import Config

SCENES = {"source": "scenes", "limit": 12, "options": {"size": [32, 32], "objects": [1, 2], "tasks": ["colour"]}}
CONFIG = {
    "family": "theworld",
    "preset": "tiny",
    "data": {"train": [SCENES], "validation": [{**SCENES, "limit": 4}], "workers": 0, "max_tokens": 70},
    "stages": [{"name": "first", "train": {"steps": 2}}, {"name": "second", "train": {"steps": 2}}],
    "train": {"global_batch": 4},
    "evaluate": [],
    "track": {"tensorboard": False},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_samples_are_what_the_run_trains_on():
    """Held against the family's own encoding of the ids of step 1, with the loader's keys."""
    resolved = plait.load_config(CONFIG)
    seen = plait.samples(resolved, n=6)
    again = plait.samples(resolved, n=2)
    assert [one.id for one in again] == [one.id for one in seen[:2]] and len({one.id for one in seen}) == 6
    first = seen[0]
    assert isinstance(first, plait.Sample) and first.source == "scenes train"
    assert [image.shape for image in first.images] == [(32, 32, 3)] * 2 and first.images[0].dtype == np.uint8
    assert first.labels == ["SigLIP, 32 px", "world encoder, 32 px"] and first.notes["world tokens"] == 16
    assert np.array_equal(first.images[0].transpose(2, 0, 1), first.example.pixels[0].numpy())
    whole = "".join(text for text, _ in first.text)
    assert first.supervised.removesuffix("<end_of_turn>") in whole and whole.startswith("<bos>[start of world][world x 16]")
    assert repr(first).startswith(f"Sample({first.id!r}, images 32x32, 32x32, text '<bos>[start of world]")


def test_stages_and_splits_have_their_own_order():
    of = {stage: [one.id for one in plait.samples(CONFIG, stage=stage, n=12)] for stage in (None, "first", "second")}
    assert of[None] == of["first"] != of["second"] and set(of["first"]) == set(of["second"])
    held_out = plait.samples(CONFIG, split="validation", n=9)
    assert len(held_out) == 4 and not {one.id for one in held_out} & set(of["first"])


def test_a_run_is_looked_at_with_its_own_tokenizer():
    """With another, the ids would be others."""
    config = {**CONFIG, "run": "run", "stages": [], "train": {"steps": 1, "global_batch": 4}}
    run = plait.train(config)
    (sample,) = plait.samples(run.folder, n=1)
    inputs = family.Inputs(Config(base="tiny"), run.folder / "assets", max_tokens=70)
    assert "".join(text for text, _ in sample.text).endswith(inputs.chat.decode(sample.example.row.ids[-4:].tolist(), special=True))
    assert torch.equal(sample.example.row.ids, plait.samples("run", n=1)[0].example.row.ids)


def test_text_that_is_cut_is_marked():
    cut = plait.samples(CONFIG, n=4, **{"split": "train"})
    assert not any(one.cut for one in cut)
    short = {**CONFIG, "data": {**CONFIG["data"], "max_tokens": min(len(one.example.row) for one in cut) - 1}}
    assert all(one.cut for one in plait.samples(short, n=2))


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"n": 0}, r"samples\(n=0, split='train'\): n is at least 1, split \"train\" or \"validation\""),
        ({"split": "test"}, r"samples\(n=12, split='test'\): n is at least 1"),
        ({"stage": "third"}, r"samples\(stage='third'\): the configuration has no such stage; it has first, second"),
    ],
)
def test_what_there_is_not_is_told(asked, line):
    with pytest.raises(plait.PlaitError, match=line):
        plait.samples(CONFIG, **asked)
