"""What `plait plan` says of the host's memory, beside what a run's background saves take of it."""

import json

import pytest

from plait import cli
from plait.engine.checkpoints.writing import copying
from tests.commands.test_plan import RECIPE

SHORT = [
    "--train.steps=4",
    "--stages.0.trainable=[blocks,final]",
    "--stages.1.train.steps=4",
    "--checkpoint.every_steps=2",
    "--optim.ema.decay=0.9",
]


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def host(capsys, recipe, *options):
    cli.main(["plan", str(recipe), "--json", *options])
    return [stage["host_memory"] for stage in json.loads(capsys.readouterr().out)["stages"]]


def test_a_run_keeps_the_copies_that_its_plan_says(recipe, capsys, monkeypatch, tmp_path):
    taken, allocate = [], copying._allocate
    monkeypatch.setattr(copying, "_allocate", lambda size: taken.append(size) or allocate(size))
    planned = host(capsys, recipe, *SHORT)
    assert cli.main(["train", str(recipe), *SHORT, f"--run={tmp_path / 'run'}"]) == 0
    first, second = sum(taken[:3]), sum(taken[3:])  # weights, averages and moments of each stage, in memory that its saves share
    assert len(taken) == 6 and 0 < first < second
    for stage, size in zip(planned, (first, second), strict=True):
        assert stage["copies"] <= size < 1.1 * stage["copies"]  # each tensor begins at a multiple of 64 bytes
        assert (stage["writers"], stage["unused"]) == (1, 0)


def test_each_rank_keeps_the_part_of_a_sharded_state_that_it_writes(recipe, capsys):
    (_, whole), (_, cut) = (host(capsys, recipe, "--ranks=2", f"--distributed.strategy={name}") for name in ("ddp", "fsdp"))
    assert (whole["writers"], cut["writers"]) == (1, 2) and cut["copies"] == -(-whole["copies"] // 2)
    assert [stage["copies"] for stage in host(capsys, recipe, "--checkpoint.async_save=false")] == [0, 0]


def test_moments_in_the_hosts_memory_take_none_of_the_devices(recipe, capsys, tmp_path):
    def memory(*options):
        cli.main(["plan", str(recipe), "--json", *SHORT, *options])
        stages = json.loads(capsys.readouterr().out)["stages"]
        return [(stage["memory"][0]["moments"], stage["host_memory"]["moments"]) for stage in stages]

    there, moved = memory(), memory("--optim.offload=true")
    assert [(device, host) for device, host in moved] == [(0, device) for device, _ in there] and there[0][0] > 0
    cli.main(["plan", str(recipe), *SHORT, "--optim.offload=true"])
    assert " of each rank for the optimizer's moments (optim.offload)" in capsys.readouterr().out


def test_the_text_tells_of_copies_and_of_a_decoder_that_no_gpu_gets(tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "{family: theworld, preset: tiny, trainable: [projector], train: {steps: 2, global_batch: 2}, "
        "data: {train: [{source: scenes, limit: 8, options: {size: [32, 32], objects: [1, 2], tasks: [caption]}}]}}"
    )
    assert cli.main(["plan", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [i for i, line in enumerate(lines) if line.startswith("  host memory")]
    assert lines[row].endswith(" of rank 0 for the copy that background saves are written from (checkpoint.async_save)")
    assert lines[row + 1].endswith(" of each rank for weights that nothing computes with")
    cli.main(["plan", str(path), "--json", "--checkpoint.async_save=false"])
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    assert stage["host_memory"] == {"copies": 0, "writers": 0, "unused": 4 * stage["parameters"]["world_decoder"]["total"], "moments": 0}
    assert cli.main(["plan", str(path), "--checkpoint.async_save=false", "--model.world=off", "--trainable=[vision]"]) == 0
    assert "host memory" not in capsys.readouterr().out
