"""Training through the engine on five buckets with mirrored samples: one shape per batch, an exact restart, cuts that change nothing."""

import json
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from plait.assembly.configuration import open_config
from plait.cli import main
from plait.config.schema import SourceEntry
from plait.data.loading.bucketing import order_of
from plait.data.loading.loader import Loader
from plait.data.sources.open import open_source
from plait.families.nanodit import family
from plait.families.nanodit.config import Config
from plait.training import run

from ... import processes
from .conftest import wake

BUCKETS = "32x32,24x40,40x24,16x48,48x16"
SIZES = "[[64,64],[48,80],[80,48],[40,120],[120,40]]"
CONFIG = Config(depth=1, hidden=32, heads=2, channels=12, text_dim=64, image_dim=64)
TEXT = """
family: nanodit
model: {depth: 1, hidden: 32, heads: 2, channels: 12, text_dim: 64, image_dim: 64, flip: {probability: 0.5}}
data: {train: [{source: latents, path: SHARDS}], validation: [{source: latents, path: SHARDS}], workers: WORKERS}
train: {steps: 20, global_batch: 4}
optim: {lr: 1.0e-2, ema: {decay: 0.9}}
checkpoint: {every_steps: 11, keep: 0}
track: {every_steps: 1, tensorboard: false}
evaluate: [{bench: loss, every_steps: 10, samples: 16, batch: 4}]
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """60 scenes in five buckets, their sides named in many captions, so that twins are there."""
    folder = tmp_path_factory.mktemp("shards") / "set"
    scenes = ["--options.tasks=[caption]", "--options.objects=1", f"--options.size={SIZES}", "--options.supersample=1"]
    encoders = ["--latents=tiny:4x12", "--texts=tiny", "--images=tiny", f"--buckets={BUCKETS}"]
    assert main(["data", "shard", "scenes", str(folder), "--limit=60", *encoders, *scenes]) == 0
    return folder


def resolved(folder, shards, workers=0):
    folder.mkdir(exist_ok=True)
    path = folder / "x.yaml"
    path.write_text(TEXT.replace("SHARDS", str(shards)).replace("WORKERS", str(workers)))
    return open_config(path, [f"--run={folder / 'run'}"])


def test_a_run_cut_in_the_middle_of_an_epoch_ends_bit_for_bit_the_same(tmp_path, shards):
    straight, cut = resolved(tmp_path / "a", shards), resolved(tmp_path / "b", shards, workers=2)
    first, second = run.train(straight), run.train(cut)
    (last,) = second.glob("stage-1*/step-00000020")
    shutil.rmtree(last)  # as if it had been killed after step 11, in the first epoch of 15 steps
    run.train(cut)
    for name in ("weights", "ema", "moments"):
        one, other = (load_file(next(where.glob(f"stage-1*/step-00000020/{name}.safetensors"))) for where in (first, second))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), name
    rows = [[json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()] for where in (first, second)]
    losses = [{row["step"]: row["loss"] for row in some if "loss" in row} for some in rows]
    assert losses[0] == losses[1] and len(losses[0]) == 20
    steps = [row for row in rows[0] if "loss" in row]
    assert [row["epoch"] for row in steps] == [4 * step / 60 for step in range(1, 21)]
    batches = {row["bucket"]: row["batches"] for row in open_source(SourceEntry(source="latents", path=str(shards)), seed=0).table(4)}
    assert Counter(row["bucket"] for row in steps[: sum(batches.values())]) == batches  # those of the first epoch
    assert len(batches) == 5 and {row["ema_decay"] for row in steps} == {0.9}


def micros(shards, *, micro_batch=4, rank=0, world_size=1, steps=15):
    """The micro-batches of every step of one epoch, as a rank loads them."""
    source = open_source(SourceEntry(source="latents", path=str(shards)), seed=1)
    order, inputs = order_of([source], [1.0], 7, 4), family.Inputs(CONFIG, shards, train=True)
    with Loader(
        [source], order, inputs, seed=7, rank=rank, world_size=world_size, micro_batch=micro_batch, workers=0, stop_step=steps
    ) as loader:
        return source, [step.micro for step in loader]


def gradient(step, total):
    """The gradient of one step's mean loss over `total` samples."""
    model, loss = family.build(CONFIG, None, seed=1), family.Loss(CONFIG)
    wake(model)
    for micro in step:
        if not micro.padding:
            (loss.sums(model, micro.batch)["flow"] / total).backward()
    return torch.cat([value.grad.flatten() for value in model.parameters()])


def test_every_batch_has_one_shape_and_every_sample_comes_once_per_epoch(shards):
    source, steps = micros(shards, steps=30)
    shapes = [{tuple(micro.batch["x0"].shape[1:]) for micro in step} for step in steps]
    assert all(len(some) == 1 for some in shapes)
    assert {next(iter(some)) for some in shapes} == {(12, h // 4, w // 4) for w, h in ((32, 32), (24, 40), (40, 24), (16, 48), (48, 16))}
    counts = Counter(one.index for step in steps for micro in step for one in micro.ids)
    assert len(source.groups) == 5 and set(counts) == set(range(60)) and max(counts.values()) <= 3
    flags = [bool(micro.batch["text_null"].any()) for step in steps for micro in step]
    assert any(flags) and not all(flags)


@pytest.mark.parametrize(
    "cut", [{"micro_batch": 1}, {"micro_batch": 2}, {"micro_batch": 3}, {"world_size": 2}, {"world_size": 2, "micro_batch": 1}]
)
def test_any_cut_of_the_batch_gives_its_gradient(shards, cut):
    (_, whole), ranks = micros(shards, steps=5), [micros(shards, rank=r, steps=5, **cut)[1] for r in range(cut.get("world_size", 1))]
    for number, step in enumerate(whole):
        expected = gradient(step, 4)
        summed = sum(gradient(steps[number], 4) for steps in ranks)
        assert torch.allclose(summed, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-6)  # float32 sums in another order


def test_ranks_share_the_samples_of_a_batch(shards):
    (_, whole), ranks = micros(shards, steps=15), [micros(shards, world_size=2, rank=r, micro_batch=2)[1] for r in range(2)]
    for number, step in enumerate(whole):
        every = [one for steps in ranks for micro in steps[number] if not micro.padding for one in micro.ids]
        assert sorted(every) == sorted(one for micro in step for one in micro.ids)


def test_two_ranks_that_share_the_weights_equal_one(tmp_path, shards):
    settings = ["--train.steps=3", "--checkpoint.every_steps=3", "--evaluate.0.every_steps=3", "--train.micro_batch=1"]
    for name, size, more in (("one", 1, []), ("two", 2, ["--distributed.strategy=fsdp"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.yaml").write_text(TEXT.replace("SHARDS", str(shards)).replace("WORKERS", "0"))
        processes.fork(size, main, ["train", f"{tmp_path / name / 'x.yaml'}", f"--run={tmp_path / name / 'run'}", *settings, *more])
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines()] for name in ("one", "two")
    )
    assert len(one) == len(two) == 4, "a rank's own error is on standard error"
    for alone, together in zip(one, two, strict=True):
        numbers = {name: value for name, value in alone.items() if name.startswith(("loss", "grad_norm", "eval/loss"))}
        assert {name: together[name] for name in numbers} == pytest.approx(numbers, rel=1e-4)  # fp32; sums in another order
        assert alone.get("ids") == together.get("ids")


def test_training_draws_a_grid_per_bucket_and_warns_of_what_the_monitors_see(tmp_path, shards, capfd):
    bench = "--evaluate=[{bench: grid, every_steps: 4, samples: 8, batch: 8}, {bench: divergence, every_steps: 4, samples: 4}]"
    path = tmp_path / "x.yaml"
    path.write_text(TEXT.replace("SHARDS", str(shards)).replace("WORKERS", "0"))
    arguments = [f"--run={tmp_path / 'run'}", "--train.steps=4", "--model.sampling={steps: 1}", f"--model.metadata={shards}", bench]
    assert main(["train", str(path), *arguments, "--track.tensorboard=true"]) == 0
    output = capfd.readouterr()
    assert "bucket 32x32       " in output.out and "batches of 4 an epoch" in output.out
    assert "warning: optim.ema.decay = 0.9 has a half-life of 7 updates, more than a fifth of the 4 steps" in output.out
    folder = tmp_path / "run" / "validation" / "step-00000004"
    drawn = {file.stem.removeprefix("grid-") for file in folder.glob("grid-*.png")}
    (event,) = (tmp_path / "run" / "events").iterdir()
    assert drawn and drawn <= set(BUCKETS.split(",")) and all(f"grid/{size}".encode() in event.read_bytes() for size in drawn)
    assert sum(not file.name.startswith("grid-") for file in folder.glob("*.png")) == 8
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (lines,) = [row["warnings"] for row in rows if "warnings" in row]
    assert "the conditions are not used" in lines[0] and "warning: step 4: samples by text alone" in output.err
